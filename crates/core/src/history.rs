//! The life of a generation as its events show it: when it was started, served, drained and ended.
//! `bindonce top` and the status page draw it.

use crate::time::Timestamp;

/// What a generation did at a moment, the most important last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// It did not accept yet.
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
    /// When its process was started.
    pub started: Option<Timestamp>,
    /// When it began to accept.
    pub serving: Option<Timestamp>,
    /// When it stopped accepting.
    pub draining: Option<Timestamp>,
    /// When its process ended.
    pub ended: Option<Timestamp>,
    /// Why it ended badly: it `failed` to come up, or `died` while it served.
    pub broke: Option<&'static str>,
}

impl Life {
    /// The first known moment.
    pub fn begin(&self) -> Option<Timestamp> {
        self.started.or(self.serving).or(self.draining).or(self.ended)
    }

    /// Adds an event about this generation, by the word for its kind ([`crate::event::Kind`]).
    /// Returns false if the event is not about the life of a generation.
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

    /// Adds that the generation is alive at `now`, in this state, started at `since`.
    pub fn lives(&mut self, state: &str, since: Option<Timestamp>, now: Timestamp) {
        self.started = self.started.or(since);
        // A live generation has not ended, whatever an older event with its number says.
        (self.ended, self.broke) = (None, None);
        match state {
            "serving" => self.serving = self.serving.or(self.started).or(Some(now)),
            // Only an event could tell since when.
            "draining" => self.draining = self.draining.or(Some(now)),
            _ => {}
        }
    }

    /// The activities in order, each with its begin and end. A generation that has not ended ends
    /// at `now`.
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

    /// The activity to show for the time from `from` to before `to`: the most important of those in
    /// it.
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
