//! Sizes and times as they are written in TOML.

use std::time::Duration;

/// `"64KiB"`, `"16MiB"`, `"1GiB"`: bytes, at least 64 KiB.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "KiB" => 1_u64 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes
        .filter(|it| *it >= 65536)
        .ok_or_else(|| format!("`{text}` is not a size of at least 64KiB, such as \"16MiB\""))
}

/// `"20ms"`, `"1s"`, `"5m"`: above zero, at most a day.
pub fn time(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 60 * 60);
    let time = humantime::parse_duration(text).ok().filter(|time| !time.is_zero() && *time <= day);
    time.ok_or_else(|| format!("`{text}` is not a time, such as \"20ms\", \"1s\" or \"5m\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for wrong in ["1KiB", "16", "16MB", "MiB", "", "99999999999999GiB"] {
            assert!(size(wrong).unwrap_err().contains("16MiB"), "{wrong}");
        }
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["0s", "20", "soon", "", "2days"] {
            assert!(time(wrong).unwrap_err().contains("20ms"), "{wrong}");
        }
    }
}
