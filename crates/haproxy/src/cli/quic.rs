//! The HTTP/3 connections of a process, from `show quic` (management guide, 2.8 and later).

/// The state of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quic {
    /// There are none, or haproxy has no QUIC.
    None,
    /// At least one is in its handshake.
    Handshake,
    /// Each is open or closing.
    Open,
}

impl Quic {
    /// Reads one line for each connection: `0x7f7e2ff03c00[00]/web   HDSHK   1499   3 ...`.
    pub fn read(show_quic: &str) -> Self {
        let mut found = Self::None;
        for line in show_quic.lines().filter(|line| line.starts_with("0x")) {
            if line.split_whitespace().nth(1) == Some("HDSHK") {
                return Self::Handshake;
            }
            found = Self::Open;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_show_quic_prints() {
        let head = "# conn/frontend                     state   in_flight infl_p lost_p         \
                    Local Address           Foreign Address      local & remote CIDs\n";
        let line = |state: &str| {
            format!(
                "0x7f7e2ff03c00[00]/web              {state:8}     1499      3      0         \
                 127.0.0.1:8080          127.0.0.1:53854 80ed02dbcf29696d 26c69849dc52e8ac\n"
            )
        };
        assert_eq!(Quic::read(head), Quic::None);
        assert_eq!(Quic::read("Unknown command: 'show quic', but maybe one of ..."), Quic::None);
        assert_eq!(Quic::read(&format!("{head}{}", line("ESTAB"))), Quic::Open);
        assert_eq!(Quic::read(&format!("{head}{}", line("CLOSE"))), Quic::Open);
        let both = format!("{head}{}{}", line("ESTAB"), line("HDSHK"));
        assert_eq!(Quic::read(&both), Quic::Handshake);
    }
}
