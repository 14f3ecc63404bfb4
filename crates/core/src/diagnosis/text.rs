//! Words for people: times, shares, lists of processes.

use std::time::Duration;

use super::facts::{Look, Process};
use crate::time::Timestamp;

/// The time of day in UTC, with the date if that is not today's: `09:14`, `2026-03-01 09:14`.
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

/// A duration as people say it: `40 ms`, `3 s`, `12 min`, `5 h`, `3 days`.
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

/// `pid 953, started 09:14,` for each, joined: at most four in full, because pages have ends.
pub(super) fn processes(look: &Look, list: &[&Process]) -> String {
    const SHOWN: usize = 4;
    let mut words: Vec<String> = list.iter().take(SHOWN).map(|one| process(look, one)).collect();
    if list.len() > SHOWN {
        words.push(format!("{} more", list.len() - SHOWN));
    }
    join(&words)
}

/// `pid 953 (haproxy, started 09:14)`, with its generation where the broker knows it.
pub(super) fn process(look: &Look, process: &Process) -> String {
    let generation = match look.generation(process.pid) {
        Some(known) => format!("{}/{}", known.service, known.id),
        None => process.program.clone(),
    };
    format!("pid {} ({generation}, started {})", process.pid, clock(look.at, process.started))
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn join(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// `1 connection`, `2 connections`.
pub(super) fn count(number: u64, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
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
