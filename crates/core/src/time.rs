//! Points in time as plain values, because nothing in this crate looks at a clock.

use std::fmt;
use std::time::{Duration, SystemTime};

/// Milliseconds since the Unix epoch. Printed as RFC 3339 in UTC, as in
/// `2026-03-01T07:05:09.250Z`.
//
// The twenty lines of calendar below stand in for a dependency: nothing here
// reads dates or knows time zones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1000, self.0 % 1000);
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(millis): Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_millis(millis)
    }
}

impl Timestamp {
    /// Reads what [`Display`](fmt::Display) prints; the fraction may be missing. None for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let number = |text: &str| text.parse::<u64>().ok();
        let date: Vec<u64> = date.split('-').filter_map(number).collect();
        let time: Vec<u64> = time.split(':').filter_map(number).collect();
        let ([year, month @ 1..=12, day @ 1..=31], [hour, minute, second]) =
            (date.as_slice(), time.as_slice())
        else {
            return None;
        };
        // As many digits as there are, to the left of as many zeros as make three.
        let millis = number(format!("{fraction:0<3}").get(..3)?)?;
        let seconds = days(*year, *month, *day)? * 86_400 + hour * 3600 + minute * 60 + second;
        Some(Self(seconds * 1000 + millis))
    }
}

/// The inverse of [`civil`] (Hinnant's `days_from_civil`); None before 1970.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.min(9999).checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted = (month + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic
/// Gregorian calendar (Howard Hinnant's `civil_from_days`: years begin in March, so
/// that the leap day is the last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_date_does() {
        // Checked with `date -u -d @N +%FT%T`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_767_225_600, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(seconds * 1000).to_string(), text);
        }
        for millis in [0, 951_782_399_001, 951_782_400_250, 1_709_251_199_999, 4_107_542_400_000] {
            assert_eq!(Timestamp::parse(&Timestamp(millis).to_string()), Some(Timestamp(millis)));
        }
        for bad in ["", "2026-01-01", "2026-13-01T00:00:00Z", "1960-01-01T00:00:00Z", "T:Z"] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
        assert_eq!(Timestamp(1_250).to_string(), "1970-01-01T00:00:01.250Z");
        assert!(!Timestamp(u64::MAX).to_string().is_empty());
    }
}
