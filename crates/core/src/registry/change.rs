//! Options of a claim: they must equal those of the listener or, if the claim says so, are changed
//! on its socket in place.
//!
//! The parts of the key (the address, the device, `v6only`, the network namespace) belong to a
//! socket from bind(2) on and are never changed here: another key is another listener. Where the
//! two cannot coexist, the claim is refused.

use std::sync::Arc;

use super::Registry;
use super::event::{Action, Change};
use super::ids::{ConnectionId, ListenerId};
use super::plan::{Outcome, Pending, Phase, Stop, Who};
use super::refusal::Refusal;
use crate::listener::{Listener, Options};
use crate::time::Timestamp;

impl<H> Registry<H> {
    /// Checks that each given option equals that of the listener, or plans the change with
    /// `change`.
    pub(super) fn check_options(
        &self,
        plan: &mut Pending<H>,
        id: ListenerId,
        asked: &Arc<Listener>,
        change: bool,
    ) -> Result<(), Stop> {
        if asked.options == Options::default() {
            return Ok(());
        }
        if let Some(planned) = plan.changes.iter().find(|planned| planned.listener == id) {
            let Some((option, has)) = difference(&asked.options, &planned.options, None) else {
                return Ok(());
            };
            let address = asked.address.clone();
            let other = Listener { name: None, address, options: planned.options.clone() }.into();
            let asked = Arc::clone(asked);
            return Err(Refusal::OptionsInRequest { asked, other, option, has }.into());
        }
        let (has, backlog) = match (plan.opening.planned(id), self.held.get(&id)) {
            (Some(new), _) => (&new.listener, new.listener.options.backlog),
            (None, Some(held)) => (&held.listener, Some(held.opened.backlog)),
            (None, None) => return Ok(()),
        };
        let Some((option, has)) = difference(&asked.options, &has.options, backlog) else {
            return Ok(());
        };
        let refusal = match (self.who(plan, id), self.held.get(&id)) {
            (Some(Who::Held(_)), Some(held)) if change => {
                if let Some(other) = self.pending.values().find(|other| other.changes_one(id)) {
                    return Err(Stop::Wait(Some(other.connection)));
                }
                let options = overlaid(&held.listener.options, &asked.options);
                plan.changes.push(Change { listener: id, options });
                return Ok(());
            }
            (Some(Who::Held(held)), _) => {
                Refusal::Options { asked: Arc::clone(asked), option, has, held }
            }
            (Some(Who::New(other)), _) => {
                Refusal::OptionsInRequest { asked: Arc::clone(asked), other, option, has }
            }
            (None, _) => return Ok(()),
        };
        Err(refusal.into())
    }

    pub(super) fn changed(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        backlogs: &[u32],
        actions: &mut Vec<Action<H>>,
    ) {
        let Some(mut plan) = self.pending.remove(&id) else { return };
        for (change, backlog) in std::mem::take(&mut plan.changes).into_iter().zip(backlogs) {
            // The claim counts as a lease, so nobody has released it.
            if let Some(held) = self.held.get_mut(&change.listener) {
                Arc::make_mut(&mut held.listener).options = change.options;
                held.edition += 1;
                held.opened.backlog = *backlog;
            }
        }
        plan.phase = Phase::Granting;
        self.go_on(now, plan, self.at_once, actions);
    }

    pub(super) fn change_failed(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        actions: &mut Vec<Action<H>>,
    ) {
        if let Some(mut plan) = self.pending.remove(&id) {
            plan.phase = Phase::Undoing(Outcome::NotDone);
            self.go_on(now, plan, self.at_once, actions);
        }
    }
}

/// `has`, overlaid with every option that `asked` sets.
fn overlaid(has: &Options, asked: &Options) -> Options {
    Options {
        backlog: asked.backlog.or(has.backlog),
        transparent: asked.transparent || has.transparent,
        freebind: asked.freebind || has.freebind,
        blocking: asked.blocking || has.blocking,
        mode: asked.mode.or(has.mode),
        user: asked.user.clone().or_else(|| has.user.clone()),
        group: asked.group.clone().or_else(|| has.group.clone()),
        // These belong to the key and are equal.
        v6only: has.v6only,
        mptcp: has.mptcp,
        interface: has.interface.clone(),
        netns: has.netns.clone(),
    }
}

/// The first given option that differs from the listener's: as asked for, and as the listener has
/// it. `backlog` is the one in effect.
fn difference(asked: &Options, has: &Options, backlog: Option<u32>) -> Option<(String, String)> {
    let text = |name: &str, asked: &Option<String>, has: &Option<String>| {
        let asked = asked.as_ref().filter(|_| asked != has)?;
        let has = match has {
            Some(has) => format!("{name}={has}"),
            None => format!("no {name}"),
        };
        Some((format!("{name}={asked}"), has))
    };
    let flag = |name: &str, asked: bool, has: bool| {
        (asked && !has).then(|| (name.to_owned(), format!("no {name}")))
    };
    if let Some(asked) = asked.backlog {
        if Some(asked) != has.backlog && Some(asked) != backlog {
            let has = match has.backlog.or(backlog) {
                Some(has) => format!("backlog={has}"),
                None => "the system's backlog".to_owned(),
            };
            return Some((format!("backlog={asked}"), has));
        }
    }
    if let Some(mode) = asked.mode.filter(|_| asked.mode != has.mode) {
        let has = match has.mode {
            Some(has) => format!("mode={has:04o}"),
            None => "the default mode".to_owned(),
        };
        return Some((format!("mode={mode:04o}"), has));
    }
    flag("transparent", asked.transparent, has.transparent)
        .or_else(|| flag("freebind", asked.freebind, has.freebind))
        .or_else(|| flag("blocking", asked.blocking, has.blocking))
        .or_else(|| text("user", &asked.user, &has.user))
        .or_else(|| text("group", &asked.group, &has.group))
}
