//! The life of a generation as the past shows it: when it was started, served, drained and
//! ended. `bindonce top` and the status page draw it.

use crate::time::Timestamp;

/// What a generation did at a moment, what matters most last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// It had not accepted yet.
    Starting,
    /// It had stopped accepting.
    Draining,
    /// It accepted.
    Serving,
    /// It failed, or died while it served.
    Broke,
}

/// The moments of one generation's life, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    /// Its process was started.
    pub started: Option<Timestamp>,
    /// It began to accept.
    pub serving: Option<Timestamp>,
    /// It stopped accepting.
    pub draining: Option<Timestamp>,
    /// Its process ended.
    pub ended: Option<Timestamp>,
    /// It did not end as it should have: it `failed` to come up, or `died` while it served.
    pub broke: Option<&'static str>,
}

impl Life {
    /// The first moment that is known.
    pub fn begin(&self) -> Option<Timestamp> {
        self.started.or(self.serving).or(self.draining).or(self.ended)
    }

    /// Adds what an event about this generation tells, by the word for its kind ([`crate::event::Kind`]). Returns
    /// false for an event that is not about its life.
    pub fn learn(&mut self, kind: &str, time: Timestamp) -> bool {
        match kind.strip_prefix("generation-") {
            Some("started") => self.started = Some(time),
            Some("serving") => self.serving = Some(time),
            Some("draining") => self.draining = Some(time),
            Some(word @ ("gone" | "failed" | "died")) => {
                self.ended = Some(time);
                self.broke = ["failed", "died"].into_iter().find(|broke| *broke == word);
            }
            _ => return false,
        }
        true
    }

    /// Adds that it lives at `now`, in this state, started at `since`.
    pub fn lives(&mut self, state: &str, since: Option<Timestamp>, now: Timestamp) {
        self.started = self.started.or(since);
        // A generation that lives has not ended, whatever an older event of the same number says.
        (self.ended, self.broke) = (None, None);
        match state {
            "serving" => self.serving = self.serving.or(self.started).or(Some(now)),
            // Since when, only an event could have told.
            "draining" => self.draining = self.draining.or(Some(now)),
            _ => {}
        }
    }

    /// Its activities in their order, each with its begin and end; one that has not ended ends at
    /// `now`.
    pub fn activities(&self, now: Timestamp) -> [(Activity, Timestamp, Timestamp); 3] {
        let ended = self.ended.unwrap_or(now);
        let draining = self.draining.unwrap_or(ended).min(ended);
        let serving = self.serving.unwrap_or(draining).min(draining);
        let started = self.begin().unwrap_or(now).min(serving);
        [
            (Activity::Starting, started, serving),
            (Activity::Serving, serving, draining),
            (Activity::Draining, draining, ended),
        ]
    }

    /// What is to be shown for the time from `from` to before `to`: of several activities in it
    /// the one that matters most.
    pub fn activity(&self, from: Timestamp, to: Timestamp) -> Option<Activity> {
        if self.broke.is_some() && self.ended.is_some_and(|ended| ended >= from && ended < to) {
            return Some(Activity::Broke);
        }
        let overlaps = |begin, end| begin < end && begin < to && end > from;
        let activities = self.activities(Timestamp(u64::MAX)).into_iter();
        let there = activities.filter(|(_, begin, end)| overlaps(*begin, *end));
        there.map(|(activity, ..)| activity).max()
    }
}
