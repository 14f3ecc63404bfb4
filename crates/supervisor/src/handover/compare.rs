//! Compares the listeners that a generation of haproxy really listens on with those claimed for it.
//! On a listener that haproxy passes over, clients would wait forever; an address of a `bind` line
//! that haproxy bound itself is not protected. Either means that bindonce and haproxy read the
//! configuration differently, and fails the start.
//!
//! The addresses that haproxy bound are checked before anything older is touched. The descriptors
//! that it listens on are known only once it continues ([`super::listening`]); in a reload the
//! older generations are still paused then, and resume if the new one is ended. A generation
//! started while none serves is compared too, and serves whatever it listens on.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use bindonce_haproxy::config::Rendering;

use crate::context::Context;
use crate::control::requests;
use crate::generations::foreign;
use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;
use crate::generations::start::Prepared;
use crate::handover::listening::Listening;
use crate::message::{Compared, Message};

/// How long haproxy may take to name its listeners while clients wait. If it takes longer, the
/// handover continues and haproxy is asked again later.
const ANSWER: Duration = Duration::from_secs(1);
/// How long haproxy may take when it is asked again, before the reload is answered: exit code 0 is
/// given only for an observed result.
const ANSWER_LATE: Duration = Duration::from_secs(10);

/// Why a reload failed that was already reported as done; the value arrives as soon as it is known.
pub(crate) type Late = oneshot::Receiver<Option<RpcError>>;

/// Looks at the addresses that a ready generation has bound, and if it is `running`, also at those
/// that it listens on. False if there is nothing to compare.
pub(crate) fn begin(
    cx: &Context,
    generation: &Generation,
    how: &'static str,
    running: bool,
) -> bool {
    let Some(listening) = Listening::of(&cx.settings.kind, generation) else { return false };
    let (id, own) = (generation.id, foreign::own(cx, generation));
    let cx = cx.clone();
    crate::tasks::spawn(async move {
        let own = own.await;
        let missing = if running { listening.missing(ANSWER).await } else { None };
        cx.send(Message::Compared(id, how, Compared { own: Some(own), missing }));
    });
    true
}

/// Looks at what a generation that continues listens on, and, where `own` does, at the addresses
/// that it has bound.
pub(crate) async fn look(
    listening: &Listening,
    own: Option<impl Future<Output = BTreeSet<String>>>,
) -> Compared {
    let own = async {
        match own {
            Some(own) => bindonce_sys::patience::timeout(ANSWER, own).await.ok(),
            None => None,
        }
    };
    let (own, missing) = tokio::join!(own, listening.missing(ANSWER));
    Compared { own, missing }
}

/// An address that a bind line names and that haproxy bound itself.
pub(crate) fn unclaimed(rendering: &Rendering, own: &BTreeSet<String>) -> Option<String> {
    let line = own.iter().find_map(|address| unclaimed_line(rendering, address))?;
    Some(format!("haproxy has bound {line}, which was not claimed"))
}

/// The bind line that names an address and was not claimed, in words.
pub(crate) fn unclaimed_line(rendering: &Rendering, address: &str) -> Option<String> {
    let mut left = rendering.left_alone.iter();
    if left.any(|line| foreign::stands_for(line, address)) {
        return None;
    }
    let place = rendering.unclaimed_bind(address)?;
    Some(format!("{address} by itself, of the bind line {place}"))
}

/// Compares a serving generation, where that was not possible before the older ones were told to
/// stop for good, or it did not answer. Returns why the reload failed, if it did.
pub(crate) fn ask_late(
    cx: &Context,
    generation: &Generation,
    listeners: Listeners,
) -> Option<Late> {
    let uncompared = generation.readiness.uncompared;
    if generation.readiness.listens && !uncompared {
        return None;
    }
    let (id, listening) = (generation.id, Listening::of(&cx.settings.kind, generation)?);
    let own = uncompared.then(|| foreign::own(cx, generation));
    let reload = cx.settings.command("reload");
    Some(answer_late(cx, id, async move {
        let differs = |text: String| {
            let text = format!("{text}\nit serves all the same: no older generation could resume");
            Some((text, requests::READS_OTHERWISE.to_owned()))
        };
        if let Some(own) = own {
            let own = own.await;
            let rendering = listeners.prepared.as_ref().and_then(|prepared| prepared.rendering());
            if let Some(text) = rendering.and_then(|rendering| unclaimed(rendering, &own)) {
                return differs(text);
            }
        }
        match listening.missing(ANSWER_LATE).await {
            None => Some((
                format!(
                    "generation {id} has taken over, but {}: nothing shows that it serves",
                    listening.silence(ANSWER_LATE)
                ),
                format!(
                    "see what it does with `bindonce doctor`; if it stands still, run `{reload}` again"
                ),
            )),
            Some(missing) => {
                differs(format!("haproxy does not listen on {}", listeners.some(&missing)?))
            }
        }
    }))
}

/// Asks a paused generation as [`watch_resumed`] does. Returns why it does not serve as before, if
/// it does not in time.
pub(crate) fn ask_resumed(
    cx: &Context,
    generation: &mut Generation,
    listeners: Listeners,
) -> Option<Late> {
    let (id, listening) = (generation.id, watch_resumed(cx, generation)?);
    let hint = format!(
        "see what it does with `bindonce doctor`; correct the configuration, then run `{}`: the next \
         generation takes over from it",
        cx.settings.command("reload")
    );
    Some(answer_late(cx, id, async move {
        let text = match listening.missing(ANSWER_LATE).await {
            None => format!(
                "generation {id} was resumed (SIGTTIN), but {}",
                listening.silence(ANSWER_LATE)
            ),
            Some(missing) => format!(
                "generation {id} was told to accept again, and does not listen on {}",
                listeners.some(&missing)?
            ),
        };
        Some((text, hint))
    }))
}

/// Begins to ask a generation that was told to accept again whether it does, until it does. Returns
/// how it is asked; None for a program other than haproxy, which is not asked.
pub(crate) fn watch_resumed(cx: &Context, generation: &mut Generation) -> Option<Rc<Listening>> {
    let listening = Listening::of(&cx.settings.kind, generation)?.after_pause();
    let (id, listening) = (generation.id, Rc::new(listening));
    let (inbox, asked) = (cx.clone(), Rc::clone(&listening));
    let task = crate::tasks::spawn(async move {
        // A signal sent to a stopped process is lost when it is continued.
        while asked.missing(ANSWER).await.is_none_or(|missing| !missing.is_empty()) {
            inbox.send(Message::StillPaused(id));
            tokio::time::sleep(ANSWER).await;
        }
    });
    generation.tasks.ask_resumed(task.abort_handle());
    Some(listening)
}

/// Logs and records why the reload failed, if it did, and returns it for the client.
fn answer_late(
    cx: &Context,
    id: GenerationId,
    why: impl Future<Output = Option<(String, String)>> + 'static,
) -> Late {
    let (send, receive) = oneshot::channel();
    let cx = cx.clone();
    crate::tasks::spawn(async move {
        let why = why.await;
        if let Some((text, _)) = &why {
            tracing::error!(generation = id.0, "{text}");
            cx.record(id, None, event::Kind::ReloadFailed, text.as_str());
        }
        // The client may have gone away.
        let _ = send.send(
            why.map(|(text, hint)| RpcError::new(ErrorCode::RELOAD_FAILED, text).with_hint(hint)),
        );
    });
    receive
}

/// The listeners of a generation, named as users know them.
pub(crate) struct Listeners {
    pub(crate) prepared: Option<Rc<Prepared>>,
    pub(crate) listeners: Vec<Rc<HeldListener>>,
}

impl Listeners {
    /// The first listener of `indexes`, and how many more there are. None if the list is empty.
    pub(crate) fn some(&self, indexes: &[usize]) -> Option<String> {
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
