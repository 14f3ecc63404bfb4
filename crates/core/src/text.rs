//! Makes text from outside safe to show.
//!
//! A command line, a process name, a path or a client's request may hold line ends that make one
//! log line look like two, and escape sequences that a terminal obeys. Text that is shown to a
//! person goes through [`printable`].

use std::borrow::Cow;
use std::fmt;

/// The most characters of such a text that a message quotes.
const QUOTED: usize = 120;

/// The beginning of a text, for a message: a request cannot produce a message as long as itself.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// `1 connection`, `2 connections`, `3 addresses`.
pub fn count<N: Copy + fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    match noun {
        _ if number == N::from(1) => format!("1 {noun}"),
        _ if noun.ends_with('s') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

/// The text on one line; characters that do not print as themselves become `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    printable_but(text, &[])
}

/// The same for a text of several lines: line feeds stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    printable_but(text, &['\n'])
}

/// The same, except that the characters in `stay` stay.
pub fn printable_but<'a>(text: &'a str, stay: &[char]) -> Cow<'a, str> {
    let unfit = |c: char| is_obeyed(c) && !stay.contains(&c);
    let Some(first) = text.find(unfit) else { return Cow::Borrowed(text) };
    let (before, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(before);
    for c in rest.chars() {
        if unfit(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal acts on the character instead of showing it: control characters, line and
/// paragraph separators, and marks that change the direction of text.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noun_agrees_with_its_number() {
        let counts = [count(1_u64, "address"), count(2_u64, "address"), count(0_usize, "listener")];
        assert_eq!(counts, ["1 address", "2 addresses", "0 listeners"]);
    }

    #[test]
    fn nothing_that_is_shown_moves_the_cursor() {
        for (text, shown) in [
            ("nginx: worker", "nginx: worker"),
            ("", ""),
            ("größe ✓", "größe ✓"),
            ("\x1b]0;OWNED\x07\x1b[2J\r\nok", "\\u{1b}]0;OWNED\\u{7}\\u{1b}[2J\\r\\nok"),
            ("a\tb\x7f", "a\\tb\\u{7f}"),
            // The one-character form of ESC [, and a right-to-left override.
            ("\u{9b}2J", "\\u{9b}2J"),
            ("a\u{202e}b\u{2028}", "a\\u{202e}b\\u{2028}"),
        ] {
            assert_eq!(printable(text), shown);
            assert!(!printable(text).contains(char::is_control));
        }
        assert_eq!(printable_lines("a\nb\x1b\r\n"), "a\nb\\u{1b}\\r\n");
    }
}
