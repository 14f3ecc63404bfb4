//! Formats times, sizes, numbers and lists for people.

use std::time::Duration;

use bindonce_core::time::Timestamp;

/// The time of day in UTC, with the date if it is not today: `09:14`, `2026-03-01 09:14`.
pub(super) fn clock(now: Timestamp, time: Timestamp) -> String {
    let (now, text) = (now.to_string(), time.to_string());
    match (now.split_once('T'), text.split_once('T')) {
        (Some((today, _)), Some((day, time))) => {
            let time = time.get(..5).unwrap_or(time);
            if today == day { time.to_owned() } else { format!("{day} {time}") }
        }
        _ => text,
    }
}

/// A duration: `40 ms`, `3 s`, `12 min`, `5 h`, `3 days`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Bytes: `812 KiB`, `34 MiB`.
pub(super) fn bytes(count: u64) -> String {
    if count < 1 << 20 { format!("{} KiB", count >> 10) } else { format!("{} MiB", count >> 20) }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn join(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// The ending of a verb: `1 waits`, `2 wait`.
pub(super) fn s(number: u64) -> &'static str {
    if number == 1 { "s" } else { "" }
}

/// Pids for a command line.
pub(super) fn pids(list: &[i32]) -> String {
    list.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_people_write() {
        let at = Timestamp(1_767_225_600_000);
        assert_eq!(clock(Timestamp(at.0 + 60_000), at), "00:00");
        assert_eq!(clock(Timestamp(at.0 + 60_000), Timestamp(at.0 - 60_000)), "2025-12-31 23:59");
        let spans: Vec<_> =
            [0, 59, 600, 8000, 200_000].map(|s| span(Duration::from_secs(s))).into_iter().collect();
        assert_eq!(spans, ["0 ms", "59 s", "10 min", "2 h", "2 days"]);
        assert_eq!(join(&["a".to_owned(), "b".to_owned(), "c".to_owned()]), "a, b and c");
        assert_eq!((bytes(900_000), bytes(40 << 20)), ("878 KiB".to_owned(), "40 MiB".to_owned()));
    }
}
