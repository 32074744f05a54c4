//! Times, sizes and ids in text, each rounded or cut once.

use std::time::{Duration, SystemTime};

/// Characters of an id or a digest that are shown. Docker shows as many of a container's id, and
/// crictl one more: either can be searched for.
const ID_LENGTH: usize = 12;

/// RFC 3339 ends there, in milliseconds; a guest's clock may be anywhere.
const YEAR_9999: u64 = 253_402_300_800_000;

/// The start of a container's id.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(ID_LENGTH).collect()
}

/// The start of `sha256:...`, without the algorithm.
pub(crate) fn short_digest(digest: &str) -> String {
    short_id(digest.trim_start_matches("sha256:"))
}

/// The time of day of unix milliseconds, in UTC.
pub(crate) fn clock(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)).filter(|_| ms < YEAR_9999);
    let text = humantime::format_rfc3339_millis(time.unwrap_or(SystemTime::UNIX_EPOCH)).to_string();
    text.split_once('T').map_or(text.clone(), |(_, time)| time.to_owned())
}

/// The day of unix milliseconds, in UTC.
pub(crate) fn day(ms: u64) -> String {
    let text = humantime::format_rfc3339_seconds(
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(YEAR_9999 - 1)),
    );
    text.to_string().split('T').next().unwrap_or_default().to_owned()
}

/// The time between two events: milliseconds, tenths of a second or whole seconds, rounded to the
/// nearest.
pub(crate) fn span(time: Duration) -> String {
    let nearest = |unit: u128| (time.as_nanos() + unit / 2) / unit;
    let (ms, tenths) = (nearest(1_000_000), nearest(100_000_000));
    if ms < 1_000 {
        format!("{ms} ms")
    } else if tenths < 1_000 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        seconds(Duration::from_secs(u64::try_from(nearest(1_000_000_000)).unwrap_or(u64::MAX)))
    }
}

/// Whole seconds, such as `2m 5s`.
pub(crate) fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

/// Bytes, in the largest unit that is whole or nearly.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let tenth = u128::from(bytes % unit) * 10 / u128::from(unit);
            let tenth = if tenth == 0 { String::new() } else { format!(".{tenth}") };
            return format!("{}{tenth} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_is_rounded_once_to_the_nearest() {
        let cases = [
            (0, "0 ms"),
            (499_999, "0 ms"),
            (999_499_999, "999 ms"),
            (999_500_000, "1.0 s"),
            (1_149_999_999, "1.1 s"),
            (1_199_000_000, "1.2 s"),
            (99_949_999_999, "99.9 s"),
            (99_950_000_000, "1m 40s"),
            (100_400_000_000, "1m 40s"),
        ];
        for (ns, expect) in cases {
            assert_eq!(span(Duration::from_nanos(ns)), expect, "{ns}");
        }
    }

    #[test]
    fn clock_and_day_stay_in_range() {
        assert_eq!(clock(1_795_490_284_628), "03:18:04.628Z");
        assert_eq!((clock(u64::MAX), day(u64::MAX)), ("00:00:00.000Z".to_owned(), "9999-12-31".to_owned()));
    }

    #[test]
    fn size_is_in_the_largest_unit() {
        let sizes = [1, 1 << 10, 33_554_432, 1_610_612_736, u64::MAX].map(size);
        assert_eq!(sizes, ["1 bytes", "1 KiB", "32 MiB", "1.5 GiB", "17179869183.9 GiB"]);
    }

    #[test]
    fn ids_and_digests_are_cut_at_one_length() {
        let cut = (short_id("0123456789abcdef"), short_digest("sha256:0123456789abcdef"));
        assert_eq!(cut, ("0123456789ab".to_owned(), "0123456789ab".to_owned()));
    }
}
