//! `bindonce list`: every listener that the broker holds.

use std::fmt::Write as _;

use bindonce::{Client, HolderInfo, ListenerInfo, Problem};
use serde_json::Value;

use crate::globals::Globals;
use crate::output;

const HELP: &str = "\
Examples:
  bindonce list
  bindonce list --json | jq -r '.listeners[].bound'

Exit codes:
  0  Printed, even if no listener is held
  1  No broker answers, or it denies the request
  2  Wrong usage";

/// Show every listener that the broker holds
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Print the broker's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the held listeners, as a table or as JSON.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { json } = args;
    let result = Client::connect(&globals.socket_path())?.list()?;
    if json {
        output::print_json(&result)?;
    } else if result.listeners.is_empty() {
        output::print(&format!("no listener is held\n{}", problems(&result.problems)))?;
    } else {
        output::print(&format!("{}{}", table(&result.listeners), problems(&result.problems)))?;
    }
    Ok(())
}

/// Listeners as a table for people.
pub(crate) fn table(listeners: &[ListenerInfo]) -> String {
    let header = ["NAME", "ADDRESS", "OPTIONS", "STATE", "QUEUE", "HELD BY", "SINCE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(listeners.iter().map(row));
    columns(&rows)
}

/// The broker's problems, for printing below a table.
pub(crate) fn problems(problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        // Writing to a String does not fail.
        let _ = write!(text, "\nproblem: {}\n", problem.message);
        if let Some(hint) = &problem.hint {
            let _ = writeln!(text, "  hint: {hint}");
        }
    }
    text
}

fn row(listener: &ListenerInfo) -> [String; 7] {
    let state = match (listener.listening, listener.exclusive) {
        (false, _) => "NOT LISTENING",
        (true, false) => "not exclusive",
        (true, true) if listener.tentative => "tentative",
        (true, true) if listener.backlog.is_none() => "bound",
        (true, true) => "listening",
    }
    .to_owned();
    [
        listener.name.clone(),
        listener.bound.clone(),
        options(listener),
        state + &remarks(listener),
        queue(listener).unwrap_or_else(|| "-".to_owned()),
        holders(&listener.holders),
        seconds(&listener.since),
    ]
}

/// How much waits, and how much may: connections, or kibibytes of a receive buffer.
pub(crate) fn queue(listener: &ListenerInfo) -> Option<String> {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    match (listener.queue, listener.backlog) {
        (None, None) => {
            let (waits, buffer) = (listener.receive_queue?, listener.receive_buffer?);
            Some(format!("{}/{}K", waits.div_ceil(1024), buffer / 1024))
        }
        (queue, limit) => Some(format!("{}/{}", number(queue), number(limit))),
    }
}

/// What processes that share a listener have done to it.
fn remarks(listener: &ListenerInfo) -> String {
    let mut remarks = String::new();
    // Writing to a String does not fail.
    if listener.repaired != 0 {
        let _ = write!(remarks, ", repaired {} times", listener.repaired);
    }
    for change in &listener.changed {
        let _ = write!(remarks, ", {}={} (was {})", change.option, change.now, change.was);
    }
    remarks
}

fn options(listener: &ListenerInfo) -> String {
    let words: Vec<String> = option_words(listener).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}

/// The options of a listener, as a person writes them.
pub(super) fn option_words(listener: &ListenerInfo) -> impl Iterator<Item = String> {
    listener.options.iter().map(|(word, value)| match value {
        Value::Bool(true) => word.clone(),
        Value::String(text) => format!("{word}={text}"),
        other => format!("{word}={other}"),
    })
}

/// The first few holders of a listener.
fn holders(holders: &[HolderInfo]) -> String {
    const SHOWN: usize = 3;
    if holders.is_empty() {
        return "-".to_owned();
    }
    let mut text: Vec<String> = holders.iter().take(SHOWN).map(holder).collect();
    if holders.len() > SHOWN {
        text.push(format!("and {} more", holders.len() - SHOWN));
    }
    text.join(", ")
}

fn holder(holder: &HolderInfo) -> String {
    let mut text = match (&holder.service, holder.generation) {
        (Some(service), Some(generation)) => format!("{service}/{generation} pid {}", holder.pid),
        // The kernel reports no pid for a process of another pid namespace.
        _ if holder.pid == 0 => format!("a process of uid {} in another container", holder.uid),
        _ => format!("pid {}", holder.pid),
    };
    if let Some(state) = holder.state {
        // Writing to a String does not fail.
        let _ = write!(text, " {state}");
    }
    text
}

/// `2026-01-02T03:04:05.678Z` without its fraction.
pub(crate) fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

/// Rows as columns of equal width, two spaces apart.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_holds_what() {
        let json = serde_json::json!({
            "name": "web", "address": "0.0.0.0:0", "bound": "0.0.0.0:4000", "options": {"backlog": 128, "freebind": true},
            "backlog": 128, "queue": 3, "listening": true, "inode": 7, "repaired": 2,
            "changed": [{"option": "TCP_NODELAY", "was": 0, "now": 1}], "since": "2026-01-02T03:04:05.678Z",
            "holders": [{"service": "edge", "generation": 7, "pid": 12, "uid": 0, "state": "serving",
                         "since": "2026-01-02T03:04:05.678Z"},
                        {"pid": 13, "uid": 0, "since": "2026-01-02T03:04:05.678Z"}],
        });
        let listener: ListenerInfo = serde_json::from_value(json).expect("listener");
        let mut other = listener.clone();
        (other.name, other.listening) = ("dns".to_owned(), false);
        (other.holders, other.changed, other.repaired) = Default::default();
        insta::assert_snapshot!("listeners", table(&[listener, other]));
    }

    #[test]
    fn problems_stand_below_the_table() {
        let two = [Some("free some space on /run"), None].map(|hint| {
            let message = "cannot write /run/bindonce.sock.state: ENOSPC: No space left on device";
            Problem::new(
                "state-not-written",
                "/run/bindonce.sock.state",
                message,
                hint.map(str::to_owned),
            )
        });
        insta::assert_snapshot!("problems", problems(&two));
    }
}
