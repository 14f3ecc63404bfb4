//! The lives of generations, for the time line: when each was started, served, drained and ended.
//! Events give the moments; snapshots of the generations that live fill in where no event is left.

use std::collections::BTreeMap;

use bindonce_core::history::Life;
use bindonce_core::time::Timestamp;

use super::overview::Service;
use crate::events::{Source, SourcedEvent};

/// Ended lives that are remembered for each service.
const ENDED: usize = 64;

/// All known lives, by service and number.
#[derive(Debug, Default)]
pub(super) struct Lives(BTreeMap<String, BTreeMap<u64, Life>>);

impl Lives {
    /// The lives of a service, oldest first.
    pub(super) fn of(&self, service: &str) -> impl DoubleEndedIterator<Item = (u64, &Life)> {
        self.0.get(service).into_iter().flatten().map(|(number, life)| (*number, life))
    }

    /// The life of one generation.
    pub(super) fn get(&self, service: &str, generation: u64) -> Option<&Life> {
        self.0.get(service)?.get(&generation)
    }

    /// Learns from an event, which gives the exact moment.
    pub(super) fn happened(&mut self, sourced: &SourcedEvent) {
        let event = &sourced.event;
        let service = event.service.as_deref().or(match &sourced.source {
            Source::Service(name) => Some(name.as_str()),
            Source::Broker => None,
        });
        let (Some(service), Some(generation)) = (service, event.generation) else { return };
        let lives = self.0.entry(service.to_owned()).or_default();
        let mut life = lives.get(&generation).cloned().unwrap_or_default();
        if life.learn(&event.kind, event.time) {
            lives.insert(generation, life);
        }
        forget(lives);
    }

    /// Learns from the generations of a service that exist now. One that is not listed has ended.
    pub(super) fn seen(&mut self, now: Timestamp, service: &Service) {
        let lives = self.0.entry(service.name.clone()).or_default();
        for generation in &service.generations {
            let life = lives.entry(generation.number).or_default();
            life.lives(&generation.state, generation.started, now);
        }
        for (number, life) in lives.iter_mut() {
            let there = service.generations.iter().any(|known| known.number == *number);
            if !there && life.ended.is_none() {
                life.ended = Some(now);
            }
        }
        forget(lives);
    }
}

/// Forgets the oldest ended lives first.
fn forget(lives: &mut BTreeMap<u64, Life>) {
    let mut ended = lives.values().filter(|life| life.ended.is_some()).count();
    lives.retain(|_, life| {
        let forgotten = life.ended.is_some() && ended > ENDED;
        ended -= usize::from(forgotten);
        !forgotten
    });
}

#[cfg(test)]
mod tests {
    use bindonce::Event;
    use bindonce_core::history::Activity;

    use super::super::overview::{Generation, Supervision};
    use super::*;

    fn sourced(time: u64, kind: &'static str, generation: u64) -> SourcedEvent {
        let mut event = Event::new(time, Timestamp(time), kind, kind);
        event.service = Some("web".into());
        event.generation = Some(generation);
        SourcedEvent { source: Source::Service("web".into()), event }
    }

    fn line(life: &Life, until: u64) -> String {
        let cell = |at| match life.activity(Timestamp(at), Timestamp(at + 1)) {
            None => ' ',
            Some(Activity::Starting) => 'o',
            Some(Activity::Serving) => '#',
            Some(Activity::Draining) => '=',
            Some(Activity::Broke) => 'x',
        };
        (0..until).map(cell).collect()
    }

    fn seen(generations: &[(u64, &str)]) -> Service {
        let generation = |(number, state): &(u64, &str)| Generation {
            number: *number,
            state: (*state).to_owned(),
            started: Some(Timestamp(1)),
            ..Generation::default()
        };
        Service {
            name: "web".to_owned(),
            supervision: Supervision::Nobody,
            generations: generations.iter().map(generation).collect(),
        }
    }

    #[test]
    fn events_make_a_time_line() {
        let mut lives = Lives::default();
        for (time, kind, generation) in [
            (1, "generation-started", 1),
            (2, "generation-ready", 1),
            (3, "generation-serving", 1),
            (5, "generation-started", 2),
            (6, "generation-serving", 2),
            (6, "generation-draining", 1),
            (7, "reload-done", 2),
            (8, "generation-gone", 1),
            (9, "generation-died", 2),
            (9, "generation-started", 3),
            (10, "generation-failed", 3),
        ] {
            lives.happened(&sourced(time, kind, generation));
        }
        let lines: Vec<_> = lives.of("web").map(|(_, life)| line(life, 12)).collect();
        assert_eq!(lines, [" oo###==    ", "     o###x  ", "         ox "]);
        // A cell that covers more time shows what matters most.
        let first = lives.get("web", 1).expect("a life");
        assert_eq!(first.activity(Timestamp(0), Timestamp(100)), Some(Activity::Serving));
        assert_eq!(first.activity(Timestamp(6), Timestamp(100)), Some(Activity::Draining));
    }

    #[test]
    fn what_is_seen_fills_in_what_no_event_told() {
        let mut lives = Lives::default();
        lives.seen(Timestamp(5), &seen(&[(1, "serving"), (2, "starting")]));
        lives.seen(Timestamp(7), &seen(&[(1, "draining"), (2, "serving")]));
        lives.happened(&sourced(6, "generation-serving", 2));
        lives.seen(Timestamp(9), &seen(&[(2, "serving")]));
        let lines: Vec<_> = lives.of("web").map(|(_, life)| line(life, 12)).collect();
        assert_eq!(lines, [" ######==   ", " ooooo######"]);
    }

    #[test]
    fn only_so_many_of_the_dead_are_remembered() {
        let mut lives = Lives::default();
        lives.seen(Timestamp(1), &seen(&[(0, "serving")]));
        for generation in 1..200 {
            lives.happened(&sourced(generation, "generation-failed", generation));
        }
        let numbers: Vec<_> = lives.of("web").map(|(number, _)| number).collect();
        assert_eq!(numbers.len(), ENDED + 1);
        assert_eq!((numbers[0], numbers[1], numbers[ENDED]), (0, 200 - ENDED as u64, 199));
    }
}
