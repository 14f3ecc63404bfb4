//! The status page: `bindonce status` for a browser. Plain HTML that refreshes by itself, without a
//! script, readable on a phone, in dark and light mode.
//!
//! Broker and supervisor each fill in a [`StatusPage`] with what they know. `maud` writes it and
//! escapes every text; names that others chose are made printable first ([`printable`]).

use std::collections::BTreeMap;
use std::time::Duration;

use bindonce_core::duration;
use bindonce_core::event::{Kind, Severity};
use bindonce_core::history::{Activity, Life};
use bindonce_core::text::{printable, printable_lines};
use bindonce_core::time::Timestamp;
use bindonce_wire::event::Event;
use bindonce_wire::result::{ListenerInfo, Problem};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Seconds until a browser asks again.
const REFRESH: u32 = 5;
/// The most listeners that are shown, of those that are held.
pub const LISTENERS: usize = 200;
/// The most generations of a service on its time line: the newest.
const LIVES: usize = 20;
/// The most events that are shown: the newest.
const EVENTS: usize = 50;
/// The longest time that a time line covers, in milliseconds.
const SPAN: u64 = 60 * 60 * 1000;

/// One service and its generations.
#[derive(Debug, Default)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The generations that have not ended, oldest first.
    pub generations: Vec<Generation>,
}

/// One generation, as far as the process that makes the page knows it.
#[derive(Debug, Default)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Its state: `starting`, `serving`, `draining`.
    pub state: String,
    /// Its first process.
    pub pid: Option<i32>,
    /// When it started.
    pub since: Option<Timestamp>,
    /// How many connections it has.
    pub connections: Option<u64>,
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
    /// Requests that it received after it had stopped accepting.
    pub requests_after: Option<u64>,
}

/// Everything on one page.
#[derive(Debug)]
pub struct StatusPage {
    /// What the page is about, such as `service web`.
    pub subject: String,
    /// One line about the process that made it.
    pub about: String,
    /// The time of the page.
    pub now: Timestamp,
    /// The services, by name.
    pub services: Vec<Service>,
    /// Problems: what the process should do and cannot.
    pub problems: Vec<Problem>,
    /// The listeners, at most [`LISTENERS`]; or why they are not known.
    pub listeners: Result<Vec<ListenerInfo>, String>,
    /// How many listeners there are beyond these.
    pub more_listeners: usize,
    /// Recent events, oldest first.
    pub events: Vec<Event>,
    /// Whether `/doctor` answers too.
    pub examines: bool,
}

impl StatusPage {
    /// The page as HTML.
    pub fn html(&self) -> String {
        let lives = self.lives();
        let body = html! {
            h1 { "bindonce: " (printable(&self.subject)) }
            p.faint { (printable(&self.about)) " · " (seconds(self.now)) }
            @for problem in &self.problems {
                p.bad { (printable(&problem.subject)) ": " (printable(&problem.message)) }
                @if let Some(hint) = &problem.hint { p.faint { (printable(hint)) } }
            }
            @for service in &self.services {
                h2 { "Service " (printable(&service.name)) }
                (self.generations(service, lives.get(service.name.as_str())))
            }
            h2 { "Listeners" }
            @match &self.listeners {
                Ok(listeners) => (table_of_listeners(listeners, self.more_listeners)),
                Err(reason) => p.bad { "not known: " (printable(reason)) },
            }
            @if self.examines {
                h2 { "Findings" }
                p { a href="doctor" { "Look for what makes clients see 503 or hang (bindonce doctor)" } }
            }
            h2 { "Events" }
            (table_of_events(&self.events))
        };
        document(&self.subject, Some(REFRESH), &body)
    }

    /// The lives of generations, by service and number: from events, and from live generations.
    fn lives(&self) -> BTreeMap<&str, BTreeMap<u64, Life>> {
        let mut all: BTreeMap<&str, BTreeMap<u64, Life>> = BTreeMap::new();
        for event in &self.events {
            let (Some(service), Some(number)) = (&event.service, event.generation) else {
                continue;
            };
            let lives = all.entry(service).or_default();
            let mut life = lives.get(&number).cloned().unwrap_or_default();
            if life.learn(&event.kind, event.time) {
                lives.insert(number, life);
            }
        }
        for service in &self.services {
            let lives = all.entry(&service.name).or_default();
            for known in &service.generations {
                let life = lives.entry(known.number).or_default();
                life.lives(&known.state, known.since, self.now);
            }
            // Drops a life without an end and without a live generation: the event may have been
            // pushed out.
            lives.retain(|number, life| {
                life.ended.is_some() || service.generations.iter().any(|it| it.number == *number)
            });
        }
        all
    }

    fn generations(&self, service: &Service, lives: Option<&BTreeMap<u64, Life>>) -> Markup {
        let lives: Vec<_> = lives.into_iter().flatten().rev().take(LIVES).collect();
        let earliest = lives.iter().filter_map(|(_, life)| life.begin()).min().unwrap_or(self.now);
        // After the clock was set back, some moments are yet to come.
        let from = Timestamp(earliest.0.clamp(self.now.0.saturating_sub(SPAN), self.now.0));
        let of = |number: u64| service.generations.iter().find(|it| it.number == number);
        let lives = lives.into_iter().filter(|(number, life)| {
            of(**number).is_some() || life.ended.is_some_and(|ended| ended >= from)
        });
        html! {
            div.wide { table {
                thead { tr {
                    th { "Generation" } th { "State" } th { "Pid" } th { "Connections" } th { "Memory" }
                    th { (duration::format(Duration::from_millis(self.now.0.saturating_sub(from.0)))) " until now" }
                } }
                tbody { @for (number, life) in lives {
                    @let known = of(*number);
                    @let state = known.map_or_else(|| life.broke.unwrap_or("ended"), |it| &it.state);
                    tr {
                        td data-of="generation" { (number) }
                        td.state.(class_of_state(state)) { (printable(state))
                            @if let Some(count) = known.and_then(|it| it.requests_after).filter(|it| *it > 0) {
                                span.faint { " " (count) " requests since" }
                            }
                        }
                        td data-of="pid" { @if let Some(pid) = known.and_then(|it| it.pid) { (pid) } }
                        td data-of="connections" { @if let Some(count) = known.and_then(|it| it.connections) { (count) } }
                        td { @if let Some(bytes) = known.and_then(|it| it.memory) { (mebibytes(bytes)) } }
                        td.line { (bar(life, from, self.now)) }
                    }
                } }
            } }
        }
    }
}

/// The page at `/doctor`: the output of the examination, with its time.
pub fn findings(text: &str, now: Timestamp) -> String {
    let body = html! {
        h1 { "bindonce: findings" }
        p.faint { (seconds(now)) " · " a href="." { "status" } }
        pre { (printable_lines(text)) }
    };
    document("findings", None, &body)
}

fn document(title: &str, refresh: Option<u32>, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
                title { (printable(title)) " - bindonce" }
                style { (PreEscaped(include_str!("status_page.css"))) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// A generation's life as a bar: `from` is the left end of the line, `now` the right one.
fn bar(life: &Life, from: Timestamp, now: Timestamp) -> Markup {
    let length = now.0.saturating_sub(from.0).max(1);
    let at = |time: Timestamp| time.0.clamp(from.0, now.0).saturating_sub(from.0) * 1000 / length;
    let word = |activity| match activity {
        Activity::Starting => "starting",
        Activity::Draining => "draining",
        Activity::Serving => "serving",
        Activity::Broke => "broke",
    };
    html! {
        svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" {
            @for (activity, begin, end) in life.activities(now) {
                @if end > begin && end > from {
                    rect.(word(activity)) x=(at(begin)) y="1" height="8"
                        width=((at(end) - at(begin)).max(2)) {
                        title { (word(activity)) " from " (seconds(begin)) " to " (seconds(end)) }
                    }
                }
            }
            @if life.broke.is_some() && let Some(ended) = life.ended {
                rect.broke x=(at(ended).saturating_sub(4)) y="0" width="6" height="10" {}
            }
        }
    }
}

fn table_of_listeners(listeners: &[ListenerInfo], more: usize) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { "Listener" } th { "Queue" } th { "Holders" } } }
            tbody { @for listener in listeners {
                tr {
                    td {
                        @if listener.name != listener.bound { (printable(&listener.name)) " on " }
                        (printable(&listener.bound))
                        @if !listener.listening { span.bad { " not listening" } }
                    }
                    td data-of="queue" { (queue(listener)) }
                    td.text { (holders(listener)) }
                }
            } }
        } }
        @if more > 0 { p.faint { "and " (more) " more: bindonce list" } }
    }
}

/// What waits in the queue, its size, and what the kernel has dropped.
fn queue(listener: &ListenerInfo) -> String {
    let waiting =
        match (listener.queue, listener.backlog, listener.receive_queue, listener.receive_buffer) {
            (Some(queue), Some(backlog), ..) => format!("{queue} of {backlog}"),
            (Some(queue), ..) => queue.to_string(),
            (None, _, Some(bytes), Some(size)) => format!("{bytes} of {size} bytes"),
            _ => String::new(),
        };
    match listener.drops {
        Some(drops) if drops > 0 => format!("{waiting}, {drops} dropped"),
        _ => waiting,
    }
}

fn holders(listener: &ListenerInfo) -> String {
    let holders =
        listener.holders.iter().map(|holder| match (&holder.service, holder.generation) {
            (Some(service), Some(generation)) => format!("{} {generation}", printable(service)),
            _ => format!("pid {}", holder.pid),
        });
    let holders: Vec<_> = holders.collect();
    if holders.is_empty() { "no holder".to_owned() } else { holders.join(", ") }
}

fn table_of_events(events: &[Event]) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { "Time" } th { "Event" } th { "What happened" } } }
            tbody { @for event in events.iter().rev().take(EVENTS) {
                tr {
                    td { (seconds(event.time)) }
                    td.(class_of_event(&event.kind)) { (printable(&event.kind)) }
                    td.text {
                        @if let Some(service) = &event.service {
                            (printable(service)) @if let Some(number) = event.generation { " " (number) } ": "
                        }
                        (printable(&event.text))
                    }
                }
            } }
        } }
    }
}

/// The style class for a generation's state: always a fixed word, whatever the input.
fn class_of_state(state: &str) -> &'static str {
    match state {
        "starting" => "starting",
        "serving" => "serving",
        "draining" => "draining",
        "failed" | "died" => "broke",
        _ => "faint",
    }
}

/// The same for the kind of an event.
fn class_of_event(kind: &str) -> &'static str {
    match Kind::from_word(kind).map(Kind::severity) {
        Some(Severity::Good) => "serving",
        Some(Severity::Warning) => "warn",
        Some(Severity::Error) => "broke",
        Some(Severity::Normal) | None => "faint",
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// A time without fractions of a second.
fn seconds(time: Timestamp) -> String {
    let text = time.to_string();
    text.split_once('.').map_or(text.clone(), |(whole, _)| format!("{}Z", whole.replace('T', " ")))
}

#[cfg(test)]
mod tests {
    use bindonce_wire::result::HolderInfo;

    use super::*;

    const HOSTILE: &str = "<script>alert(\"1\")</script>&'\u{202e}\n";

    fn event(time: u64, kind: &'static str, generation: u64) -> Event {
        let mut event = Event::new(time, Timestamp(time), kind, kind);
        (event.service, event.generation) = (Some("web".into()), Some(generation));
        event
    }

    fn page(now: u64, serving: &[(u64, &str)], events: Vec<Event>) -> StatusPage {
        let generation = |(number, state): &(u64, &str)| Generation {
            number: *number,
            state: (*state).to_owned(),
            since: Some(Timestamp(1000)),
            ..Generation::default()
        };
        let generations = serving.iter().map(generation).collect();
        StatusPage {
            subject: "service web".to_owned(),
            about: String::new(),
            now: Timestamp(now),
            services: vec![Service { name: "web".to_owned(), generations }],
            problems: Vec::new(),
            listeners: Ok(Vec::new()),
            more_listeners: 0,
            events,
            examines: true,
        }
    }

    #[test]
    fn what_others_have_named_is_text() {
        let text = || HOSTILE.to_owned();
        let mut listener = ListenerInfo::new(text(), text(), text(), 1, text());
        let mut holder = HolderInfo::new(1, 0, text());
        (holder.service, holder.generation) = (Some(text()), Some(1));
        listener.holders.push(holder);
        let mut told = event(1, "generation-gone", 1);
        (told.kind, told.text, told.service) = (text().into(), text().into(), Some(text().into()));
        let mut page = page(2000, &[(1, HOSTILE)], vec![told]);
        (page.subject, page.about) = (text(), text());
        page.services[0].name = text();
        page.problems.push(Problem::new("kind", text(), text(), Some(text())));
        page.listeners = Ok(vec![listener]);
        let whole = page.html();
        page.listeners = Err(text());
        for html in [whole, page.html(), findings(HOSTILE, Timestamp(1))] {
            assert!(!html.contains("<script") && !html.contains('\u{202e}'), "{html}");
            assert!(html.contains("&lt;script&gt;"), "{html}");
        }
    }

    #[test]
    fn a_generation_that_ended_stays_on_the_time_line() {
        let events = vec![
            event(1000, "generation-started", 1),
            event(2000, "generation-serving", 1),
            event(5000, "generation-started", 2),
            event(6000, "generation-failed", 2),
            event(7000, "generation-started", 3),
            event(8000, "generation-serving", 3),
            event(8000, "generation-draining", 1),
            event(10_000, "generation-gone", 1),
            // Its end was pushed out of the events.
            event(3000, "generation-started", 9),
        ];
        let html = page(11_000, &[(3, "serving")], events).html();
        let rows: Vec<_> = html.split("<tr>").skip(2).take(3).collect();
        for (row, number, state) in [(0, 3, "serving"), (1, 2, "failed"), (2, 1, "ended")] {
            let row = rows.get(row).copied().unwrap_or_default();
            assert!(row.contains(&format!(">{number}</td>")) && row.contains(state), "{row}");
        }
        // The first served from a tenth of the line to seven tenths of it.
        assert!(
            rows[2]
                .contains("<rect class=\"serving\" x=\"100\" y=\"1\" height=\"8\" width=\"600\">"),
            "{}",
            rows[2]
        );
        assert!(html.contains("10s until now"), "{html}");
    }

    #[test]
    fn a_clock_that_was_set_back_breaks_nothing() {
        let events =
            vec![event(90_000, "generation-started", 1), event(95_000, "generation-gone", 1)];
        let html = page(500, &[(2, "serving"), (3, "starting"), (4, "draining")], events).html();
        assert!(html.contains("0ms until now"), "{html}");
    }
}
