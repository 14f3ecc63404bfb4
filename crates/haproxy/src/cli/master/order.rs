//! Commands for the master itself.

use super::input::words;
use super::{GUARDED, MODES};
use crate::cli::{Level, Version};

/// A command for the master itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// `reload`, or `hard-reload`.
    Reload {
        /// Whether older generations end at once.
        hard: bool,
    },
    /// `show proc`.
    Processes {
        /// Whether to show more columns.
        debug: bool,
    },
    /// `show startup-logs`.
    StartupLogs,
    /// `show version`.
    Version,
    /// `show env`, of one variable or of all.
    Environment(Option<String>),
    /// A command with a fixed answer.
    Say(String),
    /// `help`, with its words.
    Help(Vec<String>),
    /// An unknown command, with its words.
    Unknown(Vec<String>),
}

/// The answer to a command that needs a higher level.
pub fn denied() -> Order {
    Order::Say("Permission denied\n".to_owned())
}

impl Order {
    /// Reads a command, from a client of this level.
    pub fn read(command: &[u8], level: Level, version: Version) -> Self {
        let owned: Vec<String> = words(command).iter().map(|(_, word)| unescaped(word)).collect();
        let words: Vec<&str> = owned.iter().map(String::as_str).collect();
        // Commands that callers of a newer version need are accepted in every version.
        let shows = if version >= GUARDED { Level::Operator } else { Level::User };
        let guarded = |needed, order| if level < needed { denied() } else { order };
        match words.as_slice() {
            [] if version >= super::TIMED => Self::Say(String::new()),
            ["reload", ..] => guarded(Level::Operator, Self::Reload { hard: false }),
            ["hard-reload", ..] => guarded(Level::Operator, Self::Reload { hard: true }),
            ["show", "proc", rest @ ..] => match rest.first() {
                Some(&"debug") => guarded(shows, Self::Processes { debug: true }),
                Some(_) if version >= MODES => {
                    let text = "'show proc' only supports 'debug' as argument\n".to_owned();
                    guarded(shows, Self::Say(text))
                }
                _ => guarded(shows, Self::Processes { debug: false }),
            },
            ["show", "startup-logs", ..] => guarded(Level::Operator, Self::StartupLogs),
            ["show", "version", ..] => Self::Version,
            ["show", "cli", "sockets", ..] => Self::Say(String::new()),
            ["show", "cli", "level", ..] => Self::Say(format!("{level}\n")),
            ["show", "env", rest @ ..] if version >= MODES => {
                let name = rest.first().map(|name| (*name).to_owned());
                guarded(Level::Operator, Self::Environment(name))
            }
            ["echo", text @ ..] if version >= MODES => Self::Say(text.join(" ") + "\n"),
            ["help", rest @ ..] => Self::Help(rest.iter().map(|word| (*word).to_owned()).collect()),
            _ => Self::Unknown(owned),
        }
    }
}

/// A word without the backslashes that escape its bytes.
fn unescaped(word: &[u8]) -> String {
    let mut out = Vec::with_capacity(word.len());
    let mut bytes = word.iter();
    while let Some(&byte) = bytes.next() {
        out.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
    }
    String::from_utf8_lossy(&out).into_owned()
}
