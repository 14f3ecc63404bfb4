//! The manifest: this version and its neighbours read what is written, and a record cut off by a
//! crash is not half read.

#![allow(missing_docs)]

use std::collections::BTreeMap;

use bindonce_core::policy::Peer;
use bindonce_core::registry::{ConnectionId, Label, SavedLease, State};
use bindonce_core::succession::{Progress, Record};
use bindonce_core::time::Timestamp;
use bindonce_wire::manifest::{
    self, ConnectionEntry, ConnectionLabel, Entry, File, Manifest, Unreadable, VERSION,
};
use proptest::prelude::*;

const LISTEN: [&str; 6] = [
    "web=0.0.0.0:80,backlog=4096",
    "0.0.0.0:80",
    "udp6@[::1]:53",
    "unix@/run/a=b.sock,mode=0600",
    "abns@a name",
    "x=[::]:0,v6only",
];

prop_compose! {
    fn entry()(
        listen in prop::sample::select(&LISTEN[..]),
        (inode, cookie, since) in any::<(u64, u64, u64)>(),
        (backlog, exclusive, tentative) in any::<(u32, bool, bool)>(),
        file in any::<Option<(u64, u64, Option<u32>, Option<u32>)>>(),
        (owner, descriptor, process) in
            any::<(Option<u32>, Option<i32>, Option<(u32, u64)>)>(),
    ) -> Entry {
        let listener: bindonce_core::listener::Listener = listen.parse().expect("listener");
        Entry {
            listen: listen.to_owned(), bound: listener.address.to_string(), inode, cookie, backlog,
            exclusive, since, tentative, owner,
            file: file.map(|(dev, ino, uid, gid)| File { dev, ino, uid, gid }),
            process, descriptor,
        }
    }
}

prop_compose! {
    fn link()(
        (id, pid, uid, gid) in any::<(u64, u32, u32, u32)>(),
        descriptor in any::<Option<i32>>(),
        label in any::<Option<(u64, u32, u64, Option<(bool, bool)>)>>(),
        leases in prop::collection::vec(any::<(u64, u64)>(), 0..3),
        unread in prop::collection::vec(any::<u8>(), 0..9),
        unanswered in prop::option::of("[0-9]{1,3}"),
        unreceived in 0_usize..3,
    ) -> ConnectionEntry {
        let label = label.map(|(generation, pid, since, turn)| ConnectionLabel {
            label: Label {
                service: "haproxy".parse().expect("a name"), generation, pid, state: State::Serving,
            },
            since: Timestamp(since), turn: turn.map(|(ready, retiring)| Progress { ready, retiring }),
        });
        let lease = |(inode, since)| SavedLease { inode, since: Timestamp(since) };
        let leases = leases.into_iter().map(lease).collect();
        let (id, peer) = (ConnectionId(id), Peer { pid, uid, gid });
        ConnectionEntry { id, descriptor, peer, label, leases, unread, unanswered, unreceived }
    }
}

prop_compose! {
    fn manifest()(
        listeners in prop::collection::vec(entry(), 0..5),
        connections in prop::collection::vec(link(), 0..3),
        since in any::<u64>(),
        boot in "[0-9a-f-]{0,9}",
        descriptors in prop::collection::btree_map("[a-z]{1,5}", any::<i32>(), 0..3),
        services in prop::collection::btree_map("[a-z]{1,5}", any::<(u64, Option<u64>)>(), 0..3),
        floor in any::<u64>(),
        unfinished in prop::collection::vec(("/[a-z]{1,5}", any::<(u64, u64)>()), 0..3),
    ) -> Manifest {
        let mut manifest = Manifest::new("0.1.0");
        manifest.header.broker.since = since;
        manifest.header.broker.boot = boot;
        manifest.header.descriptors = descriptors;
        let by_inode: BTreeMap<u64, Entry> =
            listeners.into_iter().map(|entry| (entry.inode, entry)).collect();
        manifest.listeners = by_inode.into_values().collect();
        manifest.connections = connections;
        manifest.header.floor = floor;
        let file = |(path, (dev, ino))| (path, File { dev, ino, uid: None, gid: None });
        manifest.header.unfinished = unfinished.into_iter().map(file).collect();
        let service = |(name, (last, serving)): (String, _)| Record {
            name: name.parse().expect("a name"), last, serving,
        };
        manifest.services = services.into_iter().map(service).collect();
        manifest
    }
}

/// The text of a version with more to say: members and records unknown here.
fn as_the_next_version(text: &str) -> String {
    let mut next = String::new();
    for line in text.lines() {
        let line = line
            .replace(&format!("\"version\":{VERSION},"), &format!("\"version\":{},", VERSION + 1));
        let line = ["listener", "connection", "service"].iter().fold(line, |line, kind| {
            let inside = format!("{{\"{kind}\":{{");
            line.replace(&inside, &format!("{inside}\"colour\":[{{\"a\":null}}],"))
        });
        next.push_str(&line.replacen('{', "{\"mood\":{\"b\":1.5},", 1));
        next.push_str("\n{\"weather\":{\"inode\":1}}\n");
    }
    next
}

fn text(manifest: &Manifest) -> String {
    String::from_utf8(manifest.encode()).expect("JSON is text")
}

proptest! {
    #[test]
    fn what_is_written_is_read(manifest in manifest()) {
        let text = manifest.encode();
        let read = Manifest::decode(&text).expect("readable");
        prop_assert_eq!(read.encode(), text);
        prop_assert_eq!(&read.services, &manifest.services);
        prop_assert_eq!(read.listeners, manifest.listeners);
        prop_assert_eq!(read.connections, manifest.connections);
    }

    #[test]
    fn the_next_version_is_read(manifest in manifest()) {
        let read = Manifest::decode(as_the_next_version(&text(&manifest)).as_bytes());
        let read = read.expect("readable");
        prop_assert_eq!(read.header.version, VERSION + 1);
        prop_assert_eq!(read.listeners, manifest.listeners);
        prop_assert_eq!(read.connections, manifest.connections);
    }

    #[test]
    fn what_is_appended_counts_up_to_the_last_whole_line(
        manifest in manifest(),
        more in prop::collection::vec(entry(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = manifest.encode();
        let mut held = manifest.listeners.clone();
        let mut states = vec![(text.len(), held.clone())];
        for entry in more {
            manifest::opened(&mut text, &entry);
            held.retain(|old| old.inode != entry.inode);
            held.push(entry.clone());
            states.push((text.len(), held.clone()));
            if entry.tentative {
                manifest::closed(&mut text, entry.inode, entry.cookie);
                held.retain(|old| old.inode != entry.inode);
                states.push((text.len(), held.clone()));
            }
        }
        let snapshot = states[0].0;
        let end = snapshot + cut.index(text.len() - snapshot + 1);
        let read = Manifest::decode(&text[..end]).expect("readable");
        let (_, expected) = states.iter().rfind(|(length, _)| *length <= end).expect("a state");
        let sorted = |mut listeners: Vec<Entry>| {
            listeners.sort_by_key(|entry| entry.inode);
            listeners
        };
        prop_assert_eq!(sorted(read.listeners), sorted(expected.clone()));
    }

    #[test]
    fn a_snapshot_that_is_cut_off_is_not_half_read(
        manifest in manifest(),
        cut in any::<prop::sample::Index>(),
    ) {
        let text = manifest.encode();
        let end = cut.index(text.len());
        if let Ok(read) = Manifest::decode(&text[..end]) {
            prop_assert_eq!(read.listeners, manifest.listeners);
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}

#[test]
fn versions_too_far_away_are_named() {
    let text = text(&Manifest::new("9.9"));
    for version in [0, VERSION + 2, u32::MAX] {
        let text =
            text.replace(&format!("\"version\":{VERSION}"), &format!("\"version\":{version}"));
        let error = Manifest::decode(text.as_bytes()).expect_err("too far");
        assert_eq!(error, Unreadable::Version { found: version, written_by: "9.9".to_owned() });
        assert!(error.to_string().contains("9.9"));
    }
    let other = text.replace("manifest", "poem");
    assert!(Manifest::decode(other.as_bytes()).expect_err("other").to_string().contains("poem"));
    assert!(matches!(Manifest::decode(b""), Err(Unreadable::Header { .. })));
}

#[test]
fn a_damaged_line_names_itself() {
    let text = text(&Manifest::new("1")) + "{\"listener\":{\"listen\":5}}\n";
    let error = Manifest::decode(text.as_bytes()).expect_err("damaged");
    assert!(error.to_string().starts_with("line 2 of the manifest is damaged"), "{error}");
}
