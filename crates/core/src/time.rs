//! Points in time as plain values, because nothing in this crate looks at a clock.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch. Printed as RFC 3339 in UTC, as in
/// `2026-03-01T07:05:09.250Z`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).ok();
        let time = millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
        write!(f, "{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(millis): Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_millis(millis)
    }
}

impl Timestamp {
    /// Reads RFC 3339 with any fraction and offset, truncated to milliseconds. None for any other
    /// text, and for times before 1970.
    pub fn parse(text: &str) -> Option<Self> {
        let time = text.parse::<jiff::Timestamp>().ok()?;
        time.as_millisecond().try_into().ok().map(Self)
    }
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
        for bad in [
            "",
            "2026-01-01",
            "2026-13-01T00:00:00Z",
            "1960-01-01T00:00:00Z",
            "T:Z",
            "2026-02-29T00:00:00Z",
            "2026-x-01-01T00:00:00Z",
            "2026-01-01T+1:00:00Z",
            "2026-01-01T2323:59:59.999Z",
            "2026-01-01T00:00:18446744073709551615Z",
            "99999-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
        assert_eq!(Timestamp(1_250).to_string(), "1970-01-01T00:00:01.250Z");
        assert_eq!(
            Timestamp::parse("2026-01-01T01:00:00+01:00"),
            Some(Timestamp(1_767_225_600_000))
        );
        assert_eq!(Timestamp(u64::MAX).to_string(), "9999-12-30T22:00:00.999Z");
    }
}
