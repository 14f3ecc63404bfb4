//! The limits and counts of a running haproxy, read from its stats socket, and where its
//! configuration has such a socket. Works for any haproxy, including one that bindonce does not
//! run.
//!
//! Source: haproxy management guide, section 9.3, `show info` and `show stat`.

use std::path::{Path, PathBuf};

use bindonce_sys::file;

use crate::config::reader;
use crate::names;

/// Limits and counts from `show info` and `show stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// The pid of haproxy in its own pid namespace.
    pub pid: i32,
    /// Whether a soft stop has begun.
    pub stopping: bool,
    /// Current connections.
    pub connections: u64,
    /// The global maxconn; 0 if there is none.
    pub limit: u64,
    /// Frontends, backends and servers.
    pub proxies: Vec<Proxy>,
}

/// A frontend, a backend or a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `frontend web`, `backend app` or `server app/s1`.
    pub name: String,
    /// Current sessions.
    pub sessions: u64,
    /// Session limit; 0 without a limit.
    pub limit: u64,
    /// Queued requests.
    pub queued: u64,
}

/// The commands whose answers [`read`] takes. They change nothing.
pub const QUESTION: &[u8] = b"show info;show stat\n";

/// Limit on the length of an answer, in bytes. A configuration with 10,000 servers takes half of
/// it.
pub const LONGEST: usize = 8 << 20;

/// A command that only the CLI of a master (haproxy's `-S`) knows (management guide, section 9.4.1,
/// `show proc`). A worker's stats socket answers something else. A master ends the connection only
/// on `quit`.
pub const ASK_MASTER: &[u8] = b"show proc;quit\n";
/// The beginning of a master's answer to [`ASK_MASTER`].
pub const MASTER: &[u8] = b"#<PID>";

/// Reads both answers; None if the text is not from haproxy.
pub fn read(text: &str) -> Option<Stats> {
    let mut stats = Stats::default();
    let mut columns: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            columns = header.split(',').collect();
        } else if !columns.is_empty() {
            stats.proxies.extend(proxy(&columns, line));
        } else if let Some((name, value)) = line.split_once(": ") {
            let value = value.trim();
            match name {
                "Pid" => stats.pid = value.parse().ok()?,
                "Stopping" => stats.stopping = value != "0",
                "CurrConns" => stats.connections = value.parse().unwrap_or(0),
                "Maxconn" => stats.limit = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    (stats.pid != 0).then_some(stats)
}

/// One line of `show stat`. Names hold no comma.
fn proxy(columns: &[&str], line: &str) -> Option<Proxy> {
    let values: Vec<&str> = line.split(',').collect();
    let value = |name: &str| {
        let at = columns.iter().position(|column| *column == name)?;
        values.get(at).copied()
    };
    let number = |name| value(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let (section, part) = (value("pxname")?, value("svname")?);
    let name = match value("type")? {
        "0" => format!("frontend {section}"),
        "1" => format!("backend {section}"),
        "2" => format!("server {section}/{part}"),
        _ => return None,
    };
    // The `slim` of a backend is its `fullconn`, which scales the limits of its servers and does
    // not limit the backend.
    let limit = if name.starts_with("backend") { 0 } else { number("slim") };
    Some(Proxy { name, sessions: number("scur"), limit, queued: number("qcur") })
}

/// Number of files read in a directory, and the largest size of each in bytes.
const FILES: usize = 1000;
const LARGEST: u64 = 16 << 20;

/// The stats sockets of a haproxy with this command line that runs in `directory`: those that its
/// configuration names, and the private one of a generation under bindonce. Paths with a variable
/// are left out.
pub fn sockets_of(command: &[String], directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut words = command.iter();
    while let Some(word) = words.next() {
        let file = match word.as_str() {
            "-f" => words.next(),
            _ => None,
        };
        let Some(path) = file.map(|file| directory.join(file)) else {
            continue;
        };
        let files = match std::fs::read_dir(&path) {
            Ok(entries) => entries.take(FILES).flatten().map(|entry| entry.path()).collect(),
            Err(_) => vec![path],
        };
        for file in files {
            found.extend(private(&file));
            found.extend(named_in(&file, directory));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// `SERVICE.d/admin-7.sock` for `SERVICE.d/generation-7/FILE`.
fn private(file: &Path) -> Option<PathBuf> {
    let generation = file.parent()?;
    let id = generation.file_name()?.to_str()?.strip_prefix("generation-")?;
    Some(generation.parent()?.join(names::admin_socket(id.parse().ok()?)))
}

fn named_in(file: &Path, directory: &Path) -> Vec<PathBuf> {
    // Any user of this host may run a program called haproxy, and name any file: read regular files
    // only.
    let text = file::regular(file, LARGEST).unwrap_or_default();
    let mut found = Vec::new();
    for line in reader::lines(&text) {
        let Some(line) =
            text.get(line).filter(|line| line.trim_ascii_start().starts_with(b"stats"))
        else {
            continue;
        };
        // A variable has no value here: a line with one is skipped.
        let words = reader::words(line, reader::Unset::default(), &|_| Some(b"$".to_vec()))
            .unwrap_or_default();
        if let [_, socket, path, ..] = words.as_slice()
            && socket.value == b"socket"
            && let Ok(path) = std::str::from_utf8(&path.value)
            && !path.contains(['$', ':'])
        {
            let path = path.strip_prefix("unix@").unwrap_or(path);
            if !path.contains('@') {
                found.push(directory.join(path));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_haproxy_prints() {
        let text = "Name: HAProxy\nVersion: 2.6.12\nPid: 812\nStopping: 0\nMaxconn: 500\nCurrConns: 500\n\n\
            # pxname,svname,qcur,qmax,scur,smax,slim,type,\n\
            web,FRONTEND,,,500,500,500,0,\napp,s1,3,9,10,10,10,2,\napp,BACKEND,4,9,10,10,50,1,\n\n";
        let stats = read(text).expect("stats");
        assert_eq!((stats.pid, stats.connections, stats.limit), (812, 500, 500));
        let proxies: Vec<_> = stats
            .proxies
            .iter()
            .map(|one| (one.name.as_str(), one.sessions, one.limit, one.queued))
            .collect();
        let expected = [
            ("frontend web", 500, 500, 0),
            ("server app/s1", 10, 10, 3),
            ("backend app", 10, 0, 4),
        ];
        assert_eq!(proxies, expected);
        assert_eq!(read("HTTP/1.0 400 Bad request\n"), None);
    }

    #[test]
    fn finds_the_sockets_that_a_configuration_names() {
        let directory = std::env::temp_dir().join(format!("bindonce-stats-{}", std::process::id()));
        let generation = directory.join("web.d/generation-7");
        std::fs::create_dir_all(&generation).expect("directory");
        let text = "global\n  stats socket /run/a.sock mode 600 level admin\n  stats timeout 5s\n\
                    \tstats socket \"unix@b.sock\"\nstats socket \"${X}/c\"\nstats socket fd@3\nstats socket :99\n";
        std::fs::write(generation.join("a.cfg"), text).expect("file");
        let command = ["haproxy", "-db", "-f", "web.d/generation-7/a.cfg"].map(str::to_owned);
        let found = sockets_of(&command, &directory);
        std::fs::remove_dir_all(&directory).expect("remove");
        let expected =
            ["/run/a.sock".into(), directory.join("b.sock"), directory.join("web.d/admin-7.sock")];
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(expected.iter().all(|path| found.contains(path)), "{found:?}");
    }
}
