//! The size of a terminal, and its raw mode.

use std::io;
use std::os::fd::AsFd;

use rustix::termios::{self, Action, OptionalActions, QueueSelector, Termios};

/// Width and height of a terminal in characters (ioctl_tty(2), TIOCGWINSZ); None if it is not a
/// terminal, or does not know its size.
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// The modes of a terminal, for [`restore`].
#[derive(Debug, Clone)]
pub struct Modes(Termios);

/// Delivers every key at once and unchanged, including those that would be signals, and neither
/// echoes input nor changes output (termios(3), cfmakeraw). Returns the previous modes for
/// [`restore`].
///
/// # Errors
/// Errors from tcgetattr(3) and tcsetattr(3): `ENOTTY` if it is not a terminal, `EIO` for one that
/// is gone.
pub fn raw(terminal: impl AsFd) -> io::Result<Modes> {
    let before = termios::tcgetattr(&terminal)?;
    let mut modes = before.clone();
    modes.make_raw();
    termios::tcsetattr(&terminal, OptionalActions::Now, &modes)?;
    Ok(Modes(before))
}

/// Restores the modes of a terminal. Discards unread keys: they were meant for the program that
/// ends, not for the shell. Does not wait for unread output.
///
/// # Errors
/// As [`raw`].
pub fn restore(terminal: impl AsFd, modes: &Modes) -> io::Result<()> {
    termios::tcflush(&terminal, QueueSelector::IFlush)?;
    Ok(termios::tcsetattr(&terminal, OptionalActions::Now, &modes.0)?)
}

/// Discards unread output, and resumes output stopped by Ctrl-S: a write(2) that waits for a
/// hanging window returns.
///
/// # Errors
/// Errors from tcflow(3) and tcflush(3), as [`raw`].
pub fn discard_output(terminal: impl AsFd) -> io::Result<()> {
    termios::tcflow(&terminal, Action::OOn)?;
    Ok(termios::tcflush(&terminal, QueueSelector::OFlush)?)
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::unistd::{read, write};

    use super::*;

    #[test]
    fn what_is_no_terminal_has_no_size_and_no_modes() {
        let file = std::fs::File::open("/dev/null").expect("file");
        assert_eq!(size(&file), None);
        assert_eq!(raw(&file).expect_err("no terminal").raw_os_error(), Some(25));
    }

    #[test]
    fn keys_come_at_once_until_the_terminal_is_as_it_was() {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let local = |terminal: &std::os::fd::OwnedFd| {
            let modes = termios::tcgetattr(terminal).expect("its modes");
            modes.local_modes.contains(termios::LocalModes::ICANON | termios::LocalModes::ECHO)
        };
        assert!(local(&pty.slave));
        let before = raw(&pty.slave).expect("raw");
        assert!(!local(&pty.slave));
        write(&pty.master, b"\x03").expect("a key");
        let mut key = [0; 8];
        assert_eq!(read(&pty.slave, &mut key), Ok(1));
        assert_eq!(key[0], 3);
        restore(&pty.slave, &before).expect("as it was");
        assert!(local(&pty.slave));
    }

    #[test]
    fn output_that_nobody_reads_can_be_thrown_away() {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        raw(&pty.slave).expect("raw");
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&pty.slave, flags).expect("non-blocking");
        let fill = || while write(&pty.slave, &[b'x'; 4096]).is_ok() {};
        fill();
        discard_output(&pty.slave).expect("room");
        assert!(write(&pty.slave, b"y").is_ok());
    }
}
