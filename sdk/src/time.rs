//! Time between moments and in texts, in integers: printed floats may differ in a replay.

use std::time::Duration;

use crate::Moment;

impl Moment {
    /// How long it is after `earlier`: by the boot clock where both have one, else by the source's
    /// wall clock, else by the router's. `None` where it lies before it. Boot clocks of two sources
    /// are not comparable: compare moments of one source only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        if let (Some(at), Some(from)) = (self.boot_ns, earlier.boot_ns) {
            return at.checked_sub(from).map(Duration::from_nanos);
        }
        let (at, from) = match (self.wall_ms, earlier.wall_ms) {
            (Some(at), Some(from)) => (at, from),
            _ => (self.received_ms, earlier.received_ms),
        };
        at.checked_sub(from).map(Duration::from_millis)
    }
}

/// Parses `"250ms"`, `"5s"` or `"2m"`, as written in a `[config]` table. With the feature `config`,
/// a field with `#[serde(deserialize_with = "time::deserialize")]` is parsed so.
///
/// # Errors
/// What is expected, as a message for the operator.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let number = text[..text.len() - unit.len()].parse::<u64>().ok();
    let duration = number.and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    });
    duration.ok_or_else(|| format!("{text:?} is no duration: a number and ms, s or m, as in \"5s\""))
}

/// For a `because` or a report: `"40 ms"`, and from a second on `"2.5 s"`, rounded down.
#[must_use]
pub fn shown(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.subsec_millis()),
        seconds => format!("{seconds}.{} s", duration.subsec_millis() / 100),
    }
}

#[cfg(feature = "config")]
pub use typed::deserialize;

#[cfg(feature = "config")]
mod typed {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};

    /// Reads a field of a configuration as [`parse`](super::parse) does.
    ///
    /// # Errors
    /// No text, or not that of a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_compared_by_the_finest_clock_that_both_have() {
        let moment = |boot_ns, wall_ms, received_ms| Moment { boot_ns, wall_ms, received_ms };
        let full = moment(Some(5_000_000), Some(100), 1000);
        let cases = [
            (full, moment(Some(2_000_000), Some(0), 0), Some(3)),
            (full, moment(Some(6_000_000), Some(0), 0), None),
            (full, moment(None, Some(60), 0), Some(40)),
            (full, moment(None, Some(101), 0), None),
            (full, moment(None, None, 1), Some(999)),
            (full, moment(None, None, 1001), None),
            (moment(Some(0), None, 7), moment(None, Some(0), 7), Some(0)),
        ];
        for (at, earlier, expect) in cases {
            assert_eq!(at.since(&earlier), expect.map(Duration::from_millis), "{at:?} since {earlier:?}");
        }
    }

    #[test]
    fn duration_is_a_number_and_a_unit() {
        let cases = [
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("5s", Some(5000)),
            ("2m", Some(120_000)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5 s", None),
            ("-5s", None),
            ("1.5s", None),
            ("5h", None),
            ("5s5", None),
            ("99999999999999999999s", None),
            ("18446744073709551615m", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse(text).ok(), expect.map(Duration::from_millis), "{text:?}");
        }
        let message = r#""5 s" is no duration: a number and ms, s or m, as in "5s""#;
        assert_eq!(parse("5 s"), Err(message.to_owned()));
    }

    #[test]
    fn durations_are_shown_in_milliseconds_and_then_in_tenths() {
        let cases = [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (2090, "2.0 s"), (61_500, "61.5 s")];
        for (milliseconds, expect) in cases {
            assert_eq!(shown(Duration::from_millis(milliseconds)), expect);
        }
    }
}
