//! `show fd`: the descriptors of a haproxy.

/// The descriptor of a line `    7 : st=0x000023(...) ...`, and whether it belongs to a paused
/// listener; None for any other line.
pub fn descriptor(line: &str) -> Option<(usize, bool)> {
    let (number, state) = line.split_once(':')?;
    let number = number.trim().parse().ok()?;
    state.trim_start().starts_with("st=").then(|| (number, state.contains(" l.st=PAU ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_show_fd_prints() {
        let line = "      7 : st=0x000023(cl heopi W:sRa R:sRA) ref=0 iocb=0x56(sock_accept_iocb) l.st=RDY fe=a";
        assert_eq!(descriptor(line), Some((7, false)));
        assert_eq!(descriptor(&line.replace("RDY", "PAU")), Some((7, true)));
        for other in ["", "Unknown command", "  7 : x", "Running: 3", "x : st=1"] {
            assert_eq!(descriptor(other), None, "{other}");
        }
    }
}
