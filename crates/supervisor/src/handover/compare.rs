//! Compares what a generation of haproxy really listens on with what was claimed for it: a listener
//! that it passes over would keep clients waiting for ever, and an address of a `bind` line that it has
//! bound by itself is not protected. Either means that we read the configuration in another way than
//! haproxy does, and fails the start.
//!
//! What it has bound is seen before anything older is touched. Which descriptors it listens on only it
//! can tell (`show fd`), as soon as it goes on: in a reload the older generations are still paused then,
//! and resume if it is ended.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{Event, GenerationId};
use bindonce_core::{duration, event};
use bindonce_daemon::Happening;
use bindonce_sys::inherit;
use bindonce_sys::signals::Signal as Number;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use crate::control::requests;
use crate::generations::admin::{Admin, NoAnswer};
use crate::generations::foreign::{self, LOOKS};
use crate::message::{Compared, Message};
use crate::report::Cause;
use crate::supervisor::Supervisor;
use bindonce_haproxy::cli::descriptor;
use bindonce_haproxy::config::Rendering;

/// How long haproxy may take to tell what it listens on while clients wait. If it takes longer, the
/// handover goes on, and it is asked again.
const ANSWER: Duration = Duration::from_secs(1);
/// How long it may take when it is asked again, before the answer to the reload: exit 0 is said only of
/// what was observed.
const ANSWER_LATE: Duration = Duration::from_secs(10);
/// Up to so many descriptors are asked for one by one, more all at once: that answer has its
/// connections too.
const ONE_BY_ONE: usize = 32;

impl Supervisor {
    /// Whether the start of a generation depends on what it listens on: not where it was started anew
    /// on a configuration that was compared before.
    fn is_compared(&self, id: GenerationId) -> bool {
        self.settings.kind.haproxy().is_some() && self.timeline.configuration_of(id) == Some(id)
    }

    /// Looks at what a generation that is ready has bound; `answers` if it can be asked already. False
    /// if there is nothing to wait for.
    pub(crate) fn compare(&self, id: GenerationId, how: &'static str, answers: bool) -> bool {
        let Some(generation) = self.generations.get(&id).filter(|_| self.is_compared(id)) else {
            return false;
        };
        let look = self.look_at_own(generation, id);
        let admin = generation.admin.clone().filter(|_| answers);
        let count = generation.listeners.len();
        let sender = self.sender.clone();
        crate::tasks::spawn(async move {
            let own = bindonce_sys::aside::within(LOOKS, look).await.unwrap_or_default();
            let deaf = match admin {
                Some(admin) => deaf(&admin, count, ANSWER).await,
                None => None,
            };
            let _ = sender.send(Message::Compared(id, how, Compared { own, deaf }));
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
        let text = self
            .unclaimed(id, &seen.own)
            .or_else(|| self.passed_over(id, deaf.unwrap_or_default()));
        match text {
            Some(text) => self.reads_otherwise(id, text),
            None => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.listens = deaf.is_some();
                }
                self.take_over_now(id, how);
            }
        }
    }

    /// Nobody accepts. The new generation goes on, and before the older ones are told to stop for good
    /// it must say that it listens on what it was given.
    pub(crate) fn proved(&mut self) {
        let compared = self.handover.newer().filter(|id| self.is_compared(*id));
        let newer = compared.and_then(|id| Some((id, self.generations.get_mut(&id)?)));
        let asked = newer.and_then(|(id, newer)| {
            let admin = newer.admin.clone()?;
            if newer.hold.is_some() {
                newer.let_go_on();
            } else {
                newer.pidfd.send(Number::SIGCONT).ok()?;
            }
            Some((id, admin, newer.listeners.len()))
        });
        let Some((id, admin, count)) = asked else { return self.feed(Event::Proved) };
        let sender = self.sender.clone();
        crate::tasks::spawn(async move {
            let deaf = deaf(&admin, count, ANSWER).await;
            let _ = sender.send(Message::Listens(id, deaf));
        });
    }

    /// A generation that goes on has said which of its listeners it passes over, or nothing in time.
    pub(crate) fn listens(&mut self, id: GenerationId, deaf: Option<&[usize]>) {
        if self.handover.newer() != Some(id) {
            return; // It has died, or the service is being shut down.
        }
        match self.passed_over(id, deaf.unwrap_or_default()) {
            Some(text) => self.reads_otherwise(id, text),
            None => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.listens = deaf.is_some();
                }
                self.feed(Event::Proved);
            }
        }
    }

    fn reads_otherwise(&mut self, id: GenerationId, text: String) {
        let pid = self.generations.get(&id).map(crate::generations::generation::Generation::pid);
        tracing::error!(generation = id.0, pid, "{text}");
        self.report.journal.record(
            Happening::new(event::Kind::GenerationFailed, text.clone()).generation(id.0).pid(pid),
        );
        self.refuse(
            id,
            Cause { text, hint: Some(requests::READS_OTHERWISE.to_owned()), ..Cause::default() },
        );
    }

    /// An address that a bind line names and that haproxy has bound by itself.
    fn unclaimed(&self, id: GenerationId, own: &BTreeSet<String>) -> Option<String> {
        let prepared = self.starts.configurations.get(&id)?;
        let rendering = prepared.rendering()?;
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
    fn passed_over(&self, id: GenerationId, deaf: &[usize]) -> Option<String> {
        passed_over(self.starts.configurations.get(&id)?.rendering()?, deaf)
    }

    /// Asks a generation that serves, where it could not be asked before older ones were told to stop
    /// for good, or did not answer: why the reload has failed, if it has.
    pub(crate) fn ask_late(&self, id: GenerationId) -> Option<oneshot::Receiver<Option<RpcError>>> {
        let generation =
            self.generations.get(&id).filter(|g| !g.listens && self.is_compared(id))?;
        let (admin, count) = (generation.admin.clone()?, generation.listeners.len());
        let (prepared, journal) =
            (self.starts.configurations.get(&id).cloned()?, Rc::clone(&self.report.journal));
        let (tell, told) = oneshot::channel();
        crate::tasks::spawn(async move {
            let why = match deaf(&admin, count, ANSWER_LATE).await {
                None => Some((
                    format!(
                        "generation {id} has taken over, but has not said on its admin socket within {} \
                         which listeners it listens on: nothing shows that it serves",
                        duration::format(ANSWER_LATE)
                    ),
                    "see what it does with `bindonce doctor`; if it stands still, run `bindonce reload` again",
                )),
                Some(deaf) => {
                    let text =
                        prepared.rendering().and_then(|rendering| passed_over(rendering, &deaf));
                    text.map(|text| {
                        let end = "it serves all the same: no older generation could resume";
                        (format!("{text}\n{end}"), requests::READS_OTHERWISE)
                    })
                }
            };
            if let Some((text, _)) = &why {
                tracing::error!(generation = id.0, "{text}");
                let happening = Happening::new(event::Kind::ReloadFailed, text.clone());
                journal.record(happening.generation(id.0));
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

fn passed_over(rendering: &Rendering, deaf: &[usize]) -> Option<String> {
    let mut places = deaf.iter().filter_map(|index| rendering.bindings.get(*index));
    let first = places.next()?;
    let more = match deaf.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    Some(format!(
        "haproxy does not listen on {} of {}{more}, which was claimed for it",
        first.listener.address, first.place
    ))
}

/// Asks haproxy which of its descriptors for `count` listeners it does not know. They follow that of
/// the admin socket. None if it does not answer within `limit`. None of them where it cannot tell: it
/// does not have the command, or its connection has ended, whose end is noticed elsewhere.
async fn deaf(admin: &Admin, count: usize, limit: Duration) -> Option<Vec<usize>> {
    match tokio::time::timeout(limit, ask(admin, count, limit)).await {
        Ok(Ok(deaf)) => Some(deaf),
        Ok(Err(NoAnswer::Closed)) => Some(Vec::new()),
        Ok(Err(NoAnswer::InTime)) | Err(_) => None,
    }
}

async fn ask(admin: &Admin, count: usize, limit: Duration) -> Result<Vec<usize>, NoAnswer> {
    let first = usize::try_from(inherit::FIRST).unwrap_or_default() + 1;
    if count > ONE_BY_ONE {
        let all = admin.ask("show fd", limit).await?;
        let known: BTreeSet<_> = all.lines().filter_map(descriptor).collect();
        // None at all: it does not have the command.
        let passed_over = |index: &usize| !known.is_empty() && !known.contains(&(first + index));
        return Ok((0..count).filter(passed_over).collect());
    }
    let look = async |fd: usize| {
        let answer = admin.ask(format!("show fd {fd}"), limit).await?;
        Ok(answer.lines().any(|line| descriptor(line) == Some(fd)))
    };
    let mut deaf = Vec::new();
    // That of the admin socket shows that it has the command, and what an answer looks like.
    if look(first - 1).await? {
        for index in 0..count {
            if !look(first + index).await? {
                deaf.push(index);
            }
        }
    }
    Ok(deaf)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What a haproxy tells that has the descriptors up to `last`, and that ends after so many answers: it
    /// closes its connection, or is silent from then on.
    fn told(last: usize, answers: usize, closes: bool) -> Option<Vec<usize>> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let talks = std::thread::spawn(move || {
            let lines = BufReader::new(theirs.try_clone().expect("a copy")).lines();
            for line in lines.take(answers).map_while(Result::ok) {
                let fd = line.rsplit(' ').next().and_then(|fd| fd.parse::<usize>().ok());
                let known = fd.filter(|fd| *fd <= last).map(|fd| format!("  {fd} : st=0x23(cl)\n"));
                write!(theirs, "{}\n> ", known.unwrap_or_default()).expect("answering");
            }
            (!closes).then_some(theirs)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = tokio::task::LocalSet::new();
        let deaf = local.block_on(&runtime.expect("a runtime"), async {
            let admin = Admin::resume(ours.into(), |_| ());
            // A minute for what answers; nothing at all for what is silent.
            let limit = if closes { 60_000 } else { 50 };
            deaf(&admin, 2, Duration::from_millis(limit)).await
        });
        drop(local); // Its end of the connection.
        drop(talks.join().expect("a haproxy"));
        deaf
    }

    #[test]
    fn what_is_not_said_in_time_is_not_taken_for_said() {
        let first = usize::try_from(inherit::FIRST).expect("a number");
        assert_eq!(told(first + 2, 9, true), Some(vec![]));
        assert_eq!(told(first + 1, 9, true), Some(vec![1]));
        assert_eq!(told(first + 2, 3, false), None, "silent at the second of its listeners");
        assert_eq!(told(first + 2, 3, true), Some(vec![]), "its end is noticed elsewhere");
    }
}
