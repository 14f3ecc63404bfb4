//! Pauses older generations while the new one binds an address that it does not get from the
//! broker.
//!
//! A haproxy whose own `bind` fails with "address in use" asks the older one to let go of the
//! address and retries for about two seconds. The older one lets go by pausing, and then accepts on
//! none of its listeners. So a pause is short ([`PAUSED_FOR_ADDRESS`]), happens once for each new
//! generation, and ends with the handover or with any sign that the new generation has failed.

use std::collections::BTreeSet;

use super::life::{Life, Stage};
use super::operation::{Operation, Yielding};
use super::timeline::Timeline;
use super::{Action, GenerationId, Moment, PAUSED_FOR_ADDRESS, Reason, Signal};

impl Timeline {
    /// A starting generation cannot bind an address of its own that an older one has.
    pub(super) fn address_in_use(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        let serves = |life: &Life| matches!(life.stage, Stage::Serving { .. });
        let paused: BTreeSet<_> =
            self.lives.iter().filter(|(_, life)| serves(life)).map(|(id, _)| *id).collect();
        let starts = |life: &Life| matches!(life.stage, Stage::Starting { .. });
        let may_ask = self.lives.get(&id).is_some_and(starts) && !paused.is_empty();
        match &mut self.operation {
            Operation::Starting { newer, yielding } if *newer == id && may_ask => {
                if yielding.is_some() {
                    return;
                }
                let until = Some(now + PAUSED_FOR_ADDRESS);
                *yielding = Some(Yielding { paused: paused.clone(), until });
            }
            _ => return,
        }
        out.push(Action::Guard { newer: id, paused: paused.iter().copied().collect() });
        let reason = Reason::AddressInUse;
        out.extend(paused.into_iter().map(|id| Action::Signal {
            id,
            signal: Signal::Pause,
            reason,
        }));
    }

    /// The starting generation has given up on the address, and is about to exit.
    pub(super) fn gave_up(&mut self, id: GenerationId, out: &mut Vec<Action>) {
        if let Operation::Starting { newer, yielding } = &mut self.operation {
            if *newer == id {
                // It is too late for an older generation to let go of the address.
                yielding.get_or_insert_with(|| Yielding { paused: BTreeSet::new(), until: None });
                self.resume_yielding(out);
            }
        }
    }

    /// Ends a pause whose time is over.
    pub(super) fn yielding_is_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if let Operation::Starting { yielding: Some(Yielding { until: Some(until), .. }), .. } =
            &self.operation
        {
            if now >= *until {
                self.resume_yielding(out);
            }
        }
    }

    /// Lets the older generations accept again while the new one still starts.
    fn resume_yielding(&mut self, out: &mut Vec<Action>) {
        let Operation::Starting { newer, yielding: Some(yielding) } = &mut self.operation else {
            return;
        };
        if yielding.until.take().is_none() {
            return;
        }
        let (newer, yielding) = (*newer, yielding.clone());
        self.resume(&yielding.paused, Reason::AddressNotBound, out);
        out.push(Action::Guard { newer, paused: Vec::new() });
    }
}
