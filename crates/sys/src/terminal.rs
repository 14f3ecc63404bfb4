//! What a terminal is like.

use std::os::fd::AsFd;

/// Its width and height in characters (ioctl_tty(2), TIOCGWINSZ); none for anything that is no
/// terminal, or that does not know.
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_terminal_has_no_size() {
        let file = std::fs::File::open("/dev/null").expect("file");
        assert_eq!(super::size(file), None);
    }
}
