//! docs/failure-modes.md has a section for each kind of finding, and shows there what doctor prints, word
//! for word: each example below is a recorded host, and the page has its finding.

use std::path::Path;

use super::*;

/// The page, by section: its heading and what is below.
fn sections() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/failure-modes.md");
    #[expect(clippy::disallowed_methods, reason = "the test compares with the page")]
    let page = std::fs::read_to_string(path).expect("a page of this repository");
    let parts = page.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(heading, below)| (heading.to_owned(), below.to_owned())).collect()
}

/// What doctor prints of a finding, as one line: the page breaks lines where it likes.
fn printed(finding: &Finding, look: &Look) -> String {
    let mut words = vec![finding.kind.to_string()];
    if let Some(address) = &finding.address {
        words.push(address.to_string());
    }
    let mut text = format!("{}: {} because {}", words.join(" "), finding.summary, finding.cause);
    for pid in finding.culprits.iter().take(3) {
        text += &format!(" pid {pid} {}", look.processes[pid].command.join(" "));
    }
    if let Some(more) = finding.culprits.len().checked_sub(3).filter(|more| *more > 0) {
        text += &format!(" and {more} more processes");
    }
    for remedy in &finding.remedy {
        text += &format!(" do {remedy}");
    }
    on_one_line(&text)
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same host, seen twice.
fn seen_twice(now: Look) -> Facts {
    let mut earlier = now.clone();
    earlier.at = Timestamp(NOW - 150);
    Facts { earlier: Some(earlier), now }
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

fn stale() -> Look {
    let mut host = look(
        vec![socket("10.0.0.1:443", 1)],
        vec![haproxy(1204, 16, &[1]), haproxy(1618, 10, &[1])],
    );
    host.held = vec![held(1)];
    host.generations =
        vec![generation(6, 1204, Life::Draining), generation(7, 1618, Life::Serving)];
    host
}

/// A host on which clients wait at one process.
fn unserved(process: Process) -> Facts {
    let mut facts = seen_twice(look(vec![socket("10.0.0.1:443", 1)], vec![process]));
    facts.earlier.as_mut().expect("two looks").sockets[0].queue.used = 28;
    facts.now.sockets[0].queue.used = 29;
    facts.now.sockets[0].waiting = Some(Duration::from_secs(3));
    facts
}

fn stopped() -> Facts {
    unserved(Process { state: 'T', ..haproxy(1618, 10, &[1]) })
}

fn hung() -> Facts {
    unserved(haproxy(1618, 10, &[1]))
}

fn not_asking() -> Facts {
    unserved(Process { watches: Vec::new(), ..haproxy(1618, 10, &[1]) })
}

/// A listener of the broker's and no service.
fn kept() -> Facts {
    let mut broker = haproxy(700, 30, &[1]);
    broker.program = "bindonce".to_owned();
    broker.command = vec!["bindonce".to_owned(), "serve".to_owned()];
    broker.watches.clear();
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![broker]);
    host.held = vec![held(1)];
    seen_twice(host)
}

/// The same, where doctor looked for the broker at another socket.
fn unasked() -> Facts {
    let mut facts = kept();
    for look in facts.earlier.iter_mut().chain([&mut facts.now]) {
        look.held.clear();
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
    (socket.queue.used, socket.drops) = (129, 40);
    facts.now.processes.get_mut(&1618).expect("haproxy").used = Duration::from_millis(90);
    facts
}

/// What haproxy says of itself on its stats socket.
fn saturated(connections: u64, proxies: Vec<Proxy>) -> Facts {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    let connections = Gauge { used: connections, limit: 500 };
    host.haproxies = vec![Haproxy { pid: 1618, stopping: false, connections, proxies }];
    seen_twice(host)
}

fn proxy(name: &str, used: u64, limit: u64, queued: u64) -> Proxy {
    Proxy { name: name.to_owned(), sessions: Gauge { used, limit }, queued }
}

fn ghost() -> Facts {
    let mut old = haproxy(1204, 16, &[]);
    old.watches = vec![Watch { inode: 1, input: true, live: false }];
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![old, haproxy(1618, 10, &[1])]);
    host.held = vec![held(1)];
    let mut facts = seen_twice(host);
    facts.now.processes.get_mut(&1204).expect("the ghost").used = Duration::from_micros(55_500);
    facts
}

fn descriptors() -> Look {
    let mut process = haproxy(1618, 10, &[1]);
    process.descriptors = Gauge { used: 990, limit: 1024 };
    look(vec![socket("10.0.0.1:443", 1)], vec![process])
}

fn system() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.files = Some(Gauge { used: 99_000, limit: 100_000 });
    host.networks[0].conntrack = Some(Gauge { used: 260_000, limit: 262_144 });
    let ports = Gauge { used: 27_000, limit: 28_232 };
    host.networks[0].ephemeral = Some(("10.0.0.9:3306".to_owned(), ports));
    host
}

fn lingering() -> Look {
    let mut processes = vec![haproxy(1618, 1, &[1])];
    processes.extend((0..6).map(|n| haproxy(1204 + n, 8, &[])));
    processes[1].connections = Some(Connections {
        count: 2,
        oldest: Some((
            "the connection 10.0.0.9:50112 - 10.0.0.1:443".to_owned(),
            Duration::from_secs(420),
        )),
    });
    look(vec![socket("10.0.0.1:443", 1)], processes)
}

fn not_exclusive() -> Look {
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.sockets[0].reuseport = Some(true);
    host.held = vec![Held { exclusive: false, ..held(1) }];
    host
}

fn foreign() -> Look {
    let sockets = vec![socket("10.0.0.1:443", 1), socket("10.0.0.1:1024", 2)];
    let mut host = look(sockets, vec![haproxy(1618, 10, &[1, 2])]);
    host.held = vec![held(1)];
    host.generations = vec![generation(7, 1618, Life::Serving)];
    host
}

fn broker() -> Look {
    let problem = |kind: &str, subject: &str, message: &str, hint: &str| Problem {
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        message: message.to_owned(),
        hint: Some(hint.to_owned()),
    };
    let mut host = look(vec![socket("10.0.0.1:443", 1)], vec![haproxy(1618, 10, &[1])]);
    host.held = vec![held(1)];
    host.problems = vec![
        problem(
            "listener-not-bound",
            "web=127.0.0.1:8082",
            "web=127.0.0.1:8082 of the configuration is not bound: the name \"web\" belongs to \
             127.0.0.1:8080",
            "choose another name, or release \"web\" first; it is tried again with each `bindonce \
             release` and on SIGHUP",
        ),
        problem(
            "state-not-written",
            "/run/bindonce/bindonce.sock.state",
            "cannot write the state file /run/bindonce/bindonce.sock.state: No space left on device (os \
             error 28); after a crash the newest listeners are lost",
            "make room, or run the broker as a user that may write there: it is tried again until it \
             can be written",
        ),
    ];
    host
}

/// Hosts with a finding of the kind, each with a cause of its own.
fn examples(kind: Kind) -> Vec<Facts> {
    match kind {
        Kind::Split => vec![seen_twice(split())],
        Kind::Stale => vec![seen_twice(stale())],
        Kind::Unserved => vec![stopped(), hung(), not_asking(), kept(), unasked()],
        Kind::Paused => vec![seen_twice(paused())],
        Kind::Overflow => vec![overflow()],
        Kind::Saturated => vec![
            saturated(500, Vec::new()),
            saturated(90, vec![proxy("frontend web", 40, 40, 0)]),
            saturated(90, vec![proxy("server app/s1", 10, 10, 4)]),
        ],
        Kind::Ghost => vec![ghost()],
        Kind::Limit => vec![seen_twice(descriptors()), seen_twice(system())],
        Kind::Lingering => vec![seen_twice(lingering())],
        Kind::NotExclusive => vec![seen_twice(not_exclusive())],
        Kind::Foreign => vec![seen_twice(foreign())],
        Kind::Broker => vec![seen_twice(broker())],
    }
}

#[test]
fn every_kind_has_a_section_that_says_what_it_is_and_what_to_do() {
    let sections = sections();
    for kind in Kind::ALL {
        let name = kind.to_string();
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
    for kind in Kind::ALL {
        let name = kind.to_string();
        let (_, text) = sections.iter().find(|(heading, _)| *heading == name).expect("a section");
        let text = on_one_line(text);
        for facts in examples(kind) {
            let mut found = diagnose(&facts);
            found.retain(|one| one.kind == kind);
            assert!(!found.is_empty(), "{kind}: {facts:#?}");
            for finding in &found {
                let printed = printed(finding, &facts.now);
                assert!(text.contains(&printed), "the section {name} lacks\n\n{printed}\n");
            }
        }
    }
}
