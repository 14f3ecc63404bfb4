//! Numbers and times for narrow columns.

use std::time::Duration;

use bindonce_core::duration;
use bindonce_core::time::Timestamp;

/// The time of day, in UTC.
pub(super) fn clock(time: Timestamp) -> String {
    time.to_string().get(11..19).unwrap_or_default().to_owned()
}

/// The time since then.
pub(super) fn since(then: Timestamp, now: Timestamp) -> String {
    duration::format(Duration::from_secs(now.0.saturating_sub(then.0) / 1000)).replace("0ms", "0s")
}

/// Bytes, in five characters.
pub(super) fn bytes(count: u64) -> String {
    let mebibytes = count as f64 / 1_048_576.0;
    match mebibytes {
        below if below < 100.0 => format!("{below:.1}M"),
        below if below < 10_000.0 => format!("{below:.0}M"),
        above => format!("{:.0}G", above / 1024.0),
    }
}

/// A line in parts of at most `width` characters, split between words where possible.
pub(super) fn wrapped(line: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut parts = Vec::new();
    let mut rest: Vec<char> = line.trim_end().chars().collect();
    while rest.len() > width {
        let space = rest[..=width].iter().rposition(|character| *character == ' ');
        let end = space.filter(|end| *end > 0).unwrap_or(width);
        let after = rest.split_off(end);
        parts.push(rest.into_iter().collect());
        rest = after.into_iter().skip(usize::from(space == Some(end))).collect();
    }
    parts.push(rest.into_iter().collect());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parted_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible, no", 10), ["incomprehe", "nsible, no"]);
        assert_eq!(wrapped("  two", 3), [" ", "two"]);
        assert_eq!(wrapped("ab", 0), ["a", "b"]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(12 << 20), "12.0M");
        assert_eq!(bytes(1 << 40), "1024G");
        assert_eq!(clock(Timestamp(1_767_225_600_250)), "00:00:00");
        assert_eq!(since(Timestamp(5), Timestamp(900)), "0s");
    }
}
