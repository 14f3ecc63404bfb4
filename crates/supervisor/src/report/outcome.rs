//! The answer to everybody who waits for a reload: what serves now, or why the new generation failed.

use bindonce_core::duration;
use bindonce_core::event;
use bindonce_core::generation::{Failure, GenerationId, Outcome};
use bindonce_daemon::Happening;
use bindonce_wire::{ErrorCode, RpcError};

use crate::control;
use crate::generations::generation::Generation;
use crate::generations::starts::Kept;
use crate::replies::{self, Reloaded};
use crate::report::cause;
use crate::supervisor::Supervisor;

impl Supervisor {
    /// The answer to everybody who waits for a reload.
    pub(crate) fn outcome(&mut self, outcome: &Outcome) -> control::Answer {
        match outcome {
            Outcome::Serving { id, ended, alone } => {
                self.report.counts.reloads += 1;
                self.report.measured.ended((!alone).then_some("not-alone"));
                let ended: Vec<_> = ended.iter().map(|id| id.0).collect();
                if !ended.is_empty() {
                    tracing::warn!(generation = id.0, ?ended, "older generations had to be ended");
                }
                if !alone {
                    return Err(self.strangers(*id));
                }
                let text = match ended.as_slice() {
                    [] => "serving alone".to_owned(),
                    ended => format!("serving alone; older generations had to be ended: {ended:?}"),
                };
                self.record(*id, event::Kind::ReloadDone, text);
                let pid = self.generations.get(id).map(Generation::pid);
                let Kept { left, none: none_kept } = std::mem::take(&mut self.starts.kept);
                replies::result(&Reloaded { generation: id.0, pid, ended, left, none_kept })
            }
            Outcome::Failed(id, failure) => {
                self.report.counts.failures += 1;
                let serving = self.timeline.serving();
                let story = self.failure_story(*id, *failure);
                let kept = match serving {
                    Some(serving) => format!("generation {serving} serves on"),
                    None => "nothing serves".to_owned(),
                };
                // The program's own words have been passed on as they came.
                let first = story.lines().next().unwrap_or_default();
                tracing::error!(generation = id.0, "not started; {kept}: {first}");
                let cause = cause(*failure);
                self.report.measured.ended(Some(cause));
                self.record(*id, event::Kind::ReloadFailed, format!("{cause}; {kept}: {story}"));
                let hint = self.report.failure.hint.as_deref();
                let text = format!("{story}\n{kept}");
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, text)
                    .with_hint(hint.unwrap_or("correct that, then run `bindonce reload` again"))
                    .with("generation", id.0)
                    .with("serving", serving.map(|id| id.0)))
            }
            Outcome::ShuttingDown => {
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, "the service is being shut down")
                    .with_hint("start it again with `bindonce run`"))
            }
        }
    }

    fn failure_story(&self, id: GenerationId, failure: Failure) -> String {
        match failure {
            _ if self.report.failure.ours => self.report.failure.text.clone(),
            Failure::NotStarted | Failure::Exited => self.report.failure.text.clone(),
            Failure::NotReady => format!(
                "generation {id} was not ready within {}; raise --ready-timeout if it needs longer\n{}",
                duration::format(self.settings.timing.ready_timeout),
                self.report.failure.text
            ),
            Failure::DiedInHandover => {
                format!(
                    "generation {id} died when it was about to take over\n{}",
                    self.report.failure.text
                )
            }
        }
    }

    /// The new generation serves, and so does somebody unknown: says who.
    fn strangers(&self, id: GenerationId) -> RpcError {
        let Some(generation) = self.generations.get(&id) else {
            return RpcError::new(ErrorCode::INTERNAL, "the generation is gone");
        };
        let strangers = self.strangers_on(generation.listeners.iter());
        let named: Vec<_> =
            strangers.iter().map(|(pid, command)| format!("pid {pid} ({command})")).collect();
        let who =
            if named.is_empty() { "nobody that /proc shows".to_owned() } else { named.join(", ") };
        let text = format!(
            "generation {id} serves, but a process that is no generation of this service also \
             accepts on its listeners; they are also held by: {who}"
        );
        tracing::error!(generation = id.0, "{text}");
        self.record(id, event::Kind::ReloadFailed, text.as_str());
        for (pid, command) in &strangers {
            let text = format!("holds listeners of the service and may accept: {command}");
            self.report
                .journal
                .record(Happening::new(event::Kind::UnknownAcceptor, text).pid(*pid));
        }
        let pids: Vec<_> = strangers.iter().map(|(pid, _)| *pid).collect();
        RpcError::new(ErrorCode::NOT_ALONE, text)
            .with_hint("end that process, then run `bindonce reload`")
            .with("generation", id.0)
            .with("strangers", pids)
    }
}
