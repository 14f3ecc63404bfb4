//! The answer to clients that wait for a reload: the generation that serves now, or why the new
//! generation failed.

use bindonce_core::duration;
use bindonce_core::event;
use bindonce_core::generation::{Failure, GenerationId, LONGEST_START, Outcome};
use bindonce_daemon::Happening;
use bindonce_wire::{ErrorCode, RpcError};

use crate::context::Context;
use crate::control;
use crate::generations::Generations;
use crate::generations::generation::Generation;
use crate::handover::promise::Unserved;
use crate::replies::{self, ENDING, Reloaded};
use crate::report::{Report, cause};

/// Data for the answer beside the outcome.
pub(crate) struct Now<'a> {
    pub(crate) generations: &'a Generations,
    /// The generation that serves.
    pub(crate) serving: Option<GenerationId>,
    /// The listeners of its predecessor that it leaves.
    pub(crate) unserved: Unserved,
    pub(crate) broker: Option<i32>,
}

impl Report {
    /// The answer to clients that wait for a reload. `cut` is the number of connections cut since
    /// it began.
    pub(crate) fn outcome(
        &mut self,
        cx: &Context,
        outcome: &Outcome,
        now: Now<'_>,
        cut: u64,
    ) -> control::Answer {
        match outcome {
            Outcome::Serving { id, ended, alone } => {
                self.counts.reloads += 1;
                self.measured.ended((!alone).then_some("not-alone"));
                let ended: Vec<_> = ended.iter().map(|id| id.0).collect();
                if !ended.is_empty() {
                    tracing::warn!(
                        generation = id.0,
                        ?ended,
                        cut,
                        "older generations had to be ended"
                    );
                }
                if !alone {
                    let is_left = |id: &u64| now.generations.get(&GenerationId(*id));
                    let left = ended.iter().find_map(is_left);
                    return Err(match left {
                        Some(left) => not_ended(cx, *id, left, &now),
                        None => strangers(cx, *id, &now),
                    });
                }
                let mut text = match ended.as_slice() {
                    [] => "serving alone".to_owned(),
                    ended => format!("serving alone; older generations had to be ended: {ended:?}"),
                };
                if cut > 0 {
                    text.push_str(&format!("; connections cut: {cut}"));
                }
                let (read_otherwise, startup) = match now.generations.get(id) {
                    Some(one) => {
                        (one.own.lines.iter().cloned().collect(), one.output.tail.startup())
                    }
                    None => (Vec::new(), String::new()),
                };
                let stopped_first = std::mem::take(&mut self.stopped_first);
                for (what, lines) in [
                    (
                        "haproxy uses the broker's socket for addresses that it bound itself",
                        &read_otherwise,
                    ),
                    (
                        "older generations that had bound these addresses were told to stop first",
                        &stopped_first,
                    ),
                ] {
                    if !lines.is_empty() {
                        let lines = lines.join("; ");
                        tracing::warn!(generation = id.0, "{what}: {lines}");
                        text.push_str(&format!("; {what}: {lines}"));
                    }
                }
                let pid = now.generations.pid(*id);
                cx.record(*id, pid, event::Kind::ReloadDone, text);
                let Unserved { left, none_kept } = now.unserved;
                replies::result(&Reloaded {
                    generation: id.0,
                    pid,
                    ended,
                    cut,
                    left,
                    none_kept,
                    read_otherwise,
                    stopped_first,
                    unseen: Vec::new(),
                    startup,
                    drained: None,
                })
            }
            Outcome::Failed(id, failure) => {
                self.counts.failed_reloads += 1;
                if let (Failure::NotReady, Some(unseen)) = (failure, self.failure.unseen) {
                    self.failure.hint = Some(unseen.hint().to_owned());
                }
                self.failure.text = self.failure_text(cx, *id, *failure);
                let text = self.failure.with_words();
                let serves = match now.serving {
                    Some(serving) => format!("generation {serving} still serves"),
                    None => "nothing serves".to_owned(),
                };
                self.announcer.troubled(&match now.serving {
                    Some(_) => format!("the last reload failed; {serves}"),
                    None => serves.clone(),
                });
                // The program's own output was passed on as it arrived.
                let first = self.failure.text.lines().next().unwrap_or_default();
                tracing::error!(generation = id.0, "not started; {serves}: {first}");
                let word = cause::word(*failure);
                self.measured.ended(Some(word));
                let pid = now.generations.pid(*id);
                let event = format!("{word}; {serves}: {text}");
                cx.record(*id, pid, event::Kind::ReloadFailed, event);
                let again =
                    || format!("correct that, then run `{}` again", cx.settings.command("reload"));
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, format!("{text}\n{serves}"))
                    .with_hint(self.failure.hint.clone().unwrap_or_else(again))
                    .with("generation", id.0)
                    .with("serving", now.serving.map(|id| id.0)))
            }
            Outcome::ShuttingDown => {
                let hint = "start it again: its next supervisor takes over what drains";
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, "the service is being shut down")
                    .with_hint(hint)
                    .with(ENDING, true))
            }
        }
    }

    fn failure_text(&self, cx: &Context, id: GenerationId, failure: Failure) -> String {
        let text = &self.failure.text;
        match failure {
            // It lives: what failed last was another one.
            Failure::StoppedInHandover => format!(
                "generation {id} was told to stop by another process before the older ones had closed their listeners"
            ),
            _ if self.failure.ours => text.clone(),
            Failure::NotStarted | Failure::Exited => text.clone(),
            Failure::NotReady => format!(
                "generation {id} was not ready within {} of its last progress (CPU time or output), or {LONGEST_START} times \
                 that in all; {}\n{text}",
                duration::format(cx.settings.timing.ready_timeout),
                self.failure
                    .unseen
                    .map_or("raise --ready-timeout if it needs longer", cause::Unseen::text),
            ),
            Failure::DiedInHandover => {
                format!("generation {id} died when it was about to take over\n{text}")
            }
        }
    }
}

/// The error for a new generation that serves although an older one does not end.
fn not_ended(cx: &Context, id: GenerationId, left: &Generation, now: &Now<'_>) -> RpcError {
    let text = format!(
        "generation {id} serves, but generation {}, pid {}, does not end, though it was sent SIGKILL: nothing shows \
         that it does not accept",
        left.id,
        left.pid()
    );
    tracing::error!(generation = id.0, "{text}");
    cx.record(id, now.generations.pid(id), event::Kind::ReloadFailed, text.as_str());
    RpcError::new(ErrorCode::NOT_ALONE, text)
        .with_hint(cause::does_not_end(left.pid()))
        .with("generation", id.0)
}

/// The error for a new generation that serves beside an unknown process; names that process.
fn strangers(cx: &Context, id: GenerationId, now: &Now<'_>) -> RpcError {
    let Some(generation) = now.generations.get(&id) else {
        return RpcError::new(ErrorCode::INTERNAL, "the generation is gone");
    };
    let listeners = generation.listeners.iter();
    let strangers = now.generations.strangers(&cx.settings.kind, now.broker, listeners);
    let named: Vec<_> =
        strangers.iter().map(|(pid, command)| format!("pid {pid} ({command})")).collect();
    let who =
        if named.is_empty() { "no process that /proc shows".to_owned() } else { named.join(", ") };
    let text = format!(
        "generation {id} serves, but a process that is no generation of this service also \
         accepts on its listeners; they are also held by: {who}"
    );
    tracing::error!(generation = id.0, "{text}");
    cx.record(id, Some(generation.pid()), event::Kind::ReloadFailed, text.as_str());
    for (pid, command) in &strangers {
        let text = format!("holds listeners of the service and may accept: {command}");
        cx.journal.record(Happening::new(event::Kind::UnknownAcceptor, text).pid(*pid));
    }
    let pids: Vec<_> = strangers.iter().map(|(pid, _)| *pid).collect();
    RpcError::new(ErrorCode::NOT_ALONE, text)
        .with_hint(format!("end that process, then run `{}`", cx.settings.command("reload")))
        .with("generation", id.0)
        .with("strangers", pids)
}
