//! Measures what the broker costs beside the kernel's part of the same work, in one run so that the
//! machine's mood affects both.
//!
//! ```sh
//! cargo bench -p bindonce-broker
//! ```
//!
//! - a claim of one known listener on an open connection, beside one raw round
//!   trip that passes one descriptor (sendmsg, recvmsg);
//! - a claim of 1,000 known listeners in one request, beside passing 1,000
//!   descriptors raw;
//! - a claim of 1,000 new listeners in one request, beside a loop of socket,
//!   setsockopt(SO_REUSEADDR), bind and listen over the same 1,000 addresses.
//!
//! The broker and the raw peer are separate processes (of this same binary). Rounds of both kinds
//! alternate, and the medians are compared. A round trip costs three times as much if each end has
//! to wake a core for the other, and the scheduler decides that anew for each pair of processes. So
//! single claims run first with both ends on one core, then with each on its own. The exit status
//! is 0 whenever it could measure: what a missed goal means is for a person to judge.

#![allow(missing_docs)]
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bindonce::{Claim, Client};
use bindonce_sys::limits;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt::ReuseAddr,
};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Listeners in one request.
const MANY: usize = 1000;

/// Rounds of each kind. Odd, so that there is a median round.
const ROUNDS: usize = 31;

/// Round trips in one round of single claims.
const TRIPS: u32 = 500;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    match (arguments.pop_front().as_deref(), arguments.pop_front()) {
        (Some("broker"), Some(path)) => serve(Path::new(&path)),
        (Some("raw"), Some(path)) => pass(Path::new(&path)),
        _ => measure(),
    }
}

/// The process that has the listeners: a real broker, which ends with its standard input.
fn serve(path: &Path) -> Outcome<()> {
    let runtime = bindonce_daemon::rpc::runtime().build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(());
    });
    let shutdown = async {
        let _ = stopped.await;
    };
    Ok(runtime.block_on(bindonce_broker::run(bindonce_broker::Config::new(path), shutdown))?)
}

/// The raw peer. For each byte received it passes one descriptor (`1`) or all of them (`*`), with
/// one byte per message.
fn pass(path: &Path) -> Outcome<()> {
    limits::raise_nofile()?;
    let (mut stream, _) = UnixListener::bind(path)?.accept()?;
    let held: Vec<TcpListener> =
        (0..MANY).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let held: Vec<BorrowedFd<'_>> = held.iter().map(AsFd::as_fd).collect();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        let fds = if byte == *b"1" { &held[..1] } else { &held[..] };
        for batch in fds.chunks(bindonce_fd::MAX_FDS) {
            bindonce_fd::send(&stream, b" ", batch)?;
        }
    }
    Ok(())
}

/// A process of this binary, and its directory; dropping this ends both.
struct Peer {
    child: Child,
    directory: PathBuf,
    socket: PathBuf,
}

impl Peer {
    fn start(role: &str) -> Outcome<Self> {
        let directory =
            std::env::temp_dir().join(format!("bindonce-bench-{role}-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        let socket = directory.join("socket");
        let child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(&socket)
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Self { child, directory, socket })
    }

    /// Keeps the process on these cores.
    fn place(&self, cores: &CpuSet) -> Outcome<()> {
        place(Some(Pid::from_child(&self.child)), cores)
    }

    /// Retries until the process listens.
    fn connect<T, E: Error + 'static>(
        &self,
        connect: impl Fn(&Path) -> Result<T, E>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match connect(&self.socket) {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Keeps a process's first thread on these cores; with None, the calling thread.
fn place(process: Option<Pid>, cores: &CpuSet) -> Outcome<()> {
    Ok(sched_setaffinity(process, cores)?)
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core);
    cores
}

fn measure() -> Outcome<()> {
    limits::raise_nofile()?;
    let (raw_peer, broker) = (Peer::start("raw")?, Peer::start("broker")?);
    let raw = raw_peer.connect(|path| UnixStream::connect(path))?;
    let mut client = broker.connect(Client::connect)?;

    measure_single(&[&raw_peer, &broker], &raw, &mut client)?;

    let addresses = addresses()?;
    let claims: Vec<Claim> = addresses.iter().copied().map(Claim::tcp).collect();
    let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();

    let mut new = Pair::default();
    for _ in 0..ROUNDS {
        // Closing is not measured, for either side.
        drop(new.raw(|| addresses.iter().map(open).collect::<Outcome<Vec<_>>>())?);
        let leases = new.ours(|| Ok(client.claim(&claims)?))?;
        assert!(leases.len() == MANY && leases.iter().all(bindonce::Lease::created));
        drop(leases);
        client.release(&names)?;
    }

    let mut known = Pair::default();
    drop(client.claim(&claims)?);
    for _ in 0..ROUNDS {
        let fds = known.raw(|| fetch(&raw, b"*", MANY))?;
        drop(fds);
        let leases = known.ours(|| Ok(client.claim(&claims)?))?;
        assert!(leases.len() == MANY && !leases[0].created());
    }
    let goal = |raw: Duration| raw * 2 + Duration::from_millis(1);
    known.print("1,000 known listeners in one request", 1, goal, "2 x + 1 ms");
    new.print("1,000 new listeners in one request", 1, |raw| raw.mul_f64(1.5), "1.5 x");
    Ok(())
}

/// Measures claims of one known listener, beside round trips with the raw peer.
fn measure_single(peers: &[&Peer], raw: &UnixStream, client: &mut Client) -> Outcome<()> {
    let one = [Claim::from("one=127.0.0.1:0")];
    client.claim(&one)?;
    let all = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
    let (first, second) = (cores.next().ok_or("a core")?, cores.next());
    let apart = second.map(|second| (second, "each end on a core of its own"));
    for (theirs, where_) in [(first, "both ends on one core")].into_iter().chain(apart) {
        place(None, &only(first))?;
        peers.iter().try_for_each(|peer| peer.place(&only(theirs)))?;
        let mut trips = Pair::default();
        for _ in 0..ROUNDS {
            trips.raw(|| (0..TRIPS).try_for_each(|_| fetch(raw, b"1", 1).map(drop)))?;
            trips.ours(|| {
                (0..TRIPS).try_for_each(|_| client.claim(&one).map(drop).map_err(Into::into))
            })?;
        }
        let what = format!("one claim on an open connection, {where_}");
        trips.print(&what, TRIPS, |raw| raw.mul_f64(2.5), "2.5 x");
    }
    place(None, &all)?;
    peers.iter().try_for_each(|peer| peer.place(&all))
}

/// Asks the raw peer for descriptors and receives them.
fn fetch(stream: &UnixStream, request: &[u8], count: usize) -> Outcome<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(count);
    bindonce_fd::send(stream, request, &[])?;
    let mut buffer = [0; 16];
    while fds.len() < count {
        if bindonce_fd::recv(stream.as_fd(), &mut buffer, &mut fds)? == 0 {
            return Err("the raw peer is gone".into());
        }
    }
    Ok(fds)
}

/// Opens a listener as the broker does, without reading anything back afterwards.
fn open(address: &SocketAddr) -> Outcome<OwnedFd> {
    let SocketAddr::V4(address) = address else { return Err("an IPv4 address".into()) };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(*address))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

/// Distinct loopback addresses on one port that is free now.
fn addresses() -> Outcome<Vec<SocketAddr>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = |index: usize| -> Outcome<SocketAddr> {
        let (high, low) = (u8::try_from(index / 250)?, u8::try_from(index % 250)?);
        Ok((Ipv4Addr::new(127, 77, high, low + 1), port).into())
    };
    (0..MANY).map(address).collect()
}

/// Times of the rounds of both kinds.
#[derive(Default)]
struct Pair {
    raw: Vec<Duration>,
    ours: Vec<Duration>,
}

impl Pair {
    fn raw<T>(&mut self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        clock(&mut self.raw, work)
    }

    fn ours<T>(&mut self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        clock(&mut self.ours, work)
    }

    fn print(mut self, what: &str, divisor: u32, goal: impl Fn(Duration) -> Duration, rule: &str) {
        let (raw, ours) = (median(&mut self.raw) / divisor, median(&mut self.ours) / divisor);
        let goal = goal(raw);
        println!("{what}");
        println!("    raw      {:>10.1} us", micros(raw));
        println!(
            "    bindonce {:>10.1} us    {:.2} x raw",
            micros(ours),
            micros(ours) / micros(raw)
        );
        let verdict = if ours <= goal { "met" } else { "MISSED" };
        println!("    goal     {:>10.1} us    {rule}: {verdict}\n", micros(goal));
    }
}

fn clock<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let begun = Instant::now();
    let done = work()?;
    times.push(begun.elapsed());
    Ok(done)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
