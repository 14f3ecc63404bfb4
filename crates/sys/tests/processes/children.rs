//! The modes of this binary as a child process.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

use bindonce_sys::inherit;
use bindonce_sys::shim::Order;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use rustix::event::epoll;
use rustix::io::fcntl_dupfd_cloexec;

/// `__shim COUNT [PID] [service] -- PROGRAM [ARG]...`, as in the real command.
pub(crate) fn shim(args: &[OsString]) -> ExitCode {
    if std::env::var_os("TEST_SHIM_DIES").is_some() {
        return ExitCode::from(9);
    }
    let error = Order::parse(args[2..].iter().cloned()).expect("an order").carry_out();
    eprintln!("shim: {error}");
    ExitCode::from(127)
}

/// `child MODE [ARG]...`
pub(crate) fn child(args: &[OsString]) -> ExitCode {
    match args[2].to_str().expect("mode") {
        "exec" => exec(),
        "exec-fails" => exec_fails(),
        "exec-crowded" => exec_crowded(),
        "exec-too-many" => exec_too_many(),
        "ready" => ready(args[3].to_str().and_then(|pid| pid.parse().ok()).expect("pid")),
        "supervise" => crate::hold::supervise(),
        "bind-and-exec" => bind_and_exec(),
        "ghost" => ghost(args[3].to_str().expect("kind")),
        mode => unreachable!("{mode}"),
    }
    ExitCode::SUCCESS
}

/// Five sockets in each other's places: 3..8 become 7, 6, 5, 4, 3.
fn exec() {
    let mut fds: Vec<OwnedFd> =
        (0..5).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into()).collect();
    fds.reverse();
    let links: Vec<String> = fds.iter().map(|fd| link(fd.as_fd())).collect();
    println!("{}", links.join(" "));
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "for n in 3 4 5 6 7; do readlink /proc/self/fd/$n; done; exec ls /proc/self/fd",
    ]);
    let error = inherit::exec(fds, inherit::FIRST, &mut command);
    unreachable!("{error}");
}

/// After a failed exec every number means what it meant before.
fn exec_fails() {
    let file = std::fs::File::open("/dev/null").expect("open");
    let bystander = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let before = table();
    let fds: Vec<OwnedFd> =
        (0..4).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into()).collect();
    let error = inherit::exec(fds, inherit::FIRST, &mut Command::new("/bindonce/none"));
    assert_eq!(error.errno(), Some(2), "{error}");
    assert_eq!(table(), before);
    drop((file, bystander));
}

/// Hundreds of descriptors, each in the place of another, with hardly a free number.
fn exec_crowded() {
    const COUNT: usize = 600;
    let mut fds: Vec<OwnedFd> = (0..COUNT)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into())
        .collect();
    fds.reverse();
    let links: Vec<String> = fds.iter().map(|fd| link(fd.as_fd())).collect();
    println!("{}", links.join(" "));
    // Three standard ones, and one for swapping.
    lower_limit(u64::try_from(COUNT).expect("small") + 4);
    let mut command = Command::new("sh");
    command.args(["-c", "n=3; while readlink /proc/self/fd/$n; do n=$((n+1)); done"]);
    let error = inherit::exec(fds, inherit::FIRST, &mut command);
    unreachable!("{error}");
}

/// Numbers that are not below the limit, and numbers that are no longer free.
fn exec_too_many() {
    lower_limit(40);
    for first in [inherit::FIRST, 35] {
        let before = table();
        let mut fds: Vec<OwnedFd> = (0..10)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into())
            .collect();
        let bystanders: Vec<_> = match first {
            inherit::FIRST => {
                std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
            }
            _ => Vec::new(),
        };
        fds.reverse();
        let error = inherit::exec(fds, first, &mut Command::new("true"));
        drop(bystanders);
        println!("{error}; {}", error.hint().expect("a hint"));
        assert_eq!(table(), before);
    }
}

/// Binds, and executes another program in its place on SIGUSR2.
fn bind_and_exec() {
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGUSR2);
    asked.thread_block().expect("blocked");
    std::thread::spawn(move || {
        asked.wait().expect("SIGUSR2");
        let error = Command::new("sleep").arg("1000").exec();
        unreachable!("{error}");
    });
    drop(std::net::TcpListener::bind("127.0.0.1:0"));
}

fn lower_limit(to: u64) {
    let limit = rustix::process::Rlimit { current: Some(to), maximum: Some(to) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("lower");
}

/// Signals readiness to the supervisor twice, as haproxy does, and prints each time the result and
/// the number of signals handled meanwhile.
fn ready(supervisor: i32) {
    static HANDLED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn handle(_: i32) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    let action = SigAction::new(SigHandler::Handler(handle), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only adds to an atomic number.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("sigaction");
    for _ in 0..2 {
        #[expect(clippy::disallowed_methods, reason = "the call that is held")]
        let told = kill(Pid::from_raw(supervisor), Signal::SIGUSR1);
        println!("{told:?} {}", HANDLED.load(Ordering::SeqCst));
    }
}

/// Every open descriptor with its link and its flags.
fn table() -> Vec<(i32, String)> {
    let open = crate::open_descriptors();
    open.into_iter()
        .map(|fd| {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("info");
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("link");
            let flags = info.lines().find(|line| line.starts_with("flags:")).expect("flags");
            (fd, format!("{} {flags}", link.display()))
        })
        .collect()
}

fn link(fd: BorrowedFd<'_>) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("link");
    link.display().to_string()
}

/// Registers the listener, descriptor 3, and closes the registered descriptor; reports this on
/// standard output and stays until it is killed.
fn ghost(kind: &str) {
    let listener = inherited();
    match kind {
        // Registered and closed under another number, while 3 stays open.
        "number" => haunt(&listener, 40),
        // The same in a descriptor table of a single thread.
        "thread" => {
            let worker = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_FILES).expect("unshare");
                haunt(&listener, 60);
            });
            worker.join().expect("thread");
        }
        // In a table of two threads, which has the same numbers as the first table, and other
        // files.
        "apart" => {
            let (send, apart) = std::sync::mpsc::channel();
            let number = listener.as_raw_fd();
            let worker = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_FILES).expect("unshare");
                let epoll = watched(&listener);
                let sibling = std::thread::spawn(nix::unistd::pause);
                send.send(()).expect("the first thread");
                sibling.join().expect("thread");
                drop((epoll, listener));
            });
            apart.recv().expect("a table of its own");
            let null = || std::fs::File::open("/dev/null").expect("open");
            let mut instead = vec![null()];
            for taken in [inherit::FIRST, number] {
                nix::unistd::close(taken).expect("close");
                instead.push(null());
            }
            println!("ready");
            worker.join().expect("thread");
            std::mem::forget(instead);
        }
        // Registered and still open: not a ghost.
        "open" => {
            let _epoll = watched(&listener);
            stay();
        }
        kind => unreachable!("{kind}"),
    }
}

fn haunt(listener: &OwnedFd, number: i32) {
    let copy = fcntl_dupfd_cloexec(listener, number).expect("dup");
    let _epoll = watched(&copy);
    drop(copy);
    stay();
}

fn watched(listener: &OwnedFd) -> OwnedFd {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let data = epoll::EventData::new_u64(1);
    epoll::add(&epoll, listener, data, epoll::EventFlags::IN).expect("add");
    epoll
}

fn stay() {
    println!("ready");
    nix::unistd::pause();
}

/// A copy of the listener that the shim put at descriptor 3, taken with
/// pidfd_getfd from this very process: that needs no unsafe code.
fn inherited() -> OwnedFd {
    let pid = i32::try_from(std::process::id()).expect("pid");
    bindonce_sys::process::Pidfd::open(pid).expect("pidfd").take(inherit::FIRST).expect("listener")
}
