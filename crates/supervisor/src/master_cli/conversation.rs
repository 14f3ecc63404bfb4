//! One client of the master CLI, from its first command to its end.
//!
//! Its input is read only while no answer is in progress, and the amount and the time are limited,
//! so that a client that floods or hangs costs the others nothing. Without `prompt` the connection
//! ends after the answers to one line, and to the input that arrived with it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bindonce_haproxy::cli::Level;
use bindonce_haproxy::cli::master::{
    Input, LONGEST_LINE, LONGEST_REQUEST, Next, Order, Session, Step, Target, Wanted,
    ends_when_refused, has_both, help,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::ask::{Reloaded, Seen};
use super::client::{Client, Goes, Hub};
use super::generation::{self, Request};
use super::seats::{Seats, Taken};

/// How long a client may be silent if it is not interactive, or in the middle of a command.
const SILENT: Duration = Duration::from_secs(60);

/// Serves a client in a task of its own.
pub(super) fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    level: Level,
    pid: Option<i32>,
    hub: &Hub,
    seats: &Rc<Seats>,
) {
    let taken = seats.take();
    let seat = taken.seat();
    let hub = hub.clone();
    let task = crate::tasks::spawn(async move {
        let session = Session::new(level);
        let client = Client { stream, input: Input::default(), ended: false };
        let mut conversation = Conversation { client, session, hub, taken, pid };
        if let Err(error) = conversation.hold().await {
            tracing::debug!(%error, "a client of the master CLI ended");
        }
    });
    Taken::served_by(&seat, task.abort_handle());
}

struct Conversation<S> {
    client: Client<S>,
    session: Session,
    hub: Hub,
    taken: Taken,
    pid: Option<i32>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    async fn hold(&mut self) -> io::Result<()> {
        loop {
            if self.client.input.is_empty() {
                self.receive().await?;
            }
            let mut seen = self.hub.look().await?;
            let next = self.client.input.next(has_both(seen.version));
            if let Next::Command(command) = &next
                && seen.processes.current.is_none()
                && command.trim_ascii_start().starts_with(b"@1")
            {
                seen = self.hub.begun().await?;
            }
            let goes = match next {
                Next::More if self.client.ended => return Ok(()),
                Next::More => {
                    self.receive().await?;
                    continue;
                }
                Next::TooLong => {
                    let text = format!("The line is too long: at most {LONGEST_LINE} bytes.\n\n");
                    return self.client.refuse(&text).await;
                }
                Next::Command(command) => self.take(&command, seen).await?,
                Next::Both(prefix, rest) => self.both(&prefix, rest, seen).await?,
            };
            let between = self.client.input.is_between_lines();
            if goes == Goes::Ends || (between && !self.session.interactive) {
                return self.client.stream.shutdown().await;
            }
        }
    }

    /// Receives more input. The client may lose its seat meanwhile.
    async fn receive(&mut self) -> io::Result<()> {
        let silent = self.session.interactive && self.client.input.is_empty();
        let limit = if silent { Duration::MAX } else { SILENT };
        self.taken.set_idle(true);
        let received = self.client.receive(limit).await;
        self.taken.set_idle(false);
        received
    }

    /// Takes and answers one command.
    async fn take(&mut self, command: &[u8], seen: Seen) -> io::Result<Goes> {
        let find = |prefix: &str| {
            seen.processes.find(prefix).map(|pid| match pid {
                0 => Target::Master,
                pid => Target::Process(pid),
            })
        };
        let goes = match self.session.take(command, seen.version, find) {
            Step::Done => Goes::On,
            Step::Refused(text) => {
                self.client.say(text.as_bytes()).await?;
                if ends_when_refused(seen.version) {
                    return Ok(Goes::Ends);
                }
                self.client.input.clear();
                Goes::On
            }
            Step::Say(text) => {
                self.client.say(text.as_bytes()).await?;
                Goes::On
            }
            Step::Quit => {
                self.prompt(&seen).await?;
                return Ok(Goes::Ends);
            }
            Step::Run(target, mut command, payload) => {
                command.push(b'\n');
                if let Some(end) = payload
                    && !self.receive_payload(&mut command, &end).await?
                {
                    return Ok(Goes::Ends);
                }
                match target {
                    Target::Master => self.answer(&command, &seen).await?,
                    Target::Process(pid) => {
                        let request = Request { session: &self.session, text: &command };
                        generation::run(&mut self.client, &self.hub, request, pid, seen).await?
                    }
                }
            }
        };
        if goes == Goes::On && self.session.prompt {
            // The state in the prompt may have changed meanwhile.
            let seen = self.hub.look().await?;
            self.prompt(&seen).await?;
        }
        Ok(goes)
    }

    async fn prompt(&mut self, seen: &Seen) -> io::Result<()> {
        let uptime = |target| {
            seen.processes.uptime(match target {
                Target::Master => 0,
                Target::Process(pid) => pid,
            })
        };
        let prompt = self.session.prompt(seen.processes.failed > 0, uptime);
        self.client.say(prompt.as_bytes()).await
    }

    /// Reads a payload up to its end line; false if it will not arrive.
    async fn receive_payload(&mut self, command: &mut Vec<u8>, end: &[u8]) -> io::Result<bool> {
        let prompt = self.session.payload_prompt().as_bytes();
        self.client.say(prompt).await?;
        loop {
            let line = self.client.input.payload_line();
            let length = command.len() + line.as_ref().map_or(self.client.input.len(), Vec::len);
            if length > LONGEST_REQUEST {
                let text = format!(
                    "The payload is too long: at most {LONGEST_REQUEST} bytes with its command.\n\n"
                );
                self.client.refuse(&text).await?;
                return Ok(false);
            }
            let Some(line) = line else {
                if self.client.ended {
                    return Ok(false);
                }
                self.receive().await?;
                continue;
            };
            command.extend_from_slice(&line);
            if line.strip_suffix(b"\n") == Some(end) {
                return Ok(true);
            }
            self.client.say(prompt).await?;
        }
    }

    /// Answers a command for the master itself.
    async fn answer(&mut self, command: &[u8], seen: &Seen) -> io::Result<Goes> {
        let line = command.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let version = seen.version;
        let mut text = match Order::read(line, self.session.level, version) {
            Order::Reload { hard } => {
                let Reloaded { success, startup } = self.hub.reload(hard, self.pid).await?;
                let text = format!("Success={}\n--\n{startup}\n", u8::from(success));
                self.client.say(text.as_bytes()).await?;
                return Ok(Goes::Ends);
            }
            Order::Processes { debug } => seen.processes.show(version, debug),
            Order::StartupLogs => seen.startup.text(),
            Order::Version => format!("{}\n", seen.processes.master.version),
            Order::Environment(name) => self.hub.environment(name.as_deref()),
            Order::Say(text) => text,
            Order::Help(words) => help(Wanted::Help, &words, version),
            Order::Unknown(words) => help(Wanted::Unknown, &words, version),
        };
        text.push('\n');
        self.client.say(text.as_bytes()).await?;
        Ok(Goes::On)
    }

    /// `@@`: passes the rest of the line to a process unread, and the client's further input until
    /// that process has answered.
    async fn both(&mut self, prefix: &str, mut rest: Vec<u8>, seen: Seen) -> io::Result<Goes> {
        let prefix = prefix.strip_prefix('@').unwrap_or(prefix);
        match seen.processes.find(prefix) {
            None => {
                let text = format!("Can't find the target PID matching the prefix '@@{prefix}'\n");
                self.client.say(text.as_bytes()).await?;
                self.client.input.clear();
            }
            // Commands for the master are read as usual.
            Some(0) => {
                rest.extend(self.client.input.take());
                self.client.input.push(&rest);
                return Ok(Goes::On);
            }
            Some(pid) => {
                let request = Request { session: &self.session, text: &rest };
                let goes =
                    generation::join(&mut self.client, &self.hub, request, pid, &seen).await?;
                if goes == Goes::Ends {
                    return Ok(goes);
                }
            }
        }
        self.prompt(&seen).await?;
        Ok(Goes::On)
    }
}
