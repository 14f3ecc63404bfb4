//! Whether a caller may do what it asks, by the rules as they are now.
//!
//! Everything here is computed from what is in memory, so it comes before whatever costs more.

use std::cell::RefCell;

use bindonce_core::event::Kind;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_core::name::Name;
use bindonce_core::policy::{Denial, Verb, Verdict};
use bindonce_core::registry::Held;
use bindonce_observe::Happening;
use bindonce_wire::result::Problem;
use bindonce_wire::{ErrorCode, RpcError};

use crate::answer;
use crate::requests::Caller;
use crate::socket::Socket;
use crate::state::State;

/// Whether the caller may do this, to these listeners where some are meant.
pub(crate) fn allow(
    state: &RefCell<State>,
    caller: &Caller,
    verb: Verb,
    subject: Option<&ListenSpec>,
) -> Result<(), RpcError> {
    let state = state.borrow();
    let verdict = state.policy.judge(caller.peer, &caller.groups, verb, subject);
    verdict.into_result().map_err(|denial| denied(&state, caller, &denial))
}

/// Whether the caller may do this to every listener, whichever there may be.
pub(crate) fn allow_all(
    state: &RefCell<State>,
    caller: &Caller,
    verb: Verb,
) -> Result<(), RpcError> {
    let state = state.borrow();
    let verdict = state.policy.judge_all(caller.peer, &caller.groups, verb);
    verdict.into_result().map_err(|denial| denied(&state, caller, &denial))
}

/// Whether the caller may do this to the listener of a name. If there is none, whoever may do
/// it to any listener hears so.
pub(crate) fn allow_named(
    state: &RefCell<State>,
    caller: &Caller,
    verb: Verb,
    name: &Name,
) -> Result<(), RpcError> {
    let held = {
        let state = state.borrow();
        state.registry.by_name(name).map(|held| ListenSpec::from(held.listener.clone()))
    };
    allow(state, caller, verb, held.as_ref())
}

/// Whether the caller may have these: who may bind them may use them, and what is held
/// already takes no more than the right to use it.
pub(crate) fn allow_claim(
    state: &RefCell<State>,
    caller: &Caller,
    spec: &ListenSpec,
    change: bool,
) -> Result<(), RpcError> {
    let state = state.borrow();
    let judge = |verb| state.policy.judge(caller.peer, &caller.groups, verb, Some(spec));
    let Verdict::Deny(denial) = judge(Verb::Bind) else { return Ok(()) };
    let held = || spec.expand().all(|listener| state.registry.by_key(&listener).is_some());
    if !change && judge(Verb::Use) == Verdict::Allow && held() {
        return Ok(());
    }
    Err(denied(&state, caller, &denial))
}

/// Whether the caller may give a listener the name that it asks for. What has the name already
/// keeps it.
pub(crate) fn allow_name(
    state: &RefCell<State>,
    caller: &Caller,
    spec: &ListenSpec,
) -> Result<(), RpcError> {
    let Some(name) = &spec.first.name else { return Ok(()) };
    let state = state.borrow();
    let has_it = |held: &Held<Socket>| held.listener.name.as_ref() == Some(name);
    if state.policy.may_name(caller.peer, &caller.groups, name)
        || state.registry.by_key(&spec.first).is_some_and(has_it)
    {
        return Ok(());
    }
    Err(unnamed(&state, caller, "names", &format!("name a listener {name}"), name))
}

/// Whether the caller may join a service: one that a rule says, or one of its own user's.
pub(crate) fn allow_service(
    state: &State,
    caller: &Caller,
    service: &Name,
) -> Result<(), RpcError> {
    let Caller { peer, groups, .. } = caller;
    let admin = || state.policy.judge(*peer, groups, Verb::Admin, None) == Verdict::Allow;
    if state.policy.may_join(*peer, groups, service)
        || state.succession.is_joined(service)
        || admin()
    {
        return Ok(());
    }
    Err(unnamed(state, caller, "services", &format!("join the service {service}"), service))
}

/// No rule says that name for the caller.
fn unnamed(state: &State, caller: &Caller, key: &str, what: &str, name: &Name) -> RpcError {
    let peer = caller.peer;
    let text = format!("{peer} may not {what}: no rule allows it");
    let needed = format!("[[rule]] uid = {} {key} = [\"{name}\"]", peer.uid);
    if let Some(left_out) = state.told.refused(peer.uid, "denied") {
        let (uid, gid, pid) = (peer.uid, peer.gid, peer.pid);
        tracing::warn!(uid, gid, pid, needed, left_out, "denied: {text}");
    }
    let happening = Happening::new(Kind::Denied, text.clone());
    state.journal.record(happening.pid(i32::try_from(peer.pid).ok()));
    RpcError::new(ErrorCode::DENIED, text).with_hint(format!(
        "ask whoever runs the broker to add `{key} = [\"{name}\"]` to your rule, or leave the name out"
    ))
}

/// Whether the caller may do anything at all.
pub(crate) fn known(state: &RefCell<State>, caller: &Caller) -> Result<(), RpcError> {
    let may = state.borrow().policy.knows(caller.peer, &caller.groups);
    if may { Ok(()) } else { allow(state, caller, Verb::List, None) }
}

/// Which listeners the caller may see.
pub(crate) fn visible(state: &RefCell<State>, caller: &Caller) -> impl Fn(&Listener) -> bool {
    let policy = state.borrow().policy.clone();
    let caller = caller.clone();
    move |listener| {
        let spec = ListenSpec::from(listener.clone());
        let verdict = policy.judge(caller.peer, &caller.groups, Verb::List, Some(&spec));
        verdict == Verdict::Allow
    }
}

/// What the broker cannot do, for a caller who may see every listener.
pub(crate) fn problems(state: &RefCell<State>, caller: &Caller) -> Vec<Problem> {
    let state = state.borrow();
    match state.policy.judge_all(caller.peer, &caller.groups, Verb::List) {
        Verdict::Allow => state.problems(),
        Verdict::Deny(_) => Vec::new(),
    }
}

/// The log hears all of it, the caller what concerns it.
fn denied(state: &State, caller: &Caller, denial: &Denial) -> RpcError {
    if let Some(left_out) = state.told.refused(denial.peer.uid, "denied") {
        tracing::warn!(
            uid = denial.peer.uid,
            gid = denial.peer.gid,
            pid = denial.peer.pid,
            groups = ?caller.groups,
            needed = denial.rule_needed(),
            left_out,
            "denied: {denial}"
        );
    }
    let happening = Happening::new(Kind::Denied, denial.to_string());
    state.journal.record(happening.pid(i32::try_from(denial.peer.pid).ok()));
    answer::denied(denial)
}
