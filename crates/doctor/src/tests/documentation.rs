//! docs/findings-*.md have a section for each kind of finding, which quotes doctor's output word
//! for word: each example below is a recorded host, and the page shows its finding as printed.

use std::path::Path;

use super::*;
use crate::text::screen;

/// The sections of the pages: heading and text.
fn sections() -> Vec<(String, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut sections = Vec::new();
    for name in ["findings-accepting.md", "findings-waiting.md", "findings-resources.md"] {
        let page = std::fs::read_to_string(docs.join(name)).expect("a page of this repository");
        let parts = page.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
        sections.extend(parts.map(|(heading, below)| (heading.to_owned(), below.to_owned())));
    }
    sections
}

/// Joins lines: the page may break them anywhere.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn split() -> Look {
    let sockets = (1..=3).map(|inode| socket("127.0.0.1:8080", inode)).collect();
    let mut processes =
        vec![haproxy(953, 16, &[1]), haproxy(1571, 9, &[2]), haproxy(1618, 1, &[3])];
    for (older, younger) in [(0, 1), (1, 2)] {
        let pid = processes[older].pid.to_string();
        processes[younger].command.extend(["-sf".to_owned(), pid]);
    }
    look(sockets, processes)
}

/// A generation that serves QUIC on the broker's socket.
fn quic(address: &str) -> Look {
    let Ok(Address::Quic(at)) = address.parse() else { panic!("{address}") };
    let listener = Socket { mode: Mode::Datagram, ..socket(&format!("udp@{at}"), 1) };
    let mut host = look(vec![listener], vec![haproxy(1618, 10, &[1])]);
    host.networks[0].unprivileged = 1024;
    host.broker = serving(1, vec![generation(7, 1618, State::Serving)]);
    let broker = host.broker.as_mut().expect("a broker");
    broker.status.listeners[0].bound = address.to_owned();
    host
}

fn joined() -> Look {
    let mut host = quic("quic4@10.0.0.1:443");
    let theirs = Socket { inode: 2, ..host.sockets[0].clone() };
    host.sockets.insert(0, theirs);
    let coredns = haproxy(2044, 3, &[2]).activity;
    host.processes.insert(2044, Process { activity: coredns, ..holds("coredns", 2044, 3, &[2]) });
    host
}

fn datagrams() -> Facts {
    let mut facts = seen_twice(quic("quic4@10.0.0.1:443"));
    facts.now.sockets[0].queue_limit = 212_992;
    (facts.earlier.as_mut().expect("two looks").sockets[0].drops, facts.now.sockets[0].drops) =
        (30, 40);
    facts
}

fn fallback() -> Look {
    let mut host = quic("quic4@10.0.0.1:443");
    host.processes.get_mut(&1618).expect("haproxy").binds_any_port = false;
    host
}

fn stale() -> Look {
    let mut host = look(
        vec![socket("10.0.0.1:443", 1)],
        vec![haproxy(1204, 16, &[1]), haproxy(1618, 10, &[1])],
    );
    let older = generation(6, 1204, State::Draining);
    host.broker = serving(1, vec![older, generation(7, 1618, State::Serving)]);
    host.answers = supervised();
    host
}

/// A host on which clients wait for one process.
fn unserved(process: Process) -> Facts {
    let mut facts = seen_twice(look(vec![socket("10.0.0.1:443", 1)], vec![process]));
    facts.earlier.as_mut().expect("two looks").sockets[0].queue = 28;
    facts.now.sockets[0].queue = 29;
    facts.details = waits(1, Duration::from_secs(3));
    facts
}

fn stopped() -> Facts {
    unserved(Process { state: 'T', ..haproxy(1618, 10, &[1]) })
}

fn hung() -> Facts {
    unserved(haproxy(1618, 10, &[1]))
}

fn not_asking() -> Facts {
    let mut process = haproxy(1618, 10, &[1]);
    process.activity.registrations.clear();
    unserved(process)
}

/// A listener of the broker's without a service.
fn kept() -> Facts {
    let mut process = holds("bindonce", 700, 30, &[1]);
    process.command.push("serve".to_owned());
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![process]);
    host.broker = Some(broker(1));
    seen_twice(host)
}

/// The same, with doctor looking for the broker at another socket.
fn unasked() -> Facts {
    let mut facts = kept();
    for look in facts.earlier.iter_mut().chain([&mut facts.now]) {
        look.broker = None;
        let broker = look.processes.get_mut(&700).expect("the broker");
        broker.command.extend(["--socket", "/srv/b.sock"].map(str::to_owned));
    }
    facts
}

fn paused() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1204, 16, &[1])]);
    host.sockets[0].mode = Mode::Bound;
    host
}

fn overflow() -> Facts {
    let mut facts =
        seen_twice(look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]));
    let earlier = facts.earlier.as_mut().expect("two looks");
    earlier.sockets[0].drops = 30;
    let socket = &mut facts.now.sockets[0];
    (socket.queue, socket.drops) = (129, 40);
    let process = facts.now.processes.get_mut(&1618).expect("haproxy");
    process.usage.processor = Duration::from_millis(90);
    facts
}

/// A haproxy with these counts on its stats socket.
fn saturated(connections: u64, proxies: Vec<Proxy>) -> Facts {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.haproxies = vec![Stats { pid: 1618, stopping: false, connections, limit: 500, proxies }];
    seen_twice(host)
}

fn proxy(name: &str, sessions: u64, limit: u64, queued: u64) -> Proxy {
    Proxy { name: name.to_owned(), sessions, limit, queued }
}

fn ghost() -> Facts {
    let mut old = haproxy(1204, 16, &[]);
    old.activity.registrations =
        vec![Registration { inode: 1, number: 9, input: true, live: false }];
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![old, haproxy(1618, 10, &[1])]);
    host.broker = Some(broker(1));
    let mut facts = seen_twice(host);
    let ghost = facts.now.processes.get_mut(&1204).expect("the ghost");
    ghost.usage.processor = Duration::from_micros(55_500);
    facts
}

fn descriptors() -> Look {
    let mut process = haproxy(1618, 10, &[1]);
    (process.usage.descriptors, process.usage.descriptor_limit) = (990, 1024);
    look(vec![socket("10.0.0.1:443", 1)], vec![process])
}

fn system() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.files = Some(Gauge { used: 99_000, limit: 100_000 });
    host.networks[0].conntrack = Some(Gauge { used: 260_000, limit: 262_144 });
    let gauge = Gauge { used: 27_000, limit: 28_232 };
    host.networks[0].ports = Some(Ports { destination: "10.0.0.9:3306".to_owned(), gauge });
    host
}

fn lingering() -> Facts {
    let mut processes = vec![haproxy(1618, 1, &[1])];
    processes.extend((0..6).map(|n| haproxy(1204 + n, 8, &[])));
    let mut facts = seen_twice(look(vec![socket("10.0.0.1:443", 1)], processes));
    let ends = "10.0.0.9:50112 - 10.0.0.1:443".to_owned();
    let known = Connections { count: 2, oldest: Some((ends, Duration::from_secs(420))) };
    facts.details.connections.insert(1204, known);
    facts
}

fn answering(lately: Lately, connections: u64) -> Facts {
    let processes = vec![haproxy(1204, 16, &[]), haproxy(1618, 10, &[1])];
    let mut host = look(vec![socket("10.0.0.1:443", 1)], processes);
    host.broker =
        serving(1, vec![generation(6, 1204, State::Draining), generation(7, 1618, State::Serving)]);
    let lately = Lately { seconds: 10, ..lately };
    let told = Answered { lately, pids: vec![1204], connections };
    host.answers = vec![Answers { service: "edge".to_owned(), told: Ok(told) }];
    seen_twice(host)
}

fn not_exclusive() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.sockets[0].reuseport = Some(true);
    let mut broker = broker(1);
    broker.status.listeners[0].exclusive = false;
    host.broker = Some(broker);
    host
}

fn foreign() -> Look {
    let sockets = vec![socket("10.0.0.1:443", 1), socket("10.0.0.1:1024", 2)];
    let mut host = look(sockets, vec![haproxy(1618, 10, &[1, 2])]);
    host.broker = serving(1, vec![generation(7, 1618, State::Serving)]);
    host
}

fn problems() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    let mut broker = broker(1);
    broker.status.problems = vec![
        Problem::new(
            "listener-not-bound",
            "web=127.0.0.1:8082",
            "web=127.0.0.1:8082 of the configuration is not bound: the name \"web\" belongs to \
             127.0.0.1:8080",
            Some(
                "choose another name, or release \"web\" first; it is tried again with each `bindonce \
                 release` and on SIGHUP"
                    .to_owned(),
            ),
        ),
        Problem::new(
            "listener-hidden",
            "10.0.0.1:80",
            "10.0.0.1:80 listens, but no new connection reaches it: it is hidden by an unfinished \
             handover",
            Some(
                "where no reload is in progress: reload the service, or claim the listener: either shows it; \
                 `bindonce release 10.0.0.1:80` closes it where nothing uses it"
                    .to_owned(),
            ),
        ),
        Problem::new(
            "listener-not-recovered",
            "web=10.0.0.1:443",
            "listeners of the previous broker that are not recovered: 1 (web=10.0.0.1:443)",
            Some(
                "reload or end the processes that have them: then they are given back, or bound anew"
                    .to_owned(),
            ),
        ),
        Problem::new(
            "state-not-written",
            "/run/bindonce/bindonce.sock.state",
            "cannot write the state file /run/bindonce/bindonce.sock.state: No space left on device (os \
             error 28); after a crash the newest listeners are lost, and released ones are bound again",
            Some(
                "make room, or run the broker as a user that may write there: it is tried again until \
                 it can be written"
                    .to_owned(),
            ),
        ),
    ];
    host.broker = Some(broker);
    host
}

/// Hosts with a finding of this kind, each with a different cause.
fn examples(kind: Kind) -> Vec<Facts> {
    match kind {
        Kind::Split => vec![seen_twice(split()), seen_twice(joined())],
        Kind::Stale => vec![seen_twice(stale())],
        Kind::Unserved => vec![stopped(), hung(), not_asking(), kept(), unasked()],
        Kind::Paused => vec![seen_twice(paused())],
        Kind::Overflow => vec![overflow(), datagrams()],
        Kind::Saturated => vec![
            saturated(500, Vec::new()),
            saturated(90, vec![proxy("frontend web", 40, 40, 0)]),
            saturated(90, vec![proxy("server app/s1", 10, 10, 4)]),
        ],
        Kind::Ghost => vec![ghost()],
        Kind::Limit => vec![seen_twice(descriptors()), seen_twice(system())],
        Kind::Lingering => vec![lingering()],
        Kind::Answering => {
            let requests = Lately { requests: 1200, draining_requests: 412, ..Lately::default() };
            let bytes = Lately { bytes: 90 << 20, draining_bytes: 30 << 20, ..Lately::default() };
            vec![answering(requests, 20), answering(bytes, 5)]
        }
        Kind::Fallback => vec![seen_twice(fallback())],
        Kind::NotExclusive => vec![seen_twice(not_exclusive())],
        Kind::Foreign => vec![seen_twice(foreign())],
        Kind::Broker => vec![seen_twice(problems())],
    }
}

#[test]
fn every_kind_has_a_section_that_says_what_it_is_and_what_to_do() {
    let sections = sections();
    for (kind, name) in Kind::ALL {
        assert_eq!((kind.to_string(), serde_json::json!(kind)), (name.to_owned(), name.into()));
        let section = sections.iter().find(|(heading, _)| *heading == name);
        let (_, text) = section.unwrap_or_else(|| panic!("no section {name:?}"));
        let mut at = 0;
        for part in ["**Symptom.**", "**doctor prints**", "**Why", "hat to do.**"] {
            let found = text[at..].find(part);
            at += found.unwrap_or_else(|| panic!("{name}: no {part:?}, or not in order"));
        }
    }
}

#[test]
fn what_the_page_shows_is_what_doctor_prints() {
    let sections = sections();
    for (kind, name) in Kind::ALL {
        let (_, text) = sections.iter().find(|(heading, _)| *heading == name).expect("a section");
        let text = on_one_line(text);
        for facts in examples(kind) {
            let mut found = diagnose(&facts);
            found.retain(|one| one.kind() == kind);
            assert!(!found.is_empty(), "{kind}: {facts:#?}");
            for finding in &found {
                let printed = on_one_line(&screen::finding(&facts.now, finding));
                assert!(text.contains(&printed), "the section {name} lacks\n\n{printed}\n");
            }
        }
    }
}
