//! Collects the facts of one look at a host: everything that the system, the broker and haproxy
//! report, as [`facts`](crate::facts).
//!
//! It only reads, in every network namespace that it may enter, and every wait has a limit. It
//! lists what it cannot see ([`Look::unseen`]), and fails only if it sees nothing.

mod broker;
mod connections;
mod descriptors;
mod haproxy;
mod namespaces;
mod network;
mod processes;
mod waits;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use bindonce_core::address::Address;
use bindonce_sys::clock::now;
use bindonce_sys::holders::{self, Holder};
use bindonce_sys::{Errno, Error, diag};
use rustix::net::sockopt::socket_reuseport;

use crate::facts::{Answers, Details, Look, Mode, Network, Ports, Questions, Socket, Unseen};
use namespaces::{Namespace, Namespaces};
use processes::Processes;

/// Looks at the host, and remembers facts that do not change between two looks.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    broker: PathBuf,
    namespaces: Namespaces,
    /// SO_REUSEPORT by cookie, remembered because reading it requires holding the socket for a
    /// moment.
    reuseport: HashMap<u64, Option<bool>>,
    /// The ports in use, by namespace, remembered because counting them costs the kernel a walk
    /// through every connection.
    ports: HashMap<u64, Option<Ports>>,
}

impl Survey {
    /// Creates a survey; a broker may listen at `broker`.
    pub(crate) fn new(broker: PathBuf) -> Self {
        Self { broker, ..Self::default() }
    }

    /// Looks at everything once and adds the supervisors' answers.
    ///
    /// # Errors
    /// [`Error`] if the sockets of this network namespace cannot be read.
    pub(crate) fn look(&mut self, answers: &[Answers]) -> Result<Look, Error> {
        let mut look = Look { at: now(), ..Look::default() };
        let before = broker::ask(&self.broker).unwrap_or_default();
        self.namespaces = Namespaces::find();
        self.sockets(&mut look)?;
        self.processes(&mut look);
        haproxy::names(&mut look);
        match broker::ask(&self.broker) {
            Ok(status) => look.broker = status.map(|it| broker::between(before.as_ref(), it)),
            Err(unseen) => look.unseen.push(unseen),
        }
        self.reuseport(&mut look);
        haproxy::ask(&mut look);
        look.files = network::open_files();
        look.unseen.extend(answers.iter().filter_map(|one| {
            let (service, error) = (one.service.clone(), one.told.clone().err()?);
            Some(Unseen::Answers { service, error })
        }));
        look.answers = answers.to_vec();
        Ok(look)
    }

    /// Collects the facts that cost the kernel a walk through every connection; nothing if there
    /// are no questions.
    pub(crate) fn ask(&self, look: &Look, questions: &Questions) -> Details {
        connections::ask(&self.namespaces.all, look, questions)
    }

    fn sockets(&mut self, look: &mut Look) -> Result<(), Error> {
        for namespace in &self.namespaces.all {
            let ports = self.ports.get(&namespace.id).cloned();
            // The kernel walks through the sockets of all namespaces for this, so only namespaces
            // with a proxy get it.
            let proxies = namespace.is_own() || self.has_haproxy(namespace);
            let name = (!namespace.is_own()).then(|| namespace.label());
            let read = || -> Result<(Vec<Socket>, Network), Error> {
                let mut sockets: Vec<Socket> = diag::listening()?
                    .into_iter()
                    .filter(|socket| socket.address.port() != Some(0))
                    .map(|seen| match seen.address {
                        Address::Udp(_) => socket(namespace.id, seen, Mode::Datagram),
                        _ => socket(namespace.id, seen, Mode::Listening),
                    })
                    .collect();
                let bound = if proxies { diag::tcp_bound()? } else { Vec::new() };
                sockets
                    .extend(bound.into_iter().map(|seen| socket(namespace.id, seen, Mode::Bound)));
                Ok((sockets, network::read(namespace.id, name.clone(), ports)?))
            };
            match namespace.within(read).and_then(|read| read) {
                Ok((sockets, network)) => {
                    look.sockets.extend(sockets);
                    self.ports.insert(network.id, network.ports.clone());
                    look.networks.push(network);
                }
                // The last process of the namespace has ended meanwhile.
                Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {}
                Err(error) if namespace.is_own() => return Err(error),
                Err(error) => look
                    .unseen
                    .push(Unseen::Network { name: namespace.label(), error: error.to_string() }),
            }
        }
        Ok(())
    }

    fn has_haproxy(&self, namespace: &Namespace) -> bool {
        let mut inside = self.namespaces.of.iter().filter(|(_, id)| **id == namespace.id);
        inside.any(|(pid, _)| {
            bindonce_sys::process::name(*pid).is_some_and(|name| processes::is_haproxy(&name))
        })
    }

    fn processes(&self, look: &mut Look) {
        let inodes: HashSet<u64> = look.sockets.iter().map(|socket| socket.inode).collect();
        let mut processes = Processes::survey(&inodes, &self.namespaces);
        look.processes = std::mem::take(&mut processes.seen);
        let unsure = look.holders_of_idle_listeners();
        if !unsure.is_empty() {
            processes.seen = std::mem::take(&mut look.processes);
            processes.see_again(&unsure, &inodes, &self.namespaces);
            look.processes = processes.seen;
        }
        if processes.hidden > 0 {
            look.unseen.push(Unseen::Processes(processes.hidden));
        }
        let held: HashSet<u64> = look
            .processes
            .values()
            .flat_map(|process| process.activity.holds.iter().map(|(inode, _)| *inode))
            .collect();
        let unheld = look
            .sockets
            .iter()
            .filter(|one| one.mode != Mode::Bound && !held.contains(&one.inode))
            .count();
        if unheld > 0 {
            look.unseen.push(Unseen::Holders { unheld, all: look.sockets.len() });
        }
    }

    /// Reads which TCP sockets other processes could join, and which UDP sockets on one address
    /// share it.
    fn reuseport(&mut self, look: &mut Look) {
        let mut holders: HashMap<u64, (i32, i32)> = HashMap::new();
        for process in look.processes.values() {
            let holds = process.activity.holds.iter();
            holders.extend(holds.map(|(inode, number)| (*inode, (process.pid, *number))));
        }
        let mut datagrams: HashMap<Address, usize> = HashMap::new();
        for socket in look.sockets.iter().filter(|socket| socket.mode == Mode::Datagram) {
            *datagrams.entry(socket.address.clone()).or_default() += 1;
        }
        for socket in &mut look.sockets {
            let matters = match socket.mode {
                Mode::Listening => matches!(socket.address, Address::Tcp(_)),
                Mode::Datagram => datagrams.get(&socket.address).is_some_and(|count| *count > 1),
                Mode::Bound => false,
            };
            if matters && let Some((pid, number)) = holders.get(&socket.inode) {
                let known = self.reuseport.entry(socket.cookie);
                socket.reuseport = *known.or_insert_with(|| reuseport(socket.inode, *pid, *number));
            }
        }
    }
}

/// Whether descriptor `number` of a process has SO_REUSEPORT set; None without permission
/// (pidfd_getfd(2) needs the right to trace). This process also holds the socket during one call,
/// and changes nothing.
fn reuseport(inode: u64, pid: i32, number: i32) -> Option<bool> {
    let in_main = Holder { inode, pid, fd: number, tid: pid };
    let elsewhere = || holders::of_process(pid, &[inode]).first()?.take().ok();
    let socket = in_main.take().ok().or_else(elsewhere)?;
    socket_reuseport(&socket).ok()
}

fn socket(network: u64, seen: diag::Socket, mode: Mode) -> Socket {
    Socket {
        network,
        address: seen.address,
        interface: seen.interface,
        mptcp: seen.mptcp,
        inode: seen.inode,
        cookie: seen.cookie,
        mode,
        queue: seen.queue.len.into(),
        queue_limit: seen.queue.limit.into(),
        drops: seen.drops.into(),
        reuseport: None,
    }
}
