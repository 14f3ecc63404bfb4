//! Decodes keys from the bytes that a terminal sends (ECMA-48 and xterm's control sequences).
//!
//! A sequence that is no known key is skipped as a whole, however it is split over reads. So is
//! pasted text: a word that was meant for another window must not end a generation.

/// A key that has a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A printable character of ASCII, or a control character other than those below.
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    BackTab,
    Enter,
    Escape,
    /// With Control.
    Control(char),
}

/// Decodes keys from a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// Whether the input is between the marks of xterm's bracketed paste.
    pasting: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Ground,
    /// After ESC.
    Escape,
    /// After ESC O (SS3).
    Single,
    /// After ESC [ (CSI), with the first number.
    Sequence(Option<u16>),
    /// In a further parameter, or in one that is not a number.
    Rest(Option<u16>),
}

impl Decoder {
    /// Whether more bytes must come at once; if none do, the input was the key Escape.
    pub(super) fn is_waiting(&self) -> bool {
        !matches!(self.state, State::Ground)
    }

    /// Notes that no more bytes have come.
    pub(super) fn timed_out(&mut self) -> Option<Key> {
        let escape = matches!(std::mem::take(&mut self.state), State::Escape);
        (escape && !self.pasting).then_some(Key::Escape)
    }

    /// Takes the next byte, and returns the key that it completes.
    pub(super) fn byte(&mut self, byte: u8) -> Option<Key> {
        let key = self.step(byte)?;
        (!self.pasting).then_some(key)
    }

    fn step(&mut self, byte: u8) -> Option<Key> {
        let state = std::mem::take(&mut self.state);
        match (state, byte) {
            // Ends whatever was begun; an Escape before it was a key.
            (before, 0x1b) => {
                self.state = State::Escape;
                return matches!(before, State::Escape).then_some(Key::Escape);
            }
            (State::Ground, byte) => return plain(byte),
            (State::Escape, b'[') => self.state = State::Sequence(None),
            (State::Escape, b'O') => self.state = State::Single,
            // A key with Alt, which means nothing here.
            (State::Escape, _) => {}
            (State::Single, byte) => return named(byte),
            (State::Sequence(number), digit @ b'0'..=b'9') => {
                let number = number.unwrap_or(0).saturating_mul(10);
                self.state = State::Sequence(Some(number.saturating_add(u16::from(digit - b'0'))));
            }
            (State::Sequence(number) | State::Rest(number), 0x20..=0x3f) => {
                self.state = State::Rest(number);
            }
            (State::Sequence(number) | State::Rest(number), b'~') => return self.numbered(number?),
            (State::Sequence(_) | State::Rest(_), byte) => return named(byte),
        }
        None
    }

    fn numbered(&mut self, number: u16) -> Option<Key> {
        match number {
            1 | 7 => Some(Key::Home),
            4 | 8 => Some(Key::End),
            5 => Some(Key::PageUp),
            6 => Some(Key::PageDown),
            200 | 201 => {
                self.pasting = number == 200;
                None
            }
            _ => None,
        }
    }
}

fn plain(byte: u8) -> Option<Key> {
    match byte {
        b'\t' => Some(Key::Tab),
        b'\r' | b'\n' => Some(Key::Enter),
        1..=26 => Some(Key::Control(char::from(byte - 1 + b'a'))),
        0x20..=0x7e => Some(Key::Char(char::from(byte))),
        _ => None,
    }
}

fn named(byte: u8) -> Option<Key> {
    match byte {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        b'H' => Some(Key::Home),
        b'F' => Some(Key::End),
        b'Z' => Some(Key::BackTab),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        let mut keys: Vec<_> = bytes.iter().filter_map(|byte| decoder.byte(*byte)).collect();
        keys.extend(decoder.timed_out());
        keys
    }

    #[test]
    fn keys_are_read_out_of_bytes() {
        use Key::{
            BackTab, Char, Control, Down, End, Enter, Escape, Home, PageDown, PageUp, Tab, Up,
        };
        assert_eq!(keys(b"rX?"), [Char('r'), Char('X'), Char('?')]);
        assert_eq!(keys(b"\x1b[A\x1b[B\x1bOA\x1bOB"), [Up, Down, Up, Down]);
        assert_eq!(
            keys(b"\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[1;5H"),
            [PageUp, PageDown, Home, End, Home]
        );
        assert_eq!(keys(b"\t\x1b[Z\r\x03\x1a"), [Tab, BackTab, Enter, Control('c'), Control('z')]);
        assert_eq!(keys(b"\x1b"), [Escape]);
        assert_eq!(keys(b"\x1b\x1b[A"), [Escape, Up]);
    }

    #[test]
    fn what_is_no_key_is_passed_over_as_a_whole() {
        // Alt and a letter, a mouse, a report of the terminal, F5, letters beyond ASCII.
        for bytes in [
            &b"\x1bx"[..],
            b"\x1b[<0;3;4M",
            b"\x1b[?1;2c",
            b"\x1b[15~",
            "\u{e4}\u{1f980}".as_bytes(),
        ] {
            assert_eq!(keys(bytes), [], "{bytes:?}");
        }
        assert_eq!(keys(b"\x1b[99999999999999999999~q"), [Key::Char('q')]);
        assert_eq!(keys(b"\x1b[12\x1b[A\x1bO"), [Key::Up]);
        assert_eq!(keys(b"a\x1b[200~xy\rq\x1b[A\x1b[201~b"), [Key::Char('a'), Key::Char('b')]);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut decoder = Decoder::default();
        let mut seed = 1_u32;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            decoder.byte(if seed & 0x300_0000 == 0 { 0x1b } else { (seed >> 16) as u8 });
        }
    }
}
