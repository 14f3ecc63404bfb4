//! What happened to every connection, and whether any answer came from a
//! generation that had already been replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Latency;

/// Failures that are told one by one; all are counted.
const SAMPLES: usize = 20;

/// How a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Refused,
    Reset,
    TimedOut,
    Truncated,
    BadStatus,
    Local,
    Other,
}

/// When a good answer was asked for and when its last byte came, since the start of the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    pub(crate) connect: Duration,
}

/// One client's count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ok: u64,
    failed: [u64; 7],
    connect: Latency,
    answer: Latency,
    samples: Vec<Failure>,
    /// For each token its answers as (begun, ended); bounded by the length of the load.
    tokens: BTreeMap<String, Vec<(Duration, Duration)>>,
}

impl Tally {
    pub(crate) fn answer(&mut self, answer: Answer, token: Option<String>) {
        self.ok += 1;
        self.connect.add(answer.connect);
        self.answer.add(answer.ended.saturating_sub(answer.begun));
        if let Some(token) = token {
            self.tokens.entry(token).or_default().push((answer.begun, answer.ended));
        }
    }

    pub(crate) fn failure(&mut self, kind: Kind, begun: Duration, took: Duration, text: String) {
        self.failed[kind as usize] += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(Failure { begun, took, text });
        }
    }
}

/// One failed connection.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was begun, since the start of the load.
    pub begun: Duration,
    /// How long it took to fail.
    pub took: Duration,
    /// What failed.
    pub text: String,
}

/// The answers that carried one token.
#[derive(Debug, Clone)]
pub struct TokenCount {
    /// The token.
    pub token: String,
    /// How many answers carried it.
    pub answers: u64,
    /// When the first of them was complete, since the start of the load.
    pub first: Duration,
    /// When the last of them was complete.
    pub last: Duration,
    /// When the latest connection that got one of them was begun.
    pub last_begun: Duration,
}

/// What happened to every connection of a load.
#[derive(Debug, Clone)]
pub struct Report {
    /// Connections begun.
    pub connections: u64,
    /// Complete answers with status 200.
    pub ok: u64,
    /// ECONNREFUSED.
    pub refused: u64,
    /// ECONNRESET, EPIPE or ECONNABORTED.
    pub reset: u64,
    /// No complete answer in time.
    pub timed_out: u64,
    /// Closed before the answer was complete.
    pub truncated: u64,
    /// A complete answer with another status than 200.
    pub bad_status: u64,
    /// What the client's own system refused (no port, no descriptor); says nothing of the server.
    pub local: u64,
    /// Anything else.
    pub other: u64,
    /// How long the load ran.
    pub elapsed: Duration,
    /// From connect() to the established connection.
    pub connect: Latency,
    /// From before the socket was made to the last byte.
    pub answer: Latency,
    /// Tokens in order: by number when all are numbers, else by first answer.
    pub tokens: Vec<TokenCount>,
    /// Answers of an older token to connections begun after a newer token had answered.
    /// One is a client that reached a replaced generation.
    pub stale: u64,
    /// Answers of an older token that came after the first of a newer one, to
    /// connections begun before it: requests in progress while the generation drained.
    pub draining: u64,
    /// The first failures, in order of time.
    pub samples: Vec<Failure>,
}

impl Report {
    pub(crate) fn from_tallies(tallies: Vec<Tally>, elapsed: Duration) -> Self {
        let mut sum = Tally::default();
        for tally in tallies {
            sum.ok += tally.ok;
            sum.failed.iter_mut().zip(tally.failed).for_each(|(sum, count)| *sum += count);
            sum.connect.merge(&tally.connect);
            sum.answer.merge(&tally.answer);
            sum.samples.extend(tally.samples);
            for (token, answers) in tally.tokens {
                sum.tokens.entry(token).or_default().extend(answers);
            }
        }
        sum.samples.sort_by_key(|failure| failure.begun);
        sum.samples.truncate(SAMPLES);
        let (tokens, stale, draining) = order(sum.tokens);
        let count = |kind: Kind| sum.failed[kind as usize];
        Self {
            connections: sum.ok + sum.failed.iter().sum::<u64>(),
            ok: sum.ok,
            refused: count(Kind::Refused),
            reset: count(Kind::Reset),
            timed_out: count(Kind::TimedOut),
            truncated: count(Kind::Truncated),
            bad_status: count(Kind::BadStatus),
            local: count(Kind::Local),
            other: count(Kind::Other),
            elapsed,
            connect: sum.connect,
            answer: sum.answer,
            tokens,
            stale,
            draining,
            samples: sum.samples,
        }
    }

    /// Connections that failed on the way to or in the server.
    pub fn failed(&self) -> u64 {
        self.connections - self.ok - self.local
    }

    /// Connections per second.
    pub fn rate(&self) -> f64 {
        self.connections as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// The report as JSON: counts, milliseconds, and a list of tokens.
    pub fn to_json(&self) -> Value {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let latency = |latency: &Latency| {
            json!({
                "p50_ms": ms(latency.percentile(50.0)),
                "p99_ms": ms(latency.percentile(99.0)),
                "max_ms": ms(latency.max()),
            })
        };
        json!({
            "connections": self.connections,
            "ok": self.ok,
            "failed": self.failed(),
            "refused": self.refused,
            "reset": self.reset,
            "timed_out": self.timed_out,
            "truncated": self.truncated,
            "bad_status": self.bad_status,
            "other": self.other,
            "local": self.local,
            "seconds": self.elapsed.as_secs_f64(),
            "per_second": self.rate(),
            "connect": latency(&self.connect),
            "answer": latency(&self.answer),
            "stale": self.stale,
            "draining": self.draining,
            "tokens": self.tokens.iter().map(|count| json!({
                "token": count.token,
                "answers": count.answers,
                "first_ms": ms(count.first),
                "last_ms": ms(count.last),
            })).collect::<Vec<_>>(),
            "samples": self.samples.iter().map(|failure| json!({
                "at_ms": ms(failure.begun),
                "took_ms": ms(failure.took),
                "text": failure.text,
            })).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections in {:.1} s ({:.0} per second): {} ok, {} failed ({} refused, {} reset, \
             {} timed out, {} cut short, {} wrong status, {} other); {} not made for want of a local resource",
            self.connections,
            self.elapsed.as_secs_f64(),
            self.rate(),
            self.ok,
            self.failed(),
            self.refused,
            self.reset,
            self.timed_out,
            self.truncated,
            self.bad_status,
            self.other,
            self.local,
        )?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        for (what, latency) in [("connect", &self.connect), ("answer", &self.answer)] {
            writeln!(
                f,
                "{what}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                ms(latency.percentile(50.0)),
                ms(latency.percentile(99.0)),
                ms(latency.max())
            )?;
        }
        if !self.tokens.is_empty() {
            writeln!(
                f,
                "{} generations answered; answers of an older one to a connection begun after a newer had \
                 answered: {}; requests in progress at a handover: {}",
                self.tokens.len(),
                self.stale,
                self.draining
            )?;
        }
        for failure in &self.samples {
            writeln!(
                f,
                "  failed at {:.1} ms after {:.1} ms: {}",
                ms(failure.begun),
                ms(failure.took),
                failure.text
            )?;
        }
        Ok(())
    }
}

/// Orders the tokens and counts what came from an older one too late.
fn order(tokens: BTreeMap<String, Vec<(Duration, Duration)>>) -> (Vec<TokenCount>, u64, u64) {
    let numbers = tokens.keys().all(|token| token.parse::<u64>().is_ok());
    let mut ordered: Vec<_> = tokens.into_iter().collect();
    let first = |answers: &[(Duration, Duration)]| answers.iter().map(|answer| answer.1).min();
    if numbers {
        ordered.sort_by_key(|(token, _)| token.parse::<u64>().ok());
    } else {
        ordered.sort_by_key(|(_, answers)| first(answers));
    }
    let (mut stale, mut draining) = (0, 0);
    let mut counts = Vec::with_capacity(ordered.len());
    // From the newest to the oldest: when the first answer of any newer one was complete.
    let mut newer = Duration::MAX;
    for (token, answers) in ordered.into_iter().rev() {
        for (begun, ended) in &answers {
            if *begun > newer {
                stale += 1;
            } else if *ended > newer {
                draining += 1;
            }
        }
        let first = first(&answers).unwrap_or_default();
        let last = answers.iter().map(|answer| answer.1).max().unwrap_or_default();
        newer = newer.min(first);
        let last_begun = answers.iter().map(|answer| answer.0).max().unwrap_or_default();
        counts.push(TokenCount { token, answers: answers.len() as u64, first, last, last_begun });
    }
    counts.reverse();
    (counts, stale, draining)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begun: u64, ended: u64) -> (Duration, Duration) {
        (Duration::from_millis(begun), Duration::from_millis(ended))
    }

    #[test]
    fn an_older_answer_after_a_newer_one_is_stale_only_if_begun_after_it() {
        let tokens = BTreeMap::from([
            ("9".to_owned(), vec![at(0, 1), at(5, 11), at(11, 12)]),
            ("10".to_owned(), vec![at(8, 10), at(11, 12)]),
        ]);
        let (counts, stale, draining) = order(tokens);
        assert_eq!(
            counts.iter().map(|count| count.token.as_str()).collect::<Vec<_>>(),
            ["9", "10"]
        );
        assert_eq!((stale, draining), (1, 1));
    }

    #[test]
    fn tokens_that_are_not_numbers_are_ordered_by_their_first_answer() {
        let tokens =
            BTreeMap::from([("b".to_owned(), vec![at(0, 1)]), ("a".to_owned(), vec![at(2, 3)])]);
        assert_eq!(order(tokens).0[0].token, "b");
    }
}
