//! Fixtures for tests of the screen: a broker, services, listeners and events, at a fixed time.

use bindonce::{Event, ListenerInfo};
use bindonce_core::time::Timestamp;
use serde_json::json;

use super::model::{Input, Model};
use super::overview::{Generation, Overview, Service, Supervision};
use crate::events::{Source, SourcedEvent};

/// 2026-01-01T00:10:00Z.
pub(super) const NOW: Timestamp = Timestamp(1_767_226_200_000);

/// This many seconds before [`NOW`].
pub(super) fn ago(seconds: u64) -> Timestamp {
    Timestamp(NOW.0 - seconds * 1000)
}

pub(super) fn generation(number: u64, state: &str, started: u64) -> Generation {
    Generation {
        number,
        state: state.to_owned(),
        pid: Some(1200 + i64::try_from(number).expect("a small number")),
        started: Some(ago(started)),
        connections: Some(number * 3),
        memory: Some(12 << 20),
        version: Some("2.6.12".to_owned()),
        kept_by: Vec::new(),
    }
}

pub(super) fn service(name: &str, generations: Vec<Generation>) -> Service {
    let supervision = Supervision::By {
        pid: 915,
        program: "haproxy".to_owned(),
        reloads: 4,
        failed: 0,
        draining: 0,
    };
    Service { name: name.to_owned(), supervision, generations }
}

pub(super) fn listener(name: &str, queue: u32, holders: usize) -> ListenerInfo {
    let holder = |number: usize| json!({ "service": "web", "generation": number + 4, "pid": 1200, "uid": 0, "since": ago(9).to_string() });
    serde_json::from_value(json!({
        "name": name, "address": "0.0.0.0:80", "bound": "0.0.0.0:80", "backlog": 100, "queue": queue,
        "listening": true, "inode": 1, "since": ago(300).to_string(),
        "holders": (0..holders).map(holder).collect::<Vec<_>>(),
    }))
    .expect("a listener")
}

pub(super) fn seen(services: Vec<Service>, listeners: Vec<ListenerInfo>) -> Input {
    let broker = serde_json::from_value(json!({
        "pid": 812, "version": "0.1.0", "since": ago(300).to_string(), "socket": "/run/bindonce/bindonce.sock",
        "listeners": listeners.len(), "connections": 2, "descriptor_limit": 1024,
    }));
    let broker = Ok((broker.expect("a broker"), listeners));
    Input::Overview(Box::new(Overview { broker, services }))
}

/// The broker does not answer; the supervisors do.
pub(super) fn lost(services: Vec<Service>) -> Input {
    let broker =
        Err("cannot connect to /run/bindonce/bindonce.sock: Connection refused".to_owned());
    Input::Overview(Box::new(Overview { broker, services }))
}

pub(super) fn event_at(seconds: u64, kind: &'static str, number: u64, text: &str) -> SourcedEvent {
    let mut event = Event::new(NOW.0 - seconds, ago(seconds), kind, text);
    event.service = Some("web".into());
    event.generation = Some(number);
    SourcedEvent { source: Source::Service("web".to_owned()), event }
}

/// A service after a reload, its listeners, and what happened.
pub(super) fn reloaded() -> Model {
    let mut model = Model::new(NOW);
    let events = vec![
        event_at(250, "generation-started", 3, "started"),
        event_at(250, "generation-serving", 3, "serving"),
        event_at(120, "generation-failed", 4, "did not come up: exited with 1"),
        event_at(61, "generation-started", 5, "started"),
        event_at(60, "generation-serving", 5, "serving"),
        event_at(60, "generation-draining", 3, "draining"),
    ];
    model.on(NOW, Input::Happened(events));
    let generations = vec![generation(3, "draining", 250), generation(5, "serving", 61)];
    let listeners = vec![listener("admin", 0, 1), listener("web", 55, 2)];
    model.on(NOW, seen(vec![service("web", generations)], listeners));
    model
}
