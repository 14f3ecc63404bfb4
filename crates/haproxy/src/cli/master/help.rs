//! `help`, and the answer to an unknown command: the commands that begin with the same words, or
//! the most similar ones.

use super::{MODES, TIMED};
use crate::cli::Version;

/// The reason for showing help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The client asked for it.
    Help,
    /// The command is unknown.
    Unknown,
}

/// A command of the master CLI: its words, its line in the help, and the first version with that
/// line.
struct Known(&'static [&'static str], &'static str, Version);

const ALWAYS: Version = Version { major: 0, minor: 0, patch: 0 };
const LOGS: Version = Version { major: 2, minor: 7, patch: 0 };

/// In haproxy's own order, which decides between equally similar commands.
const COMMANDS: [Known; 15] = [
    Known(&["echo"], "print text to the output", MODES),
    Known(&["show", "env"], "dump environment variables known to the process", MODES),
    Known(&["show", "cli", "sockets"], "dump list of cli sockets", ALWAYS),
    Known(&["show", "cli", "level"], "display the level of the current CLI session", ALWAYS),
    Known(&["show", "version"], "show version of the current process", ALWAYS),
    Known(&["operator"], "lower the level of the current CLI session to operator", ALWAYS),
    Known(&["user"], "lower the level of the current CLI session to user", ALWAYS),
    Known(&["@<relative pid>"], "send a command to the <relative pid> process", ALWAYS),
    Known(&["@!<pid>"], "send a command to the <pid> process", ALWAYS),
    Known(&["@master"], "send a command to the master process", ALWAYS),
    Known(&["show", "proc"], "show processes status", ALWAYS),
    Known(&["reload"], "", ALWAYS),
    Known(&["hard-reload"], "achieve a hard-reload (-st) of haproxy", LOGS),
    Known(&["show", "startup-logs"], "report logs emitted during HAProxy startup", LOGS),
    // Known, but not listed.
    Known(&["help"], "", ALWAYS),
];

/// Number of similar commands to show for an unknown one.
const ALIKE: usize = 5;

impl Known {
    fn line(&self, version: Version) -> Option<String> {
        let Self(words, about, _) = self;
        let (usage, about) = match *words {
            ["help"] => return None,
            ["reload"] if version < LOGS => ("reload".to_owned(), "reload haproxy"),
            ["reload"] => ("reload".to_owned(), "achieve a soft-reload (-sf) of haproxy"),
            ["echo"] => ("echo <text>".to_owned(), *about),
            ["show", "env"] => ("show env [var]".to_owned(), *about),
            words => (words.join(" "), *about),
        };
        Some(format!("  {usage:<40}: {about}\n"))
    }
}

/// The help on a command, in the words of this haproxy version.
pub fn help(wanted: Wanted, words: &[String], version: Version) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|w| !w.is_empty()).collect();
    let known: Vec<&Known> = COMMANDS.iter().filter(|known| known.2 <= version).collect();
    let same = |known: &Known| known.0.iter().zip(&words).take_while(|(a, b)| a == b).count();
    let length = known.iter().map(|known| same(known)).max().unwrap_or_default();
    let mut text = match wanted {
        Wanted::Help => "The following commands are valid at this level:\n".to_owned(),
        Wanted::Unknown => {
            let mut text = "Unknown command".to_owned();
            if version >= LOGS {
                let first = words.first().unwrap_or(&"");
                text.push_str(&format!(": '{first}'"));
            }
            text.push_str(match (length, words.is_empty()) {
                (0, true) => ". Please enter one of the following commands only:\n",
                _ => ", but maybe one of the following ones is a better match:\n",
            });
            text
        }
    };
    let begin_so: Vec<&Known> = known.into_iter().filter(|known| same(known) >= length).collect();
    let alike = words.get(length..).filter(|rest| !rest.is_empty());
    let alike = alike.map(|rest| most_like(&begin_so, length, rest, version)).unwrap_or_default();
    let chosen = if alike.is_empty() { begin_so } else { alike };
    let mut lines: Vec<_> = chosen.iter().filter_map(|known| known.line(version)).collect();
    lines.sort();
    text.extend(lines);
    let prompt = match version {
        version if version >= MODES => "prompt [help | n | i | p | timed ]*",
        version if version >= TIMED => "prompt [timed]",
        _ => "prompt",
    };
    text.push_str("  help [<command>]                        : list matching or all commands\n");
    text.push_str(&format!("  {prompt:<40}: toggle interactive mode with prompt\n"));
    text.push_str("  quit                                    : disconnect\n");
    text
}

/// The commands most similar to these words, compared after the first `length` words.
fn most_like<'a>(
    known: &[&'a Known],
    length: usize,
    rest: &[&str],
    version: Version,
) -> Vec<&'a Known> {
    /// No haproxy command has more words.
    const WORDS: usize = 5;
    let mut found: Vec<(i32, &Known)> = Vec::new();
    for &known in known.iter().filter(|known| known.line(version).is_some()) {
        let rest = &rest[..rest.len().min(WORDS.saturating_sub(length))];
        let theirs = known.0.get(length..).unwrap_or_default();
        let distance = Shape::of(rest).distance(&Shape::of(theirs));
        let bytes: usize = rest.iter().chain(theirs).map(|word| word.len()).sum();
        if distance < 5 * i32::try_from(bytes).unwrap_or(i32::MAX / 5) / 2 {
            found.push((distance, known));
        }
    }
    // A stable sort keeps the order of equally similar commands.
    found.sort_by_key(|(distance, _)| *distance);
    found.truncate(ALIKE);
    let nearest = found.first().map_or(0, |(distance, _)| *distance);
    found.retain(|(distance, _)| *distance <= 5 * nearest / 2);
    found.into_iter().map(|(_, known)| known).collect()
}

/// For each pair of characters, how often the second follows the first in some words, including
/// begin and end of a word. Letters of both cases are equal, and so are all digits, and all other
/// characters.
struct Shape(Box<[u8; 32 * 32]>);

impl Shape {
    fn of(words: &[&str]) -> Self {
        const EDGE: usize = 28;
        let class = |byte: u8| match byte {
            b'a'..=b'z' => usize::from(byte - b'a') + 1,
            b'A'..=b'Z' => usize::from(byte - b'A') + 1,
            b'0'..=b'9' => 27,
            _ => EDGE,
        };
        let mut counts = Box::new([0u8; 32 * 32]);
        for word in words {
            // A row of its own records which characters occur.
            word.bytes().for_each(|byte| counts[class(byte)] = 1);
            let mut from = EDGE;
            for to in word.bytes().map(class).chain([EDGE]) {
                let count = &mut counts[32 * from + to];
                *count = count.wrapping_add(1);
                from = to;
            }
        }
        Self(counts)
    }

    fn distance(&self, other: &Self) -> i32 {
        let each = self.0.iter().zip(other.0.iter());
        each.map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).sum()
    }
}
