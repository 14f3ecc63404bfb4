//! haproxy's message when `hard-stop-after` has passed. Source: src/proxy.c, `hard_stop` (2.6 to
//! 3.5-dev5).

/// The number of connections that haproxy cuts at its hard stop, if this line of its standard error
/// reports it; one line is about one proxy. Connections to its admin sockets (`GLOBAL`) are not
/// counted.
pub fn connections_cut(line: &str) -> Option<u64> {
    let (proxy, text) = line.split_once(" hard-stopped (")?;
    if proxy.ends_with(": Proxy GLOBAL") {
        return None;
    }
    let (count, rest) = text.split_once(' ')?;
    rest.starts_with("remaining conns will be closed).").then(|| count.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_many_connections_are_cut() {
        let line = |text: &str| connections_cut(&format!("[WARNING]  (10626) : {text}\n"));
        let said = "Proxy web hard-stopped (3 remaining conns will be closed).";
        assert_eq!(line(said), Some(3));
        assert_eq!(line(&said.replace("web", "GLOBAL")), None);
        assert_eq!(line("Proxy web stopped (cumulated conns: FE: 1, BE: 0)."), None);
        assert_eq!(line("Proxy web hard-stopped (x remaining conns will be closed)."), None);
        assert_eq!(line("Proxy web hard-stopped (3"), None);
    }
}
