//! What the two example servers share: finding the server that came before, and
//! telling it to stop.

use bindonce::{Join, Name, State, StatusResult};
use bindonce_sys::process::Pidfd;
use bindonce_sys::signals::Signal;

/// The place of this process in the row of servers.
pub(crate) struct Succession {
    /// What to tell the broker.
    pub(crate) join: Join,
    /// The servers that came before and still run.
    pub(crate) pids: Vec<u32>,
}

/// Takes the next generation of the service `example`.
pub(crate) fn join(status: &StatusResult) -> Succession {
    let service: Name = "example".parse().expect("a good name");
    let older: Vec<_> = status
        .services
        .iter()
        .filter(|other| other.name == service.as_str())
        .flat_map(|service| &service.generations)
        .collect();
    let newest = older.iter().map(|generation| generation.generation).max();
    Succession {
        join: Join {
            service,
            generation: newest.unwrap_or(0) + 1,
            pid: Some(std::process::id()),
            state: State::Serving,
        },
        pids: older.iter().map(|generation| generation.pid).collect(),
    }
}

/// Tells the servers that came before to stop accepting and to finish.
pub(crate) fn retire(pids: &[u32]) {
    for &pid in pids {
        let told = i32::try_from(pid)
            .map_err(std::io::Error::other)
            .and_then(|pid| Pidfd::open(pid)?.send(Signal::SIGTERM));
        match told {
            Ok(()) => println!("pid {} took over from pid {pid}", std::process::id()),
            Err(error) => eprintln!("pid {pid} cannot be told to stop: {error}"),
        }
    }
}

/// Whether the head of a request is complete.
pub(crate) fn is_complete(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n")
}

/// A whole HTTP response that says who answers.
pub(crate) fn response(kind: &str) -> Vec<u8> {
    let body = format!("{kind} {}\n", std::process::id());
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}
