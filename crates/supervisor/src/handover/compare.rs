//! Compares what a generation of haproxy really listens on with what was claimed for it: a listener
//! that it passes over would keep clients waiting for ever, and an address of a `bind` line that it has
//! bound by itself is not protected. Either means that we read the configuration in another way than
//! haproxy does, and fails the start.
//!
//! What it has bound is seen before anything older is touched. Which descriptors it listens on is known
//! as soon as it goes on ([`super::hears`]): in a reload the older generations are still paused then,
//! and resume if it is ended. What is started because nobody serves is compared too, and serves whatever
//! it listens on.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{Event, GenerationId};
use bindonce_core::{duration, event};
use bindonce_sys::signals::Signal as Number;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use crate::control::requests;
use crate::generations::foreign::{self, LOOKS};
use crate::generations::generation::Generation;
use crate::generations::listeners::Held;
use crate::generations::start::Prepared;
use crate::handover::hears::Hears;
use crate::message::{Compared, Message};
use crate::report::cause::Cause;
use crate::supervisor::Supervisor;

/// How long haproxy may take to tell what it listens on while clients wait. If it takes longer, the
/// handover goes on, and it is asked again.
const ANSWER: Duration = Duration::from_secs(1);
/// How long it may take when it is asked again, before the answer to the reload: exit 0 is said only of
/// what was observed.
const ANSWER_LATE: Duration = Duration::from_secs(10);
/// What to do about one that does not accept again.
const RESUMES_NOT: &str = "see what it does with `bindonce doctor`; correct the configuration, then run \
    `bindonce reload`: the next generation takes over from it";

impl Supervisor {
    /// Looks at what a generation that is ready has bound; at what it listens on too, if it is `running`
    /// already. False if there is nothing to compare.
    pub(crate) fn compare(&self, id: GenerationId, how: &'static str, running: bool) -> bool {
        let Some(generation) = self.generations.get(&id) else { return false };
        let Some(hears) = self.hears(id) else { return false };
        let (cx, look) = (self.cx.clone(), foreign::look_at_own(&self.cx, generation));
        crate::tasks::spawn(async move {
            let own = bindonce_sys::aside::within(LOOKS, look).await.unwrap_or_default();
            let deaf = if running { hears.deaf(ANSWER).await } else { None };
            cx.send(Message::Compared(id, how, Compared { own, deaf }));
        });
        true
    }

    /// What was seen: the start goes on, or ends here.
    pub(crate) fn compared(&mut self, id: GenerationId, how: &'static str, seen: &Compared) {
        let refused = self.generations.get(&id).is_none_or(|g| g.refused.is_some());
        if refused {
            return;
        }
        let deaf = seen.deaf.as_deref();
        let text = self.unclaimed(id, &seen.own).or_else(|| self.passed_over(id, deaf));
        if !text.is_some_and(|text| self.reads_otherwise(id, text)) {
            self.has_said(id, deaf);
            self.take_over_now(id, how);
        }
    }

    /// Nobody accepts, as far as `proof` tells. The new generation goes on, and before the older ones
    /// are told to stop for good it must be known that it listens on what it was given.
    pub(crate) fn proved(&mut self, proof: Event) {
        // Where one of them is not known to be paused, the new one cannot go on yet.
        let may_go_on = match proof {
            Event::ProvedInPart { all_paused } => all_paused || self.timeline.is_stopping(),
            _ => true,
        };
        let newer = self.handover.newer().filter(|_| may_go_on);
        let asked = newer.and_then(|id| {
            let hears = self.hears(id)?;
            let newer = self.generations.get_mut(&id)?;
            if newer.hold.is_some() {
                newer.let_go_on();
            } else {
                newer.pidfd.send(Number::SIGCONT).ok()?;
            }
            Some((id, hears))
        });
        let Some((id, hears)) = asked else { return self.feed(proof) };
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let deaf = hears.deaf(ANSWER).await;
            cx.send(Message::Listens(id, deaf, proof));
        });
    }

    /// It is known which of its listeners a generation that goes on passes over, or it was not to be known
    /// in time.
    pub(crate) fn listens(&mut self, id: GenerationId, deaf: Option<&[usize]>, proof: Event) {
        if self.handover.newer() != Some(id) {
            return; // It has died, or the service is being shut down.
        }
        let text = self.passed_over(id, deaf);
        if !text.is_some_and(|text| self.reads_otherwise(id, text)) {
            self.has_said(id, deaf);
            self.feed(proof);
        }
    }

    fn has_said(&mut self, id: GenerationId, deaf: Option<&[usize]>) {
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.listens = deaf.is_some();
        }
    }

    /// How to find out what a generation listens on; none for a program, which reads its listeners itself.
    fn hears(&self, id: GenerationId) -> Option<Hears> {
        self.cx.settings.kind.haproxy()?;
        Some(Hears::of(&self.cx.settings.kind, self.generations.get(&id)?))
    }

    /// Tells what differs, and ends the generation: true. Not one that was started anew on a configuration
    /// that serves, or has: nobody else would serve.
    fn reads_otherwise(&mut self, id: GenerationId, text: String) -> bool {
        let fresh = self.timeline.configuration_of(id) == Some(id);
        self.tell_otherwise(id, event::Kind::GenerationFailed, &text);
        if fresh {
            let hint = Some(requests::READS_OTHERWISE.to_owned());
            if let Some(generation) = self.generations.get_mut(&id) {
                generation.refuse(Cause { text, hint, ..Cause::default() });
            }
        }
        fresh
    }

    fn tell_otherwise(&self, id: GenerationId, kind: event::Kind, text: &str) {
        let pid = self.generations.get(&id).map(Generation::pid);
        tracing::error!(generation = id.0, pid, "{text}");
        self.cx.record(id, pid, kind, text);
    }

    /// An address that a bind line names and that haproxy has bound by itself.
    fn unclaimed(&self, id: GenerationId, own: &BTreeSet<String>) -> Option<String> {
        let rendering = self.rendering(id)?;
        let left = |address: &str| {
            let mut lines = rendering.left_alone.iter();
            lines.any(|line| foreign::names(&line.text, address))
        };
        let (address, place) = own
            .iter()
            .filter(|address| !left(address))
            .find_map(|address| Some((address, rendering.unclaimed_bind(address)?)))?;
        Some(format!(
            "haproxy has bound {address} by itself, of the bind line {place}, which was not claimed"
        ))
    }

    /// Listeners that haproxy was given and does not listen on.
    fn passed_over(&self, id: GenerationId, deaf: Option<&[usize]>) -> Option<String> {
        Some(format!("haproxy does not listen on {}", self.named(id)?.some(deaf?)?))
    }

    fn named(&self, id: GenerationId) -> Option<Named> {
        let of = self.timeline.configuration_of(id);
        Some(Named {
            prepared: of.and_then(|of| self.starts.prepared(of).cloned()),
            listeners: self.generations.get(&id)?.listeners.clone(),
        })
    }

    /// Asks a generation that serves, where it could not be asked before older ones were told to stop
    /// for good, or did not answer: why the reload has failed, if it has.
    pub(crate) fn ask_late(&self, id: GenerationId) -> Option<oneshot::Receiver<Option<RpcError>>> {
        self.generations.get(&id).filter(|generation| !generation.listens)?;
        let (hears, named) = (self.hears(id)?, self.named(id)?);
        self.answer_late(id, async move {
            match hears.deaf(ANSWER_LATE).await {
                None => Some((
                    format!(
                        "generation {id} has taken over, but has not said on its admin socket within {} \
                         which listeners it listens on: nothing shows that it serves",
                        duration::format(ANSWER_LATE)
                    ),
                    "see what it does with `bindonce doctor`; if it stands still, run `bindonce reload` again",
                )),
                Some(deaf) => {
                    let names = named.some(&deaf)?;
                    let text = format!(
                        "haproxy does not listen on {names}\n\
                         it serves all the same: no older generation could resume"
                    );
                    Some((text, requests::READS_OTHERWISE))
                }
            }
        })
    }

    /// Asks a generation that was paused and is told to accept again whether it does, until it does: why it
    /// does not serve as before, if it does not in time.
    pub(crate) fn ask_resumed(
        &mut self,
        id: GenerationId,
    ) -> Option<oneshot::Receiver<Option<RpcError>>> {
        let (hears, named) = (Rc::new(self.hears(id)?), self.named(id)?);
        let (cx, asked) = (self.cx.clone(), Rc::clone(&hears));
        let task = crate::tasks::spawn(async move {
            // A signal that comes while it is stopped is lost when it is continued.
            while asked.deaf(ANSWER).await.is_none_or(|deaf| !deaf.is_empty()) {
                cx.send(Message::StillPaused(id));
                tokio::time::sleep(ANSWER).await;
            }
        });
        if let Some(generation) = self.generations.get_mut(&id)
            && let Some(earlier) = generation.resumes.replace(task.abort_handle())
        {
            earlier.abort();
        }
        self.answer_late(id, async move {
            let text = match hears.deaf(ANSWER_LATE).await {
                None => format!(
                    "generation {id} was told to accept again, and has not said on its admin socket \
                     within {} that it does",
                    duration::format(ANSWER_LATE)
                ),
                Some(deaf) => format!(
                    "generation {id} was told to accept again, and does not listen on {}",
                    named.some(&deaf)?
                ),
            };
            Some((text, RESUMES_NOT))
        })
    }

    /// A generation that is to accept has not said that it does: it is told again.
    pub(crate) fn still_paused(&mut self, id: GenerationId) {
        if self.timeline.serving() == Some(id)
            && !self.timeline.is_paused(id)
            && let Some(generation) = self.generations.get(&id)
        {
            // Its end is on its way to us.
            let _ = generation.pidfd.send(Number::SIGTTIN);
        }
    }

    /// Logs and records what `why` comes to, and gives it to whoever waits.
    fn answer_late(
        &self,
        id: GenerationId,
        why: impl Future<Output = Option<(String, &'static str)>> + 'static,
    ) -> Option<oneshot::Receiver<Option<RpcError>>> {
        let (tell, told) = oneshot::channel();
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let why = why.await;
            if let Some((text, _)) = &why {
                tracing::error!(generation = id.0, "{text}");
                cx.record(id, None, event::Kind::ReloadFailed, text.as_str());
            }
            // The client may have gone away.
            let _ =
                tell.send(why.map(|(text, hint)| {
                    RpcError::new(ErrorCode::RELOAD_FAILED, text).with_hint(hint)
                }));
        });
        Some(told)
    }
}

/// The listeners of a generation, as people know them.
struct Named {
    prepared: Option<Rc<Prepared>>,
    listeners: Vec<Rc<Held>>,
}

impl Named {
    /// The first of these, and how many more; none if there is none.
    fn some(&self, indexes: &[usize]) -> Option<String> {
        let rendering = self.prepared.as_ref().and_then(|prepared| prepared.rendering());
        let name = |index: usize| match rendering.and_then(|r| r.bindings.get(index)) {
            Some(binding) => Some(format!("{} of {}", binding.listener.address, binding.place)),
            None => self.listeners.get(index).map(|held| held.listener.address.to_string()),
        };
        let first = name(*indexes.first()?)?;
        let more = match indexes.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some(format!("{first}{more}, which was claimed for it"))
    }
}
