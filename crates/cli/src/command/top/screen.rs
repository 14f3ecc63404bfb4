//! The terminal: taken over while this runs, given back as it was at every end, and painted on.
//!
//! The terminal's alternate screen is used, so its earlier contents are there afterwards. Control
//! sequences are those of ECMA-48 and the few of xterm's that every current terminal knows.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use bindonce_sys::terminal::{self, Modes};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::view::{Canvas, Cell, PLAIN, Style};

/// Alternate screen, marks around pasted text, no cursor, cleared.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?2004h\x1b[?25l\x1b[m\x1b[H\x1b[2J";
const LEAVE: &[u8] = b"\x1b[m\x1b[?25h\x1b[?2004l\x1b[?1049l";
/// The assumed size of a terminal that does not report its size.
const SIZE: (u16, u16) = (80, 24);

/// While the terminal is taken over, its earlier modes.
#[derive(Debug, Default)]
pub(super) struct Screen(Mutex<Option<Modes>>);

impl Screen {
    /// Takes over the terminal, also again after another program has changed it.
    ///
    /// # Errors
    /// There is no terminal, or it is gone.
    pub(super) fn enter(&self) -> io::Result<()> {
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let modes = terminal::raw(io::stdin())?;
        before.get_or_insert(modes);
        write(ENTER)
    }

    /// Gives the terminal back, if it was taken over. A terminal that is gone needs nothing.
    pub(super) fn leave(&self) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(modes) = before {
            let _ = write(LEAVE);
            let _ = terminal::restore(io::stdin(), &modes);
        }
    }
}

/// Writes to the terminal past the buffer of standard output, so that it works during a panic.
fn write(mut bytes: &[u8]) -> io::Result<()> {
    let out = io::stdout();
    while !bytes.is_empty() {
        match nix::unistd::write(&out, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Another program on the terminal has made it non-blocking.
            Err(Errno::EAGAIN) => {
                let mut writable = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                poll(&mut writable, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The size of the terminal in characters.
pub(super) fn size() -> (u16, u16) {
    terminal::size(io::stdout()).unwrap_or(SIZE)
}

/// Paints canvases on the terminal: only the lines that differ from the last one, in one write.
#[derive(Debug)]
pub(super) struct Painter {
    colours: bool,
    /// The lines on the terminal; none if they are not known.
    shown: Vec<String>,
}

impl Painter {
    pub(super) fn new(colours: bool) -> Self {
        Self { colours, shown: Vec::new() }
    }

    /// Makes the next paint draw every line.
    pub(super) fn clear(&mut self) {
        self.shown.clear();
    }

    /// Paints what has changed.
    pub(super) fn paint(&mut self, canvas: &Canvas) -> io::Result<()> {
        write(self.changes(canvas).as_bytes())
    }

    fn changes(&mut self, canvas: &Canvas) -> String {
        let lines: Vec<_> = (1..).zip(canvas.lines()).map(|(y, line)| self.line(y, line)).collect();
        let mut changes = String::new();
        if self.shown.len() != lines.len() {
            changes.push_str("\x1b[m\x1b[2J");
            self.shown.clear();
        }
        for (number, line) in lines.iter().enumerate() {
            if self.shown.get(number) != Some(line) {
                changes.push_str(line);
            }
        }
        self.shown = lines;
        changes
    }

    /// One line as sent to the terminal, from its beginning.
    fn line(&self, y: u32, cells: &[Cell]) -> String {
        let mut line = format!("\x1b[{y};1H");
        let mut style = PLAIN;
        for (x, cell) in (1..).zip(cells) {
            if cell.style != style {
                style = cell.style;
                line.push_str(&self.rendition(style));
            }
            match cell.character {
                Some(character) => line.push(character),
                // Place what follows a wide character explicitly, whatever width the terminal gives
                // that character.
                None => line.push_str(&format!("\x1b[{y};{}H", x + 1)),
            }
        }
        if style != PLAIN {
            line.push_str("\x1b[m");
        }
        line
    }

    /// Select Graphic Rendition, starting from no attributes.
    fn rendition(&self, style: Style) -> String {
        let colour = style.colour.filter(|_| self.colours);
        let codes = [
            style.bold.then_some(1),
            style.dim.then_some(2),
            style.reversed.then_some(7),
            colour.map(|colour| colour as u8),
        ];
        let codes = codes.into_iter().flatten().map(|code| format!(";{code}"));
        format!("\x1b[0{}m", codes.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::top::view::{BAD, UNICODE};

    fn canvas(text: &str, style: Style) -> Canvas {
        let mut canvas = Canvas::new((12, 2), &UNICODE);
        canvas.text(1, 1, 11, text, style);
        canvas
    }

    fn painted(colours: bool, text: &str, style: Style) -> String {
        let mut painter = Painter::new(colours);
        painter.changes(&canvas("", PLAIN));
        painter.changes(&canvas(text, style))
    }

    #[test]
    fn a_line_that_has_changed_is_painted_anew() {
        assert_eq!(painted(true, "ab", BAD), "\x1b[2;1H \x1b[0;1;31mab\x1b[0m         ");
        assert_eq!(painted(false, "ab", BAD), "\x1b[2;1H \x1b[0;1mab\x1b[0m         ");
        assert_eq!(painted(true, "", BAD), "");
        assert_eq!(painted(true, "\u{6f22}b", PLAIN), "\x1b[2;1H \u{6f22}\x1b[2;4Hb        ");
    }

    #[test]
    fn all_is_painted_at_first_after_another_height_and_when_asked() {
        let mut painter = Painter::new(true);
        let two = canvas("ab", PLAIN);
        let whole = painter.changes(&two);
        assert_eq!(whole, "\x1b[m\x1b[2J\x1b[1;1H            \x1b[2;1H ab         ");
        assert_eq!(painter.changes(&two), "");
        painter.changes(&Canvas::new((12, 3), &UNICODE));
        assert_eq!(painter.changes(&two), whole);
        painter.clear();
        assert_eq!(painter.changes(&two), whole);
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let hostile = "a\x1b[2Jb\x07\r\n\u{9b}31m\u{202e}c\0\x7f";
        assert_eq!(painted(true, hostile, PLAIN), "\x1b[2;1H a[2Jb31mc  ");
    }
}
