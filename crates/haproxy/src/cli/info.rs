//! `show info`: facts about the process and its connections.

use super::Version;

/// The fields of `show info` that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// haproxy's version.
    pub version: Version,
    /// The version as haproxy writes it, as in `2.6.12-1+deb12u4`.
    pub release: String,
    /// The pid of the answering process: in master-worker mode a worker, not the process that was
    /// started.
    pub pid: Option<i32>,
    /// Whether a soft stop has begun. haproxy may not have closed its listeners yet: `grace` delays
    /// that.
    pub stopping: bool,
    /// Number of open listeners, where haproxy reports it; a worker counts its socket to the
    /// master.
    pub listeners: Option<u64>,
    /// Current connections, without the one that asks.
    pub connections: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Requests since the start: of HTTP/1, and each stream of HTTP/2 and HTTP/3.
    pub requests: u64,
    /// Bytes sent since the start.
    pub sent: u64,
}

impl Info {
    /// Reads the lines `Name: value`. A missing or invalid number counts as 0.
    pub fn read(text: &str) -> Self {
        let mut info = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            let number = || value.trim().parse().unwrap_or_default();
            match name {
                "Version" => {
                    info.version = Version::read(value);
                    value.trim().clone_into(&mut info.release);
                }
                "Pid" => info.pid = value.trim().parse().ok(),
                "Listeners" => info.listeners = value.trim().parse().ok(),
                "Stopping" => info.stopping = value.trim() != "0",
                "CurrConns" => info.connections = number(),
                "CumConns" => info.accepted = number(),
                "CumReq" => info.requests = number(),
                "TotalBytesOut" => info.sent = number(),
                _ => {}
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_show_info_prints() {
        let text = "Name: HAProxy\nVersion: 2.6.12-1+deb12u4\nPid: 77\nStopping: 1\n\
             Listeners: 2\nCurrConns: 3\nCumConns: 812\nCumReq: 9000\n\
             TotalBytesOut: 120000\n";
        let info = Info::read(text);
        assert_eq!(info.version, Version { major: 2, minor: 6, patch: 12 });
        assert_eq!(info.release, "2.6.12-1+deb12u4");
        assert!(info.stopping);
        assert_eq!((info.pid, info.listeners), (Some(77), Some(2)));
        assert_eq!((info.connections, info.accepted), (3, 812));
        assert_eq!((info.requests, info.sent), (9000, 120_000));
        assert_eq!(Info::read("garbage"), Info::default());
    }
}
