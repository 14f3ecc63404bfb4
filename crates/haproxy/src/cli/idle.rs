//! Finds client connections without a request in progress in `show fd`.
//!
//! `show sess` does not show them: an idle connection has no stream, and so no session to shut
//! down. Source: haproxy's management guide, "show fd"; its sources for the fields of a multiplexer
//! (`h1_show_fd`, `h2_show_fd`).

use super::Version;

/// The commands that ask for these descriptors, one in each line.
pub fn show_fds(numbers: impl IntoIterator<Item = i32>) -> String {
    numbers.into_iter().map(|number| format!("show fd {number}")).collect::<Vec<_>>().join("\n")
}

/// The descriptors of idle client connections in the answer. An idle HTTP/1 connection has answered
/// a request and waits for the next; an idle HTTP/2 connection has no stream. A tunnel, a
/// connection before its first request, and any unknown line are not idle.
pub fn idle_connections(show_fd: &str, version: Version) -> Vec<i32> {
    let lines = show_fd.lines().filter(|line| is_idle(line, version));
    lines.filter_map(|line| line.split_once(" : ")?.0.trim().parse().ok()).collect()
}

fn is_idle(line: &str, version: Version) -> bool {
    let field = |name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)).map(|value| value.trim_end_matches(','))
    };
    let empty = |name: &str| field(name).is_some_and(|value| value.starts_with("0@"));
    let of_client = field("back=") == Some("0") && field("fe=").is_some_and(|fe| fe != "GLOBAL");
    of_client
        && match field("mux=") {
            Some("H1") => {
                let flags = field("h1c.flg=0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let waits = flags.is_some_and(|flags| flags & waits_for_next(version) != 0);
                waits && field("h1s=").is_none() && empty(".ibuf=") && empty(".obuf=")
            }
            Some("H2") => {
                [".nbst=", ".tree_cnt="].iter().all(|name| field(name) == Some("0"))
                    && empty(".dbuf=")
            }
            _ => false,
        }
}

/// The flag of an HTTP/1 connection that has answered a request (`H1C_F_WAIT_NEXT_REQ`).
fn waits_for_next(version: Version) -> u32 {
    if (version.major, version.minor) < (2, 7) { 0x0004_0000 } else { 0x0000_8000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "st=0x000121(cl heopI W:sRa R:srA) ref=0 iocb=0x55a2(sock_conn_iocb)";

    fn idle(version: (u32, u32), rest: &str) -> bool {
        let version = Version { major: version.0, minor: version.1, patch: 0 };
        let found = idle_connections(&format!("     14 : {HEAD} {rest}\n"), version);
        assert!(found.is_empty() || found == [14], "{found:?}");
        !found.is_empty()
    }

    #[test]
    fn http_1_is_idle_behind_an_answer_alone() {
        let h1 =
            "back=0 cflg=0x00000300 cerr=0 fam=ipv4 lport=80 rport=5 fe=f mux=H1 ctx=0x7f h1c.flg=";
        let none = ".sub=1 .ibuf=0@(nil)+0/0 .obuf=0@(nil)+0/0 .task=0x5 .exp=13s xprt=RAW";
        assert!(idle((2, 6), &format!("{h1}0x40400 {none}")));
        assert!(idle((3, 0), &format!("{h1}0x8000 {none}")));
        assert!(idle((3, 2), &format!("{h1}0x8000 .evts= {none}")));
        // Before its first request.
        assert!(!idle((2, 6), &format!("{h1}0x400 {none}")));
        assert!(!idle((3, 2), &format!("{h1}0x0 {none}")));
        // A request in progress, and half of one.
        let busy = "h1s=0x7f h1s.flg=0x100010 .req.state=MSG_DONE .res.state=MSG_RPBEFORE";
        assert!(!idle((3, 2), &format!("{h1}0x8000 {none} {busy}")));
        assert!(!idle((3, 2), &format!("{h1}0x8000 .ibuf=19@0x7f+48/16384 .obuf=0@(nil)+0/0")));
        assert!(!idle((3, 2), &format!("{h1}0x8000 .ibuf=0@(nil)+0/0 .obuf=7@0x7f+0/16384")));
        // A connection to a server, and a tunnel.
        assert!(!idle((3, 2), &format!("back=1 sv=b/s mux=H1 h1c.flg=0x8000 {none}")));
        assert!(!idle((3, 2), "back=0 fam=ipv4 fe=t mux=PASS ctx=0x55 xprt=RAW"));
        assert!(!idle((3, 2), &format!("back=0 fe=GLOBAL mux=H1 h1c.flg=0x8000 {none}")));
    }

    #[test]
    fn http_2_is_idle_without_a_stream() {
        let h2 = "back=0 cflg=0x00000300 fam=ipv4 fe=f mux=H2 ctx=0x7f h2c.st0=FRH .err=0 .maxid=3 .lastid=2147483647 .flg=0x1600";
        assert!(idle(
            (2, 6),
            &format!("{h2} .nbst=0 .nbcs=0 .tree_cnt=0 .orph_cnt=0 .dbuf=0@(nil)+0/0")
        ));
        assert!(idle((3, 0), &format!("{h2} .nbst=0 .nbsc=0, .tree_cnt=0 .dbuf=0@(nil)+0/0")));
        assert!(!idle((3, 0), &format!("{h2} .nbst=1 .nbsc=1, .tree_cnt=1 .dbuf=0@(nil)+0/0")));
        assert!(!idle((3, 0), &format!("{h2} .nbst=0 .tree_cnt=1 .dbuf=0@(nil)+0/0")));
        assert!(!idle((3, 0), &format!("{h2} .nbst=0 .tree_cnt=0 .dbuf=9@0x7f+0/16384")));
    }

    #[test]
    fn what_is_not_understood_is_not_idle() {
        let version = Version::default();
        assert!(
            idle_connections("Unknown command\n\nback=0 mux=H2\n x : back=0", version).is_empty()
        );
        assert_eq!(show_fds([3, 17]), "show fd 3\nshow fd 17");
    }
}
