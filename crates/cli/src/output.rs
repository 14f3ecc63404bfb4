//! What the commands write to standard output.

use std::io::{self, Write as _};

use bindonce_core::text::{is_obeyed, printable_lines};
use serde::Serialize;

/// Writes a result to standard output, without anything that a terminal would obey. A reader that
/// has closed it has read enough.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(printable_lines(text).as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// Writes a text that must appear at once.
pub(crate) fn print_now(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a value as JSON of several lines.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(json_printable(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// Writes a value as one line of JSON.
pub(crate) fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(json_printable(&serde_json::to_string(value)?) + "\n"))
}

/// The same JSON value without characters that a terminal obeys. serde_json escapes those below a
/// space; a terminal also obeys some above.
fn json_printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_obeyed(c) {
            out.push(c);
        } else {
            // All of them are in the first plane: one UTF-16 unit.
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::json_printable;

    #[test]
    fn json_for_a_terminal_is_the_same_value() {
        let value = serde_json::json!({"command": "\u{9b}2J\x1b[0m\u{202e}\x7fé\n"});
        let text = json_printable(&serde_json::to_string_pretty(&value).expect("text"));
        assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read, value);
    }
}
