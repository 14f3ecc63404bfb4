//! The terminal: taken over while this runs, given back as it was at every end, and painted on.
//!
//! The other screen of the terminal is used, so what was there before is there afterwards. Control
//! sequences are those of ECMA-48 and the few of xterm's that every terminal of today knows.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use bindonce_sys::terminal::{self, Modes};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};

/// The other screen, marks around what is pasted, no cursor, nothing on it.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?2004h\x1b[?25l\x1b[m\x1b[H\x1b[2J";
const LEAVE: &[u8] = b"\x1b[m\x1b[?25h\x1b[?2004l\x1b[?1049l";
/// What a terminal that does not tell its size is taken for.
const SIZE: (u16, u16) = (80, 24);

/// Whether the terminal is taken over, and how it was before.
#[derive(Debug, Default)]
pub(super) struct Screen(Mutex<Option<Modes>>);

impl Screen {
    /// Takes the terminal over, also once more when somebody else has set it since.
    ///
    /// # Errors
    /// It is none, or it is gone.
    pub(super) fn enter(&self) -> io::Result<()> {
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let modes = terminal::raw(io::stdin())?;
        before.get_or_insert(modes);
        write(ENTER)
    }

    /// Gives it back, if it was taken. One that is gone needs nothing.
    pub(super) fn leave(&self) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(modes) = before {
            let _ = write(LEAVE);
            let _ = terminal::restore(io::stdin(), &modes);
        }
    }
}

/// Writes to the terminal past the buffer of standard output, so that it can be done from a panic.
fn write(mut bytes: &[u8]) -> io::Result<()> {
    let out = io::stdout();
    while !bytes.is_empty() {
        match nix::unistd::write(&out, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Whoever shares the terminal has made it non-blocking.
            Err(Errno::EAGAIN) => {
                let mut writable = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                poll(&mut writable, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What ratatui paints with: cells that have changed become text and control sequences, written in
/// one piece.
#[derive(Debug)]
pub(super) struct Painter {
    colours: bool,
    out: Vec<u8>,
}

impl Painter {
    pub(super) fn new(colours: bool) -> Self {
        Self { colours, out: Vec::new() }
    }

    /// Select Graphic Rendition, from nothing.
    fn style(&mut self, cell: &Cell) -> io::Result<()> {
        self.out.extend(b"\x1b[0");
        for (modifier, code) in [(Modifier::BOLD, 1), (Modifier::DIM, 2), (Modifier::REVERSED, 7)] {
            if cell.modifier.contains(modifier) {
                write!(self.out, ";{code}")?;
            }
        }
        let colour = match cell.fg {
            Color::Red => Some(31),
            Color::Green => Some(32),
            Color::Yellow => Some(33),
            // No other is used.
            _ => None,
        };
        if let Some(code) = colour.filter(|_| self.colours) {
            write!(self.out, ";{code}")?;
        }
        self.out.push(b'm');
        Ok(())
    }
}

impl Backend for Painter {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut last: Option<(u16, u16, &Cell)> = None;
        for (x, y, cell) in content {
            let behind = last.is_some_and(|(at, line, before)| {
                // One that is wider has moved the cursor further.
                line == y && at + 1 == x && before.symbol().is_ascii()
            });
            if !behind {
                write!(self.out, "\x1b[{};{}H", u32::from(y) + 1, u32::from(x) + 1)?;
            }
            let same = last.is_some_and(|(_, _, before)| {
                before.fg == cell.fg && before.modifier == cell.modifier
            });
            if !same {
                self.style(cell)?;
            }
            self.out.extend(cell.symbol().as_bytes());
            last = Some((x, y, cell));
        }
        if last.is_some() {
            self.out.extend(b"\x1b[m");
        }
        Ok(())
    }

    /// It is hidden all the time.
    fn hide_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Nobody looks at where it is.
    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, _: P) -> io::Result<()> {
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.out.extend(b"\x1b[m\x1b[2J");
        Ok(())
    }

    fn clear_region(&mut self, _: ClearType) -> io::Result<()> {
        // Of a whole screen, nothing but all of it is ever cleared.
        self.clear()
    }

    fn size(&self) -> io::Result<Size> {
        Ok(terminal::size(io::stdout()).unwrap_or(SIZE).into())
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::default() })
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = write(&self.out);
        self.out.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use ratatui_core::buffer::Buffer;
    use ratatui_core::layout::Rect;
    use ratatui_core::style::Style;

    use super::*;

    fn painted(colours: bool, text: &str, style: Style) -> String {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 20, 2));
        buffer.set_string(1, 1, text, style);
        let blank = Buffer::empty(buffer.area);
        let mut painter = Painter::new(colours);
        painter.draw(blank.diff(&buffer).into_iter()).expect("bytes");
        String::from_utf8(painter.out).expect("text")
    }

    #[test]
    fn what_has_changed_becomes_text_where_it_is() {
        let style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        assert_eq!(painted(true, "ab", style), "\x1b[2;2H\x1b[0;1;31mab\x1b[m");
        assert_eq!(painted(false, "ab", style), "\x1b[2;2H\x1b[0;1mab\x1b[m");
        assert_eq!(painted(true, "", style), "");
        // What follows something wide is put where it belongs, whatever the terminal takes it for.
        assert_eq!(
            painted(true, "\u{6f22}b", Style::new()),
            "\x1b[2;2H\x1b[0m\u{6f22}\x1b[2;4Hb\x1b[m"
        );
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let hostile = "a\x1b[2Jb\x07\r\n\u{9b}31m\u{202e}c\0\x7f";
        let painted = painted(true, hostile, Style::new());
        let text = painted.strip_prefix("\x1b[2;2H\x1b[0m").expect("its place");
        let text = text.strip_suffix("\x1b[m").expect("its end");
        assert_eq!(text, "a[2Jb31mc");
    }
}
