//! Finds why a draining generation is still alive: its oldest sessions, from `show sess`. Source:
//! haproxy management guide, "show sess".

use serde::{Deserialize, Serialize};

/// Number of sessions to report.
const TOLD: usize = 3;

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The address of the client.
    pub source: String,
    /// The frontend that accepted it.
    pub frontend: String,
    /// The server that answers it.
    pub server: String,
    /// Age in seconds.
    pub age: u64,
}

/// The oldest sessions of a generation, oldest first.
pub fn oldest_sessions(show_sess: &str) -> Vec<Session> {
    let mut sessions: Vec<_> = show_sess.lines().filter_map(read).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age));
    sessions.truncate(TOLD);
    sessions
}

fn read(line: &str) -> Option<Session> {
    let field = |name: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        word.map(str::to_owned)
    };
    let frontend = field("fe=")?;
    // The connection that asks.
    if frontend == "GLOBAL" {
        return None;
    }
    Some(Session {
        source: field("src=")?,
        frontend,
        server: field("srv=").unwrap_or_default(),
        age: seconds(&field("age=")?),
    })
}

/// Reads `1d2h`, `3m12s`, `45s`.
fn seconds(age: &str) -> u64 {
    let mut total = 0;
    let mut number = 0;
    for c in age.chars() {
        match (c.to_digit(10), c) {
            (Some(digit), _) => number = number * 10 + u64::from(digit),
            (None, unit) => {
                let factor = match unit {
                    'd' => 86400,
                    'h' => 3600,
                    'm' => 60,
                    's' => 1,
                    _ => 0,
                };
                total += number * factor;
                number = 0;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_oldest_and_leaves_our_own_out() {
        let text = "\
0x1: proto=tcpv4 src=127.0.0.1:1 fe=web be=app srv=s1 ts=00 age=12s calls=1
0x2: proto=tcpv4 src=127.0.0.1:2 fe=web be=<NONE> srv=<none> ts=00 age=1h3m calls=1
0x3: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 age=9d calls=1
garbage";
        let found = oldest_sessions(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].source.as_str(), found[0].age), ("127.0.0.1:2", 3780));
        assert_eq!((found[1].server.as_str(), found[1].age), ("s1", 12));
    }
}
