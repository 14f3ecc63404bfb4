//! Recovery where no saved state is known to be the last: finds the processes that were started as
//! generations of the service, and the listeners that they hold.
//!
//! A process is a generation if the service's events say so, and if it has a listener of the broker
//! or runs on a configuration in the service's directory. Events may be lost. If none names the
//! process of a generation, the environment does, for a process that has a listener of the broker
//! and leads its process group, as every generation does from its start. Any process can choose its
//! environment, and children of a generation have the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bindonce::ErrorCode;
use bindonce_core::event::Kind;
use bindonce_core::time::Timestamp;
use bindonce_daemon::Journal;
use bindonce_sys::process::{self, Stat};
use bindonce_sys::{clock, diag, holders, worker};

use crate::broker;
use crate::disk::directory::Directory;
use crate::disk::saved::{LAST_ID, Saved, SavedGeneration};
use crate::error::Error;
use crate::handover::duty::ProcessRef;
use crate::settings::Settings;

/// How long the look at all processes may take.
const LOOKS: Duration = Duration::from_secs(10);

/// How far a process's age and the time of an event may differ, in milliseconds.
const CLOCKS: u64 = 50;

/// The highest number that is believed: later generations have higher ones.
const HIGHEST: u64 = LAST_ID / 2;

/// The state as far as it is saved or can be found. It is not known which listeners of a generation
/// that is found exist because of this service.
pub(crate) async fn look(
    settings: &Settings,
    directory: &Directory,
    journal: &Journal,
    mut saved: Saved,
) -> Result<Saved, Error> {
    let mut client = broker::connect(&settings.broker.socket).await?;
    let listeners = match client.list().await {
        Ok(listed) => listed.listeners,
        // The events tell of generations without it.
        Err(error) if error.refusal().is_some_and(|why| why.code == ErrorCode::DENIED) => {
            Vec::new()
        }
        Err(error) => return Err(Error::claim(error)),
    };
    let listeners: Vec<_> = listeners.into_iter().map(|l| (l.inode, l.address)).collect();
    let (service, place) = (settings.service.to_string(), directory.path().to_owned());
    let started = journal.answer(0, false).events.into_iter();
    let started = started.filter(|event| event.kind == Kind::GenerationStarted.word());
    let started =
        started.filter_map(|event| Some((event.pid?, (event.generation?, event.time)))).collect();
    let of = Service { name: service, started };
    let find = move || generations(&of, &place, &listeners);
    let found = worker::within(LOOKS, find).await.map_err(Error::system("look at /proc"))?;
    let mut named = std::mem::take(&mut saved.generations);
    // One that was starting tells that an older one may be paused for it.
    named.retain(|one| one.process.is_there() || one.state == "starting");
    let generations = together(named, found);
    let known = generations.last().map_or(0, |newest| newest.id);
    let next = (known.max(directory.newest_configuration()) + 1).max(saved.next);
    Ok(Saved { next, generations, ..saved })
}

/// The generations that the state names, and those that were found. Of all that may accept, the
/// newest counts as the serving one.
fn together(named: Vec<SavedGeneration>, found: Vec<SavedGeneration>) -> Vec<SavedGeneration> {
    // What was saved of a generation is more than what is found, unless it has died at its start.
    let (started, named): (Vec<_>, Vec<_>) =
        named.into_iter().partition(|one| one.state == "starting");
    let all = started.into_iter().chain(found).chain(named).map(|one| (one.id, one));
    let mut all: BTreeMap<u64, SavedGeneration> = all.collect();
    let may_accept = all.values_mut().rev().filter(|one| one.state == "serving");
    may_accept.skip(1).for_each(|older| older.state = "draining".to_owned());
    all.into_values().collect()
}

/// The generations among the running processes: as `serving` those that may accept.
fn generations(
    service: &Service,
    directory: &Path,
    listeners: &[(u64, String)],
) -> Vec<SavedGeneration> {
    let inodes: Vec<u64> = listeners.iter().map(|(inode, _)| *inode).collect();
    // A haproxy that drains has closed all that it listened on, its admin sockets too.
    let listening = diag::listening().unwrap_or_default().into_iter().map(|socket| socket.inode);
    let listening: Vec<u64> = listening.chain(inodes.iter().copied()).collect();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: BTreeMap<u64, SavedGeneration> = BTreeMap::new();
    for pid in pids {
        let Some(id) = service.generation_of(pid) else { continue };
        let mut held = Vec::new();
        for holder in holders::of_process(pid, &inodes) {
            let address = listeners.iter().find(|(inode, _)| *inode == holder.inode);
            held.extend(address.map(|(_, address)| address.clone()).filter(|a| !held.contains(a)));
        }
        let is_one = match service.by_event(pid) {
            Some(_) => !held.is_empty() || runs_on(pid, directory),
            None => {
                let leads = Stat::of(pid).is_some_and(|stat| stat.group == pid);
                !held.is_empty() && leads && !service.started_another(id, pid)
            }
        };
        let parent = process::parent(pid).and_then(|parent| service.generation_of(parent));
        if !is_one || parent == Some(id) {
            continue;
        }
        let Some(start_time) = process::start_time(pid) else { continue };
        // A child is younger.
        if found.get(&id).is_some_and(|other| other.process.start_time <= start_time) {
            continue;
        }
        let may_accept = process::family(pid)
            .into_iter()
            .any(|member| holders::holds(member, &listening).unwrap_or(true));
        let state = if may_accept { "serving" } else { "draining" };
        let age = process::age(pid).unwrap_or_default();
        let generation = SavedGeneration {
            id,
            process: ProcessRef { pid, start_time },
            state: state.to_owned(),
            ready: true,
            configuration: id,
            since: begun(age),
            listeners: held,
            ..SavedGeneration::default()
        };
        found.insert(id, generation);
    }
    found.into_values().collect()
}

/// Whether the command of a process names files in this directory.
fn runs_on(pid: i32, directory: &Path) -> bool {
    let words = process::command(pid).unwrap_or_default();
    words.iter().any(|word| Path::new(word).starts_with(directory))
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
        self.by_event(pid).or_else(|| self.by_environment(pid))
    }

    /// Whether an event names another process of this generation.
    fn started_another(&self, id: u64, pid: i32) -> bool {
        self.started.iter().any(|(of, (started, _))| *started == id && *of != pid)
    }

    /// By its environment, which can be read only of processes that this user could have started.
    fn by_environment(&self, pid: i32) -> Option<u64> {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let value = |name: &str| {
            environment.split(|byte| *byte == 0).find_map(|variable| {
                let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                std::str::from_utf8(value).ok()
            })
        };
        value("BINDONCE_SERVICE").filter(|name| *name == self.name)?;
        value("BINDONCE_GENERATION")?.parse().ok().filter(|id| *id <= HIGHEST)
    }

    /// By the event of its start. A younger process that has the same pid now is another one.
    fn by_event(&self, pid: i32) -> Option<u64> {
        let (id, start) = self.started.get(&pid)?;
        (begun(process::age(pid)?) <= start.0 + CLOCKS && *id <= HIGHEST).then_some(*id)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use bindonce_sys::identity;

    use super::*;

    /// A process that does nothing, until this is dropped.
    struct Idle(Child);

    impl Idle {
        /// With this generation in its environment, and perhaps a listener; the leader of its
        /// process group, or not.
        fn start(service: &str, id: u64, listener: Option<OwnedFd>, leads: bool) -> Self {
            let mut command = Command::new("sleep");
            command.arg("1000").stdin(listener.map_or_else(Stdio::null, Stdio::from));
            command.env("BINDONCE_SERVICE", service).env("BINDONCE_GENERATION", id.to_string());
            if leads {
                command.process_group(0);
            }
            Self(command.spawn().expect("sleep"))
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Idle {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn an_environment_alone_makes_no_generation() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let inode = identity::of(listener.as_fd()).expect("a socket").inode;
        let listener = OwnedFd::from(listener);
        let copy = || Some(listener.try_clone().expect("a copy"));
        let name = format!("recovery-{}", std::process::id());
        let found = |started: &[(&Idle, u64)]| {
            let now = clock::now();
            let started = started.iter().map(|(of, id)| (of.pid(), (*id, now))).collect();
            let of = Service { name: name.clone(), started };
            let found = generations(&of, Path::new("/nonexistent"), &[(inode, "web".to_owned())]);
            found.iter().map(|one| (one.id, one.process.pid, one.state.clone())).collect::<Vec<_>>()
        };
        let serving = |id: u64, of: &Idle| vec![(id, of.pid(), "serving".to_owned())];
        for (id, listens, leads) in
            [(7, false, true), (7, true, false), (LAST_ID, true, true), (HIGHEST + 1, true, true)]
        {
            let stranger = Idle::start(&name, id, copy().filter(|_| listens), leads);
            assert_eq!(found(&[]).len(), 0, "{id} {listens} {leads} {}", stranger.pid());
        }
        let first = Idle::start(&name, 7, copy(), true);
        assert_eq!(found(&[]), serving(7, &first));
        // An event tells of another program too, which may have changed its environment.
        let other = Idle::start("other", 7, copy(), false);
        assert_eq!(found(&[(&other, 7)]), serving(7, &other));
        // Such as a child of a generation that has ended: the process of the event is another.
        drop(other);
        let gone = Idle::start(&name, 7, None, true);
        assert_eq!(found(&[(&gone, 7)]).len(), 0);
        assert_eq!(found(&[(&gone, 6)]), serving(7, &first));
    }

    #[test]
    fn the_newest_that_may_accept_serves_and_what_was_saved_stays() {
        let one = |id, state: &str, since| SavedGeneration {
            id,
            state: state.to_owned(),
            since,
            ..SavedGeneration::default()
        };
        let states = |named: &[SavedGeneration], found: &[SavedGeneration]| {
            let all = together(named.to_vec(), found.to_vec()).into_iter();
            all.map(|one| (one.id, one.state, one.since)).collect::<Vec<_>>()
        };
        let (draining, serving) = ("draining".to_owned(), "serving".to_owned());
        assert_eq!(
            states(&[one(1, "draining", 5)], &[one(1, "serving", 0), one(3, "serving", 0)]),
            [(1, draining.clone(), 5), (3, serving.clone(), 0)]
        );
        assert_eq!(
            states(&[one(2, "serving", 5)], &[one(3, "draining", 0)]),
            [(2, serving.clone(), 5), (3, draining.clone(), 0)]
        );
        assert_eq!(
            states(&[], &[one(1, "serving", 0), one(2, "serving", 0), one(3, "draining", 0)]),
            [(1, draining.clone(), 0), (2, serving, 0), (3, draining.clone(), 0)]
        );
        assert_eq!(states(&[one(1, "draining", 5)], &[]), [(1, draining, 5)]);
    }
}
