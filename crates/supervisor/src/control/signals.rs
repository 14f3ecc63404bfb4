//! What the supervisor is asked for: reloads, whoever wants them, and signals. A SIGUSR1 from a
//! generation is haproxy's word that it is ready, from anybody else a soft stop. SIGTTOU is its request that older ones
//! let go of an address that it cannot bind, SIGTTIN that they take it back: it has given up (see [`crate::generations::own`]).

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId};
use bindonce_daemon::Happening;
use bindonce_sys::signals::{Received, Signal};
use tokio::sync::oneshot;

use crate::control;
use crate::generations::generation::Generation;
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Wants a reload, with the reason, and for whom it is answered.
    pub(crate) fn reload(
        &mut self,
        reply: Option<oneshot::Sender<control::Answer>>,
        why: &str,
        pid: Option<i32>,
    ) {
        self.report.journal.record(Happening::new(event::Kind::ReloadAsked, why).pid(pid));
        let caller = self.requests.reload(reply);
        self.feed(Event::Reload(caller));
    }

    /// Does what a signal to the supervisor asks for.
    pub(crate) fn signal(&mut self, signal: Received) {
        let Received { signo, pid, uid, .. } = signal;
        match signo {
            Signal::SIGHUP | Signal::SIGUSR2 => {
                tracing::info!(signal = signo.as_str(), sender = pid, "reload asked for");
                self.reload(None, signo.as_str(), Some(pid));
            }
            Signal::SIGTERM | Signal::SIGINT => self.shut_down(signo, pid),
            Signal::SIGTTOU | Signal::SIGTTIN if self.wants_an_address(pid, signo) => {}
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => tracing::warn!(
                signal = signo.as_str(),
                sender = pid,
                uid,
                "signal ignored: a supervisor that is stopped answers nobody; to end it and its \
                 generations, send SIGTERM"
            ),
            _ if self.settings.kind.haproxy().is_none() => {
                tracing::warn!(sender = pid, uid, "SIGUSR1 ignored: to reload, send SIGHUP");
            }
            // haproxy's readiness; in master-worker mode a worker sends it. From anybody else it is a
            // soft stop, as it is to haproxy: container images have it as their stop signal.
            _ => match self.generation_of(pid) {
                Some(id) => self.ready(id, "it has bound everything"),
                None if self.may_be_a_dead_worker(pid) => tracing::warn!(
                    sender = pid,
                    uid,
                    "SIGUSR1 ignored: its sender is gone, and may have been a worker of the haproxy \
                     that is starting; to end the service, send SIGTERM"
                ),
                // Again it changes nothing: only a second SIGTERM ends what drains.
                None if self.timeline.is_shutting_down() => {}
                None => self.shut_down(signo, pid),
            },
        }
    }

    fn shut_down(&mut self, signal: Signal, sender: i32) {
        tracing::info!(signal = signal.as_str(), sender, "shutdown asked for");
        let text = format!("shutdown asked for: {}", signal.as_str());
        self.report.journal.record(Happening::new(event::Kind::SupervisorEnding, text).pid(sender));
        self.report.announcer.stopping();
        self.feed(Event::Shutdown);
    }

    /// Whether a sender that is unknown could be a worker of a nested master, which tells that it is
    /// ready and may have died since: then nothing shows whose it was.
    fn may_be_a_dead_worker(&self, pid: i32) -> bool {
        let starts = |generation: &Generation| !generation.ready && generation.master_worker;
        self.generations.values().any(starts) && bindonce_sys::process::parent(pid).is_none()
    }

    /// A starting haproxy cannot bind an address of its own: SIGTTOU asks every pid of its `-sf` to
    /// let go of it, about 100 times a second for two seconds. SIGTTIN follows when it has given up, and
    /// then its exit. False if the sender is no generation.
    fn wants_an_address(&mut self, pid: i32, signal: Signal) -> bool {
        let haproxy = self.settings.kind.haproxy().is_some();
        let Some(id) = self.generation_of(pid).filter(|_| haproxy) else { return false };
        match signal {
            Signal::SIGTTOU if self.can_let_go(id) => self.feed(Event::AddressInUse(id)),
            Signal::SIGTTOU => {}
            _ => self.feed(Event::GaveUp(id)),
        }
        let Some(generation) = self.generations.get_mut(&id) else { return true };
        let earlier = generation.wants_address.replace(signal);
        if earlier == Some(signal) {
            return true;
        }
        let text = match signal {
            Signal::SIGTTOU => "cannot bind an address; it asks the older haproxy to let go of it",
            _ => "has given up on the address that it cannot bind",
        };
        tracing::warn!(generation = id.0, sender = pid, "{text}");
        true
    }

    /// The generation that a process belongs to.
    fn generation_of(&self, pid: i32) -> Option<GenerationId> {
        let parent = bindonce_sys::process::parent(pid);
        let is =
            |generation: &Generation| generation.pid() == pid || Some(generation.pid()) == parent;
        self.generations.iter().find(|(_, generation)| is(generation)).map(|(id, _)| *id)
    }
}
