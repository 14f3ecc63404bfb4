//! Whether a caller may do what it asks, under the current rules.
//!
//! A decision only reads memory, so it comes before any work that costs more.

use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::event::Kind;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_core::name::Name;
use bindonce_core::policy::{Denial, Policy, Rule, Verb, Verdict};
use bindonce_daemon::rpc::{Admission, Caller};
use bindonce_daemon::{Happening, Reporter};
use bindonce_wire::{ErrorCode, RpcError};

/// The rules of one broker.
#[derive(Debug)]
pub(crate) struct Access {
    policy: Policy,
    reporter: Rc<Reporter>,
}

impl Access {
    /// Root and this user may do everything, other users nothing.
    pub(crate) fn owner_only(owner: u32, reporter: Rc<Reporter>) -> Self {
        Self { policy: Policy::owner_only(owner), reporter }
    }

    /// Replaces the rules, from the next request on.
    pub(crate) fn set_rules(&mut self, rules: Vec<Rule>) {
        self.policy = self.policy.clone().with_rules(rules);
    }

    /// How a new connection is treated.
    pub(crate) fn admission(&self, caller: &Caller) -> Admission {
        let unknown = !self.policy.knows(caller.peer, &caller.groups);
        Admission { unknown, exempt: self.owns_names(caller) }
    }

    /// Whether the caller may take names back: root and the broker's own user may.
    pub(crate) fn owns_names(&self, caller: &Caller) -> bool {
        self.policy.owns_names(caller.peer.uid)
    }

    fn judge(&self, caller: &Caller, verb: Verb, subject: Option<&ListenSpec>) -> Verdict {
        self.policy.judge(caller.peer, &caller.groups, verb, subject)
    }

    /// Whether the caller may administer the broker.
    pub(crate) fn is_admin(&self, caller: &Caller) -> bool {
        self.judge(caller, Verb::Admin, None) == Verdict::Allow
    }

    /// Whether the caller may do this, to these listeners if a subject is given.
    pub(crate) fn allow(
        &self,
        caller: &Caller,
        verb: Verb,
        subject: Option<&ListenSpec>,
    ) -> Result<(), RpcError> {
        let verdict = self.judge(caller, verb, subject);
        verdict.into_result().map_err(|denial| self.denied(caller, &denial))
    }

    /// Whether the caller may do this to every possible listener.
    pub(crate) fn allow_all(&self, caller: &Caller, verb: Verb) -> Result<(), RpcError> {
        let verdict = self.policy.judge_all(caller.peer, &caller.groups, verb);
        verdict.into_result().map_err(|denial| self.denied(caller, &denial))
    }

    /// Whether the caller may claim these listeners. Returns true if only while they are held,
    /// which is what the right to use gives.
    pub(crate) fn may_claim(
        &self,
        caller: &Caller,
        spec: &ListenSpec,
        change: bool,
    ) -> Result<bool, RpcError> {
        let Verdict::Deny(denial) = self.judge(caller, Verb::Bind, Some(spec)) else {
            return Ok(false);
        };
        let may_use = || self.judge(caller, Verb::Use, Some(spec)) == Verdict::Allow;
        if !change && may_use() { Ok(true) } else { Err(self.denied(caller, &denial)) }
    }

    /// Whether the caller may give a listener this name.
    pub(crate) fn may_name(&self, caller: &Caller, name: &Name) -> bool {
        self.policy.may_name(caller.peer, &caller.groups, name)
    }

    /// Denies a listener's name. A rule with these `names` would allow the request.
    pub(crate) fn name_denied(&self, caller: &Caller, name: &Name, names: &str) -> RpcError {
        self.unnamed(caller, "names", &format!("name a listener {name}"), names)
    }

    /// Whether the caller may join a service: a rule must name it. An administrator may join any.
    pub(crate) fn allow_service(&self, caller: &Caller, service: &Name) -> Result<(), RpcError> {
        if self.policy.may_join(caller.peer, &caller.groups, service) || self.is_admin(caller) {
            return Ok(());
        }
        let what = format!("join the service {service}");
        Err(self.unnamed(caller, "services", &what, service.as_str()))
    }

    /// Denies a name that no rule gives the caller.
    fn unnamed(&self, caller: &Caller, key: &str, what: &str, name: &str) -> RpcError {
        let peer = caller.peer;
        let text = format!("{peer} may not {what}: no rule allows it");
        let needed = format!("[[rule]] uid = {} {key} = [\"{name}\"]", peer.uid);
        if let Some(left_out) = self.reporter.refused(peer.uid, "denied") {
            let (uid, gid, pid) = (peer.uid, peer.gid, peer.pid);
            tracing::warn!(uid, gid, pid, needed, left_out, "denied: {text}");
        }
        let happening = Happening::new(Kind::Denied, text.clone());
        self.reporter.record(happening.pid(i32::try_from(peer.pid).ok()));
        RpcError::new(ErrorCode::DENIED, text).with_hint(format!(
            "ask the administrator of the broker to add `{key} = [\"{name}\"]` to your rule, or leave the name out"
        ))
    }

    /// Whether the caller may do anything at all.
    pub(crate) fn known(&self, caller: &Caller) -> Result<(), RpcError> {
        let may = self.policy.knows(caller.peer, &caller.groups);
        if may { Ok(()) } else { self.allow(caller, Verb::List, None) }
    }

    /// Whether the caller may see a listener.
    pub(crate) fn may_see(&self, caller: &Caller, listener: &Arc<Listener>) -> bool {
        let spec = ListenSpec::from(Arc::clone(listener));
        self.judge(caller, Verb::List, Some(&spec)) == Verdict::Allow
    }

    /// Whether the caller may see every possible listener.
    pub(crate) fn may_see_all(&self, caller: &Caller) -> bool {
        let verdict = self.policy.judge_all(caller.peer, &caller.groups, Verb::List);
        verdict == Verdict::Allow
    }

    /// Logs the whole denial; the caller gets the part that concerns it.
    fn denied(&self, caller: &Caller, denial: &Denial) -> RpcError {
        if let Some(left_out) = self.reporter.refused(denial.peer.uid, "denied") {
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
        self.reporter.record(happening.pid(i32::try_from(denial.peer.pid).ok()));
        error(denial)
    }
}

/// A denial as sent to the caller.
fn error(denial: &Denial) -> RpcError {
    let mut error = RpcError::new(ErrorCode::DENIED, denial.to_string());
    if let Some(spec) = &denial.subject {
        error = error.with("address", spec.first.address.to_string());
    }
    error.with_hint(if denial.owner.is_some() {
        "run the command as one of these users, or add a rule to the broker's configuration"
    } else {
        "ask the administrator of the broker for a rule; its log says which one is needed"
    })
}
