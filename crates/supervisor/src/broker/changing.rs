//! Listener options that differ between a new generation's configuration and the older one's:
//! changed when the new generation serves.

use std::fmt::Write as _;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use crate::broker::lease::LeaseUpdate;
use crate::generations::changes;
use crate::supervisor::Supervisor;

/// How long the broker may take to change all of them.
const CHANGED: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Has the broker change the listener options that this generation, which serves, wants
    /// changed. The receiver gives the error if some could not be changed.
    pub(crate) fn change_options(
        &mut self,
        id: GenerationId,
    ) -> Option<oneshot::Receiver<Option<RpcError>>> {
        let generation = self.generations.get_mut(&id)?;
        let changes = std::mem::take(&mut generation.lease.changes);
        if changes.is_empty() {
            return None;
        }
        let (pid, news, default) =
            (generation.pid(), generation.lease.news.clone(), changes::default());
        let known = self.generations.descriptors();
        let mut waiting = Vec::new();
        for change in changes {
            let label = change.listener.label();
            if change.was.transparent && !change.listener.options.transparent {
                tracing::warn!(
                    generation = id.0,
                    listener = label,
                    "stays `transparent` although its line no longer says so: only a new socket changes that (`bindonce release`)"
                );
            }
            let ours = self.leases.ours.contains(&label);
            let listener = Box::new(change.asked(ours.then_some(&default)));
            let (reply, changed) = oneshot::channel();
            // The receiving task lives as long as the generation.
            let _ = news.send(LeaseUpdate::Claim { listener, known: known.clone(), reply });
            waiting.push(changed);
        }
        let (send, receive) = oneshot::channel();
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let mut failed = String::new();
            let all = async {
                for changed in waiting {
                    if let Ok(Err((_, error))) = changed.await {
                        let _ = write!(failed, "\n{error}");
                    }
                }
            };
            if bindonce_sys::patience::timeout(CHANGED, all).await.is_err() {
                failed.push_str("\nthe broker does not answer");
            }
            let text = (!failed.is_empty())
                .then(|| format!("generation {id} serves, with the options of its listeners as they were:{failed}"));
            if let Some(text) = &text {
                tracing::error!(generation = id.0, "{text}");
                cx.record(id, Some(pid), event::Kind::ReloadFailed, text.as_str());
            }
            let reload = cx.settings.command("reload");
            let hint = format!("correct the options of these lines, then run `{reload}` again");
            // The client may have gone away.
            let _ = send.send(
                text.map(|text| RpcError::new(ErrorCode::RELOAD_FAILED, text).with_hint(hint)),
            );
        });
        Some(receive)
    }
}
