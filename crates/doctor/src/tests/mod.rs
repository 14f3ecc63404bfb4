//! Findings from recorded facts, and their texts: one host for each condition, and healthy ones.
//! This module has the building blocks of the hosts.

mod documentation;
mod generations;
mod ownership;
mod queues;
mod random;
mod split;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bindonce::{
    BrokerInfo, GenerationInfo, ListenerInfo, Problem, ServiceInfo, State, StatusResult,
};
use bindonce_core::address::Address;
use bindonce_core::time::Timestamp;
use bindonce_haproxy::counters::Lately;
use bindonce_haproxy::stats::{Proxy, Stats};

use crate::diagnosis::*;
use crate::facts::*;
use crate::text::words::{Words, words};

/// 2026-03-02T09:30:00Z.
const NOW: u64 = 1_772_443_800_000;
const MINUTE: u64 = 60_000;

/// The input of a report: a look, the earlier one, and the answers to the questions.
#[derive(Debug, Clone, Default)]
struct Facts {
    earlier: Option<Look>,
    now: Look,
    details: Details,
}

fn diagnose(facts: &Facts) -> Vec<Finding> {
    let Facts { earlier, now, details } = facts;
    let before = earlier.as_ref().map(|look| (look, examine(look, None)));
    let found = examine(now, before.as_ref().map(|(look, found)| (*look, found.as_slice())));
    settle(now, found, details)
}

fn socket(address: &str, inode: u64) -> Socket {
    Socket {
        network: 1,
        address: address.parse().expect(address),
        interface: None,
        mptcp: false,
        inode,
        cookie: inode + 1000,
        mode: Mode::Listening,
        queue: 0,
        queue_limit: 128,
        drops: 0,
        reuseport: Some(false),
    }
}

/// A haproxy that accepts on these sockets and started this number of minutes ago.
fn haproxy(pid: i32, minutes: u64, sockets: &[u64]) -> Process {
    let registration =
        |inode: &u64| Registration { inode: *inode, number: 5, input: true, live: true };
    Process {
        pid,
        parent: 1,
        root: pid,
        program: "haproxy".to_owned(),
        command: ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"].map(str::to_owned).to_vec(),
        network: Some(1),
        started: Timestamp(NOW - minutes * MINUTE),
        state: 'S',
        stop_pending: false,
        binds_any_port: true,
        usage: Usage {
            processor: Duration::ZERO,
            memory: 20 << 20,
            descriptors: 30,
            descriptor_limit: 1024,
            sockets: sockets.len() as u64 + 2,
        },
        activity: Activity {
            holds: sockets.iter().map(|inode| (*inode, 5)).collect(),
            registrations: sockets.iter().map(registration).collect(),
            waits: Vec::new(),
            all_known: true,
            epoll: true,
        },
    }
}

/// A process that holds these sockets and does not ask for their connections.
fn holds(program: &str, pid: i32, minutes: u64, sockets: &[u64]) -> Process {
    let mut process = haproxy(pid, minutes, sockets);
    process.program = program.to_owned();
    process.command = vec![program.to_owned()];
    process.activity.registrations.clear();
    process
}

fn look(sockets: Vec<Socket>, processes: Vec<Process>) -> Look {
    Look {
        at: Timestamp(NOW),
        sockets,
        processes: processes.into_iter().map(|process| (process.pid, process)).collect(),
        networks: vec![Network { id: 1, somaxconn: 4096, ..Network::default() }],
        ..Look::default()
    }
}

/// A broker that holds a socket as the listener `web`.
fn broker(inode: u64) -> Broker {
    let since = Timestamp(NOW).to_string();
    let web = ListenerInfo::new("web".into(), String::new(), String::new(), inode, since.clone());
    let info = BrokerInfo::new(700, "0", since, String::new());
    Broker { status: StatusResult::new(info, vec![web], Vec::new()), changing: BTreeSet::new() }
}

/// The same with generations of the service `edge`.
fn serving(inode: u64, generations: Vec<GenerationInfo>) -> Option<Broker> {
    let mut broker = broker(inode);
    broker.status.services = vec![ServiceInfo::new("edge", generations)];
    Some(broker)
}

/// The supervisor of the service `edge`, which has nothing to report.
fn supervised() -> Vec<Answers> {
    vec![Answers { service: "edge".to_owned(), told: Ok(Answered::default()) }]
}

/// A generation as the broker reports it.
fn generation(id: u64, pid: u32, state: State) -> GenerationInfo {
    let mut generation = GenerationInfo::new(id, pid, state, String::new());
    generation.listeners = vec!["web".to_owned()];
    generation
}

/// The details of clients that wait at a socket.
fn waits(inode: u64, time: Duration) -> Details {
    Details { waits: BTreeMap::from([(inode, time)]), ..Details::default() }
}

/// The same host, seen twice.
fn seen_twice(now: Look) -> Facts {
    let mut earlier = now.clone();
    earlier.at = Timestamp(NOW - 150);
    Facts { earlier: Some(earlier), now, details: Details::default() }
}

/// The findings when two looks show the same.
fn twice(look: &Look) -> Vec<Finding> {
    diagnose(&seen_twice(look.clone()))
}

/// The only finding, which must be of this kind, and its text.
#[track_caller]
fn only_of(facts: &Facts, kind: Kind) -> (Finding, Words) {
    let found = diagnose(facts);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].kind(), kind, "{found:#?}");
    let words = words(&facts.now, &found[0]);
    (found[0].clone(), words)
}

#[track_caller]
fn only(look: &Look, kind: Kind) -> (Finding, Words) {
    only_of(&seen_twice(look.clone()), kind)
}

/// The text of a finding for people.
fn written(words: &Words) -> String {
    format!("{}\n{}\n{}", words.summary, words.cause, words.remedy.join("\n"))
}

fn number(finding: &Finding, name: &str) -> f64 {
    let evidence = serde_json::to_value(&finding.condition).expect("JSON");
    evidence[name].as_f64().unwrap_or_else(|| panic!("{name}: {evidence}"))
}
