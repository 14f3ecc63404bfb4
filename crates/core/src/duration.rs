//! Durations as people write them: `10m`, `1.5s`, `250ms`, `1h`, `2d`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write a number and a unit (ms, s, m, h or d), as in 10m or 1.5s")]
pub struct InvalidDuration(pub String);

/// Reads a number with a unit: `ms`, `s`, `m`, `h` or `d`. The number may have
/// a fraction. A bare number is refused, because it does not say its unit.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(invalid()),
    };
    if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(invalid());
    }
    let number: f64 = number.parse().map_err(|_| invalid())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())
}

/// Writes a duration with the largest unit that keeps it short: `350ms`, `1.5s`, `10m`, `2h5m`,
/// `3d4h`.
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{millis}ms"),
        1..=9 if millis % 1000 != 0 => {
            format!("{}.{}s", seconds, (millis % 1000) / 100)
        }
        1..=59 => format!("{seconds}s"),
        60..=3599 => two(seconds, 60, "m", 1, "s"),
        3600..=86399 => two(seconds, 3600, "h", 60, "m"),
        _ => two(seconds, 86400, "d", 3600, "h"),
    }
}

fn two(seconds: u64, large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    let (whole, part) = (seconds / large, seconds % large / small);
    if part == 0 {
        format!("{whole}{large_unit}")
    } else {
        format!("{whole}{large_unit}{part}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit() {
        for (text, millis) in
            [("250ms", 250), ("1.5s", 1500), ("10m", 600_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(parse(text).expect(text), Duration::from_millis(millis));
        }
        for bad in ["", "10", "s", "-1s", "1.2.3s", "1y", "1e3s", "10 m", "99999999999999999999d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn writes_what_a_person_reads_at_a_glance() {
        for (millis, text) in [
            (0, "0ms"),
            (350, "350ms"),
            (1500, "1.5s"),
            (59_000, "59s"),
            (600_000, "10m"),
            (7_500_000, "2h5m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(format(Duration::from_millis(millis)), text);
        }
    }
}
