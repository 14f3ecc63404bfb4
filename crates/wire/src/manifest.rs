//! The manifest: a broker's record of its sockets and connections, from which another broker or its
//! own next version continues.
//!
//! One format serves the state file, the memory file of an upgrade in place and the one in
//! systemd's descriptor store. It is text, one JSON object per line:
//!
//! ```text
//! {"bindonce":"manifest","version":1,"listeners":1,...}     the header
//! {"listener":{"listen":"web=0.0.0.0:80","inode":4711,...}}
//! {"connection":{"id":3,"descriptor":9,...}}
//! {"service":{"name":"edge","last":7,"serving":7}}
//! {"closed":{"inode":4711,"cookie":17}}                     later, appended
//! ```
//!
//! A snapshot is a header and records. More records may be appended: a later record about the same
//! socket replaces the earlier one. A last line without its line end was cut off by a crash and
//! counts as not written. Any other fault makes the whole manifest unreadable, and none of it is
//! used.
//!
//! Versions: a reader accepts its own version, the one before and the one after. So a version may
//! only add members and kinds of records that can be left out, and may stop writing only those that
//! the version before could already do without. A reader ignores unknown members and records.

mod connections;

use std::collections::BTreeMap;

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;
use bindonce_core::listener::Listener;
use bindonce_core::succession::Record;
use serde::{Deserialize, Serialize};

use crate::omitted::is_default;

pub use connections::{ConnectionEntry, ConnectionLabel};

/// The version of the format that this library writes.
pub const VERSION: u32 = 1;

/// The word that the header begins with.
const KIND: &str = "manifest";

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The first line is missing or not a header.
    #[error("the manifest does not begin with a header: {reason}")]
    Header {
        /// The reason.
        reason: String,
    },
    /// The version of the format is too old or too new.
    #[error(
        "the manifest has version {found}, written by bindonce {written_by}; this is for versions \
         {} to {}", VERSION.saturating_sub(1).max(1), VERSION + 1
    )]
    Version {
        /// Its version.
        found: u32,
        /// The version of the program that wrote it.
        written_by: String,
    },
    /// A line is not a record.
    #[error("line {line} of the manifest is damaged: {reason}")]
    Record {
        /// The number of the line, from 1.
        line: usize,
        /// The reason.
        reason: String,
    },
    /// It ends before all records that its header announces.
    #[error("the manifest announces {expected} listeners and has {found}")]
    Incomplete {
        /// How many listeners the header announces.
        expected: usize,
        /// How many listener records there are.
        found: usize,
    },
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    bindonce: String,
    /// The version of the format.
    pub version: u32,
    /// The broker that wrote it.
    #[serde(flatten)]
    pub broker: Broker,
    /// Whether the broker ended in order. Then the following listeners were in use by other
    /// processes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Descriptors of other uses than listeners, by their use (`control`, `lock`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub descriptors: BTreeMap<String, i32>,
    /// The file of the control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<File>,
    /// Its name in the service manager's descriptor store, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Services without a record get no generation number up to this one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub floor: u64,
    /// Files of UNIX paths made for claims that end with this image: the next image removes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<(String, File)>,
    /// How many listener records follow at least.
    #[serde(default)]
    listeners: usize,
}

/// The broker that wrote a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Broker {
    /// The version of the program.
    pub written_by: String,
    /// When the broker started, in milliseconds since the Unix epoch.
    pub since: u64,
    /// The boot that the inodes and cookies belong to (/proc/sys/kernel/random/boot_id).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// The process, by its pid and its start time (proc_pid_stat(5)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<(u32, u64)>,
    /// How often the broker has been upgraded in place since it started.
    pub upgrades: u64,
}

/// A held listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The listener as asked for: `web=0.0.0.0:80,backlog=4096`.
    pub listen: String,
    /// The address that the socket has.
    pub bound: String,
    /// Inode number of the socket.
    pub inode: u64,
    /// SO_COOKIE of the socket; 0 if unknown.
    #[serde(default)]
    pub cookie: u64,
    /// The backlog it was given; 0 for a datagram socket.
    #[serde(default)]
    pub backlog: u32,
    /// Whether no other process can bind the address beside it.
    #[serde(default)]
    pub exclusive: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub since: u64,
    /// Whether it is closed with its last lease.
    #[serde(default)]
    pub tentative: bool,
    /// The user whose claim created it; none for a listener of the configuration, or if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// The file of a UNIX path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    /// The process that it is kept for, because its generation outlived its supervisor: the pid and
    /// the start time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<(u32, u64)>,
    /// The number of its descriptor, for an upgrade in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<i32>,
}

/// A file, by its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its device.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// Its user, where the listener names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group, where the listener names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl Entry {
    /// The listener as asked for, parsed.
    ///
    /// # Errors
    /// The text is not a listener that this version knows.
    pub fn listener(&self) -> Result<Listener, Invalid> {
        self.listen.parse()
    }

    /// The address of the socket, parsed.
    ///
    /// # Errors
    /// The text is not an address that this version knows.
    pub fn bound(&self) -> Result<Address, Invalid> {
        self.bound.parse()
    }
}

/// Which socket a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Socket {
    inode: u64,
    #[serde(default)]
    cookie: u64,
}

/// A line after the header.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Listener(&'a Entry),
    Connection(&'a ConnectionEntry),
    Closed(Socket),
    Service(&'a Record),
}

/// A line after the header as it is read: it has one of these members, or none that this version
/// knows.
#[derive(Deserialize)]
struct Read {
    listener: Option<Entry>,
    connection: Option<ConnectionEntry>,
    closed: Option<Socket>,
    service: Option<Record>,
}

/// The contents of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The header.
    pub header: Header,
    /// The held listeners, in the order in which they were first written.
    pub listeners: Vec<Entry>,
    /// The clients that are connected.
    pub connections: Vec<ConnectionEntry>,
    /// The services whose order the broker keeps.
    pub services: Vec<Record>,
}

impl Manifest {
    /// An empty manifest, written by version `written_by` of the program.
    pub fn new(written_by: &str) -> Self {
        let header = Header {
            bindonce: KIND.to_owned(),
            version: VERSION,
            broker: Broker { written_by: written_by.to_owned(), ..Broker::default() },
            ended: false,
            descriptors: BTreeMap::new(),
            control: None,
            store: None,
            floor: 0,
            unfinished: Vec::new(),
            listeners: 0,
        };
        Self { header, listeners: Vec::new(), connections: Vec::new(), services: Vec::new() }
    }

    /// The snapshot as text.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&Records::default(), &[])
    }

    /// The snapshot as text, with already written records, and those of changes since then.
    pub fn encode_with(&self, records: &Records, since: &[u8]) -> Vec<u8> {
        let listeners = self.listeners.len() + records.listeners;
        let mut text = Vec::with_capacity(1024 + records.text.len() + since.len());
        line(&mut text, &Header { listeners, ..self.header.clone() });
        for entry in &self.listeners {
            opened(&mut text, entry);
        }
        text.extend_from_slice(&records.text);
        text.extend_from_slice(since);
        for link in &self.connections {
            line(&mut text, &Line::Connection(link));
        }
        for known in &self.services {
            service(&mut text, known);
        }
        text
    }

    /// Reads a snapshot and the records appended to it.
    ///
    /// # Errors
    /// None of it can be trusted, as the module says.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        // The text after the last line end was not written completely.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n');
        let header = header(lines.next().unwrap_or_default())?;
        let mut listeners: Vec<Option<Entry>> = Vec::new();
        let mut places: BTreeMap<u64, usize> = BTreeMap::new();
        let (mut connections, mut seen) = (Vec::new(), 0);
        let mut services: BTreeMap<_, Record> = BTreeMap::new();
        for (index, text) in lines.enumerate() {
            let record: Read = serde_json::from_slice(text).map_err(|error| {
                Unreadable::Record { line: index + 2, reason: error.to_string() }
            })?;
            if let Some(entry) = record.listener {
                seen += 1;
                match places.get(&entry.inode) {
                    Some(place) => listeners[*place] = Some(entry),
                    None => {
                        places.insert(entry.inode, listeners.len());
                        listeners.push(Some(entry));
                    }
                }
            }
            if let Some(socket) = record.closed {
                if let Some(place) = places.remove(&socket.inode) {
                    listeners[place] = None;
                }
            }
            connections.extend(record.connection);
            services.extend(record.service.map(|service| (service.name.clone(), service)));
        }
        if seen < header.listeners {
            return Err(Unreadable::Incomplete { expected: header.listeners, found: seen });
        }
        let listeners = listeners.into_iter().flatten().collect();
        Ok(Self { header, listeners, connections, services: services.into_values().collect() })
    }
}

/// Listener records for a snapshot that is made in many steps.
#[derive(Debug, Default)]
pub struct Records {
    text: Vec<u8>,
    listeners: usize,
}

impl Records {
    /// Adds a record.
    pub fn push(&mut self, entry: &Entry) {
        opened(&mut self.text, entry);
        self.listeners += 1;
    }
}

/// Appends the record that a listener is held, or has changed to `entry`.
pub fn opened(text: &mut Vec<u8>, entry: &Entry) {
    line(text, &Line::Listener(entry));
}

/// Appends the record of a service.
pub fn service(text: &mut Vec<u8>, service: &Record) {
    line(text, &Line::Service(service));
}

/// Appends the record that a listener is not held any more.
pub fn closed(text: &mut Vec<u8>, inode: u64, cookie: u64) {
    line(text, &Line::Closed(Socket { inode, cookie }));
}

fn header(text: &[u8]) -> Result<Header, Unreadable> {
    // The version first: the rest of the header may have another version's format.
    #[derive(Deserialize)]
    struct Version {
        bindonce: String,
        version: u32,
        #[serde(default)]
        written_by: String,
    }
    let failed = |error: serde_json::Error| Unreadable::Header { reason: error.to_string() };
    let version: Version = serde_json::from_slice(text).map_err(failed)?;
    if version.bindonce != KIND {
        let reason = format!("it is a {:?}", version.bindonce);
        return Err(Unreadable::Header { reason });
    }
    if version.version == 0 || version.version.abs_diff(VERSION) > 1 {
        let Version { version: found, written_by, .. } = version;
        return Err(Unreadable::Version { found, written_by });
    }
    serde_json::from_slice(text).map_err(failed)
}

/// Appends one object and a line end. JSON text contains no line end.
fn line(text: &mut Vec<u8>, value: &impl Serialize) {
    let begin = text.len();
    match serde_json::to_writer(&mut *text, value) {
        Ok(()) => text.push(b'\n'),
        // Writing to a vector does not fail, and no type here has a key that is not text.
        Err(_) => text.truncate(begin),
    }
}
