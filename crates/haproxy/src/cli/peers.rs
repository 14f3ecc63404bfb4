//! `show peers`: whether a generation would teach its stick tables to the next one.
//!
//! A haproxy in soft stop connects to the local peer, which is the next generation by then, and
//! teaches it the tables, but only if it has finished learning itself: from the generation before
//! or, failing that, for 5 seconds from other hosts. Before that it teaches nothing (2.6.12 and
//! later). Flags 1 and 2 of a section mean that learning from the local and from the remote peers
//! is over. Source: haproxy's management guide, "show peers"; its sources for the flags
//! (`PEERS_RESYNC_FINISHED`).

const FINISHED: u32 = 3;

/// The `peers` sections that are still learning, and so would not teach.
pub fn sections_that_learn(show_peers: &str) -> Vec<&str> {
    // Lines about single peers begin with spaces.
    let sections = show_peers.lines().filter(|line| line.starts_with("0x"));
    sections.filter_map(learns).collect()
}

/// The name of a section that is still learning.
fn learns(line: &str) -> Option<&str> {
    let field = |name| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
    let flags = u32::from_str_radix(field("flags=0x")?, 16).ok()?;
    let is_used = field("disabled=") != Some("1");
    field("id=").filter(|_| is_used && flags & FINISHED != FINISHED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_has_learned_when_haproxy_says_so() {
        let section = |flags, disabled| {
            format!(
                "0x55df9881e190: [28/Nov/2026:00:34:33] id=mesh disabled={disabled} flags=0x{flags} resync_timeout=3s task_calls=1\n\
                 \x20 0x55df9881e300: id=me(local,inactive) addr=127.0.0.1:10000 last_status=NONE last_hdshk=<NEVER>\n\
                 \x20       reconnect=<NEVER> heartbeat=<NEVER> confirm=0 tx_hbt=0 rx_hbt=0\n\
                 \x20       flags=0x0\n"
            )
        };
        // 2.6.12 before it learns, at a first start, and after it has learned; 3.0.11 while it
        // learns, afterwards, and at a first start.
        let seen = [
            ("0", true),
            ("11", true),
            ("1103", false),
            ("10000004", true),
            ("11000003", false),
            ("300003", false),
        ];
        for (flags, learn) in seen {
            let expected: &[&str] = if learn { &["mesh"] } else { &[] };
            assert_eq!(sections_that_learn(&section(flags, 0)), expected, "{flags}");
        }
        assert_eq!(sections_that_learn(&section("0", 1)), [""; 0]);
        assert_eq!(sections_that_learn("Unknown command\n0x1: id=a flags=0xyz\n"), [""; 0]);
    }
}
