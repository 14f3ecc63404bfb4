//! Recovery without a readable saved state: finds the processes that were started as generations of
//! the service, and the listeners that they hold.
//!
//! A process is a generation if its environment or the service's events say so (a program may have
//! overwritten its environment, as nginx does), and if it has a listener of the broker or runs on a
//! configuration in the service's directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_core::time::Timestamp;
use bindonce_daemon::Journal;
use bindonce_sys::{clock, holders, process, worker};

use crate::broker;
use crate::disk::directory::Directory;
use crate::disk::saved::{LAST_ID, Saved, SavedGeneration};
use crate::error::Error;
use crate::handover::watchdog::ProcessRef;
use crate::settings::Settings;

/// How long the look at all processes may take.
const LOOKS: Duration = Duration::from_secs(10);

/// How far a process's age and the time of an event may differ, in milliseconds.
const CLOCKS: u64 = 50;

/// The state as far as it can be found. The newest generation counts as the serving one. It is not
/// known which listeners exist because of this service.
pub(crate) async fn look(
    settings: &Settings,
    directory: &Directory,
    journal: &Journal,
) -> Result<Saved, Error> {
    let mut client = broker::connect(&settings.broker.socket).await?;
    let listed = client.list().await.map_err(Error::claim)?;
    let listeners: Vec<_> = listed.listeners.into_iter().map(|l| (l.inode, l.address)).collect();
    let (service, place) = (settings.service.to_string(), directory.path().to_owned());
    let started = journal.answer(0, false).events.into_iter();
    let started = started.filter(|event| event.kind == Kind::GenerationStarted.word());
    let started =
        started.filter_map(|event| Some((event.pid?, (event.generation?, event.time)))).collect();
    let of = Service { name: service, started };
    let find = move || generations(&of, &place, &listeners);
    let generations = worker::within(LOOKS, find).await.map_err(Error::system("look at /proc"))?;
    let known = generations.last().map_or(0, |generation: &SavedGeneration| generation.id);
    let next = known.max(directory.newest_configuration()) + 1;
    Ok(Saved { next, generations, ..Saved::default() })
}

fn generations(
    service: &Service,
    directory: &Path,
    listeners: &[(u64, String)],
) -> Vec<SavedGeneration> {
    let inodes: Vec<u64> = listeners.iter().map(|(inode, _)| *inode).collect();
    let mut held: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
    for holder in holders::of(&inodes) {
        let address = listeners.iter().find(|(inode, _)| *inode == holder.inode);
        let all = held.entry(holder.pid).or_default();
        all.extend(address.map(|(_, address)| address.as_str()).filter(|a| !all.contains(a)));
    }
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: BTreeMap<u64, SavedGeneration> = BTreeMap::new();
    for pid in pids {
        let Some(id) = service.generation_of(pid) else { continue };
        let runs_on = directory.join(format!("generation-{id}"));
        let on_ours = || {
            let words = process::command(pid).unwrap_or_default();
            words.iter().any(|word| Path::new(word).starts_with(&runs_on))
        };
        let parent = process::parent(pid).and_then(|parent| service.generation_of(parent));
        if parent == Some(id) || !(held.contains_key(&pid) || on_ours()) {
            continue;
        }
        let Some(start_time) = process::start_time(pid) else { continue };
        let age = process::age(pid).unwrap_or_default();
        let holds = held.get(&pid).into_iter().flatten();
        let generation = SavedGeneration {
            id,
            process: ProcessRef { pid, start_time },
            state: "draining".to_owned(),
            ready: true,
            configuration: id,
            since: begun(age),
            listeners: holds.map(ToString::to_string).collect(),
            ..SavedGeneration::default()
        };
        found.insert(id, generation);
    }
    if let Some(mut newest) = found.last_entry() {
        newest.get_mut().state = "serving".to_owned();
    }
    found.into_values().collect()
}

/// When a process of this age was started, in milliseconds since the Unix epoch.
fn begun(age: Duration) -> u64 {
    clock::now().0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// A service, and the processes that it started, by pid: the generation, and the time of the event.
struct Service {
    name: String,
    started: BTreeMap<i32, (u64, Timestamp)>,
}

impl Service {
    /// The generation that a process was started as.
    fn generation_of(&self, pid: i32) -> Option<u64> {
        self.by_environment(pid).or_else(|| self.by_event(pid))
    }

    fn by_environment(&self, pid: i32) -> Option<u64> {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let value = |name: &str| {
            environment.split(|byte| *byte == 0).find_map(|variable| {
                let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                std::str::from_utf8(value).ok()
            })
        };
        value("BINDONCE_SERVICE").filter(|name| *name == self.name)?;
        value("BINDONCE_GENERATION")?.parse().ok().filter(|id| *id <= LAST_ID)
    }

    /// By the event of its start. A younger process that has the same pid now is another one.
    fn by_event(&self, pid: i32) -> Option<u64> {
        let (id, start) = self.started.get(&pid)?;
        (begun(process::age(pid)?) <= start.0 + CLOCKS && *id <= LAST_ID).then_some(*id)
    }
}
