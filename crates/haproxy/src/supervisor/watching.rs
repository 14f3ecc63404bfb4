//! Whether a generation still listens, as long as it serves; whether it has stopped, once it was
//! told to; and what is left of it then.
//!
//! haproxy is asked, on the admin connection that it was given. Of any other program, and of a
//! haproxy without that connection, the descriptors tell: it has stopped when none of its
//! processes has one of a listener.

use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_observe::Happening;
use bindonce_sys::{aside, holders, process};

use super::admin::{Admin, NoAnswer};
use super::{Kind, Message, Supervisor, foreign};

/// Between two looks at a generation that was told to stop: at first, and later.
const STOP_LOOK: Duration = Duration::from_millis(2);
const STOP_LOOK_LATER: Duration = Duration::from_millis(10);
/// Between two looks at one that drains: at first, and later.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
const DRAIN_LOOK_LATER: Duration = Duration::from_secs(1);
/// How long a look at what a program listens on may take.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// Between two looks at the one that serves.
const SERVING_LOOK: Duration = Duration::from_secs(1);
/// How long an answer of the admin socket may take.
const ANSWER: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Asks the serving generation now and then whether somebody else has told it to stop: then
    /// nobody would accept, and another must be started.
    pub(super) fn watch_serving(&mut self, id: GenerationId) {
        let (sender, journal) = (self.sender.clone(), Rc::clone(&self.journal));
        let kind = self.settings.kind.clone();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let admin = generation.admin.clone();
        if admin.is_none() && kind.haproxy().is_some() {
            return;
        }
        let pid = generation.pid();
        let inodes: Vec<_> = generation.listeners.iter().map(|held| held.inode).collect();
        let task = super::spawn(async move {
            match admin {
                Some(admin) => loop {
                    tokio::time::sleep(SERVING_LOOK).await;
                    match admin.info(ANSWER).await {
                        Ok(info) if info.stopping => break,
                        Ok(info) => drop(sender.send(Message::Left(id, info.connections))),
                        Err(NoAnswer::InTime) => {}
                        Err(NoAnswer::Closed) => return,
                    }
                },
                // The first process has them from the start, and closes them when it stops.
                None => loop {
                    tokio::time::sleep(SERVING_LOOK).await;
                    if holders::holds(pid, &inodes).is_ok_and(|holds| !holds)
                        && hold(&kind, pid, &inodes).is_ok_and(|hold| !hold)
                    {
                        break;
                    }
                },
            }
            let text = match listens_elsewhere(kind, pid, &inodes).await {
                Some(addresses) => format!(
                    "this program has closed the sockets that it was given and listens on {addresses} by \
                     itself, where bindonce protects nothing: let it take the descriptors (LISTEN_FDS, or \
                     --variable), or give its address to --listen; starting another"
                ),
                None => "this generation has stopped, and not because the supervisor told it to; \
                         starting another"
                    .to_owned(),
            };
            tracing::error!(generation = id.0, pid, "{text}");
            let happening = Happening::new(event::Kind::GenerationStopped, text);
            journal.record(happening.generation(id.0).pid(pid));
            let _ = sender.send(Message::Event(Event::Stopped(id)));
        });
        if let Some(earlier) = generation.watch.replace(task.abort_handle()) {
            earlier.abort();
        }
    }

    /// Begins to ask a generation whether it has stopped, and then what is left.
    pub(super) fn watch_stop(&mut self, id: GenerationId) {
        let sender = self.sender.clone();
        let kind = self.settings.kind.clone();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        drop(generation.tell(State::Draining));
        generation.closed = false;
        let admin = generation.admin.clone();
        let pid = generation.pid();
        let inodes: Vec<_> = generation.listeners.iter().map(|held| held.inode).collect();
        if let Some(earlier) = generation.watch.take() {
            earlier.abort();
        }
        let task = super::spawn(async move {
            let tell = |message| drop(sender.send(message));
            let admin = match admin {
                Some(admin) if stopped_says_admin(&admin).await => Some(admin),
                _ => {
                    stopped_say_descriptors(&kind, id, pid, &inodes).await;
                    None
                }
            };
            tell(Message::Event(Event::Stopped(id)));
            let Some(admin) = admin else { return };
            for look in 0u32.. {
                match admin.info(ANSWER).await {
                    Ok(info) => tell(Message::Left(id, info.connections)),
                    Err(NoAnswer::InTime) => {}
                    Err(NoAnswer::Closed) => return,
                }
                let wait = if look < 20 { DRAIN_LOOK } else { DRAIN_LOOK_LATER };
                tokio::time::sleep(wait).await;
            }
        });
        generation.watch = Some(task.abort_handle());
        self.save();
    }
}

/// Waits until haproxy says that it is stopping; false if its connection ends first.
async fn stopped_says_admin(admin: &Admin) -> bool {
    loop {
        match admin.info(ANSWER).await {
            Ok(info) if info.stopping => return true,
            Ok(_) | Err(NoAnswer::InTime) => tokio::time::sleep(STOP_LOOK_LATER).await,
            Err(NoAnswer::Closed) => return false,
        }
    }
}

/// Waits until no process of the generation has a descriptor of these listeners.
async fn stopped_say_descriptors(kind: &Kind, id: GenerationId, pid: i32, inodes: &[u64]) {
    for look in 0u32.. {
        match hold(kind, pid, inodes) {
            Ok(false) => return,
            Ok(true) => {}
            // Nothing will ever be known.
            Err(error) if kind.program().is_some() => {
                return tracing::warn!(
                    generation = id.0,
                    pid,
                    "whether it has closed its listeners is not to be seen ({error}); their \
                     accept queues alone must tell: run as root with CAP_SYS_PTRACE"
                );
            }
            Err(_) => return,
        }
        let wait = if look < 20 { STOP_LOOK } else { STOP_LOOK_LATER };
        tokio::time::sleep(wait).await;
    }
}

/// Whether any process of the generation has a descriptor of these listeners.
///
/// # Errors
/// If no process is seen to, and the descriptors of some may not be read.
fn hold(kind: &Kind, pid: i32, inodes: &[u64]) -> std::io::Result<bool> {
    // The first process and its children are quickly looked at. Only if they have none are all
    // others looked for.
    let seen = |pids: Vec<i32>| {
        let mut all = pids.iter().map(|pid| holders::holds(*pid, inodes));
        let mut refused = None;
        let holds = all.any(|holds| match holds {
            Ok(holds) => holds,
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        match refused {
            Some(error) if !holds => Err(error),
            _ => Ok(holds),
        }
    };
    Ok(seen(process::family(pid))? || seen(kind.processes(pid))?)
}

/// What a program listens on besides these sockets; nothing of haproxy, which tells itself whether it stops.
async fn listens_elsewhere(kind: Kind, pid: i32, inodes: &[u64]) -> Option<String> {
    kind.program()?;
    let known = inodes.iter().copied().collect();
    let look = move || foreign::listening(&kind.processes(pid), &known, None);
    let found = aside::within(ELSEWHERE, look).await.unwrap_or_default();
    let addresses: Vec<_> = found.into_iter().take(4).collect();
    (!addresses.is_empty()).then(|| addresses.join(", "))
}
