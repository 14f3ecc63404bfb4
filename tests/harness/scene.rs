//! The place of one test: a directory, where possible a network namespace (so that every port is
//! free and nothing else is reachable), and the check at the end that no process is left.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, Finished, Pause, Process, Wire, bindonce, eventually, finish, skip};

/// The environment variable that marks every process of a test; its value is the test's directory.
const MARK: &str = "BINDONCE_TEST";

/// The place of one test. Dropping it kills the test's remaining processes, removes the directory,
/// and fails the test if a process was left.
pub(crate) struct Scene {
    directory: PathBuf,
    isolated: bool,
    port: std::cell::Cell<u16>,
}

impl Scene {
    /// Creates a place. The calling thread, and everything that it starts, moves to a new network
    /// namespace with only a loopback device, if permitted.
    pub(crate) fn new() -> Self {
        super::patience::measure();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let directory = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            // Short: the path of a UNIX socket has at most 107 bytes.
            let name = format!("bindonce-{}-{number}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            match fs::create_dir(&directory) {
                // A killed test left the directory, and its pid is ours now.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => break made.map(|()| directory).expect("a directory for the test"),
            }
        };
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("its mode");
        let isolated = unshare(CloneFlags::CLONE_NEWNET).is_ok();
        if isolated {
            finish(Command::new("ip").args(["link", "set", "lo", "up"])).ok();
        }
        Self { directory, isolated, port: std::cell::Cell::new(8000) }
    }

    /// A place with a broker that answers.
    #[track_caller]
    pub(crate) fn with_broker() -> (Self, Process) {
        let scene = Self::new();
        let broker = scene.broker();
        (scene, broker)
    }

    /// A place with its own network namespace. Where none is possible, the test counts as skipped.
    #[track_caller]
    pub(crate) fn isolated(why: &str) -> Option<Self> {
        let scene = Self::new();
        if !scene.isolated {
            skip(why);
        }
        Some(scene).filter(Self::is_isolated)
    }

    /// Whether the test has its own network namespace.
    pub(crate) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// A path in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file in the test's directory and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("writing a file of the test");
        path
    }

    /// An unused loopback address: in its own network namespace the next port, else a port that the
    /// kernel just had free.
    pub(crate) fn address(&self) -> SocketAddr {
        if self.isolated {
            self.port.set(self.port.get() + 1);
            return SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.get()));
        }
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        probe.local_addr().expect("its address")
    }

    /// The control socket of the test's broker.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("broker.sock")
    }

    /// A command with this test's environment and nothing else.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.directory)
            .env("TMPDIR", &self.directory)
            .env("XDG_RUNTIME_DIR", &self.directory)
            .env(MARK, &self.directory)
            .current_dir(&self.directory);
        command
    }

    /// `bindonce VERB --socket SOCKET`, for more arguments.
    pub(crate) fn bindonce(&self, verb: &str) -> Command {
        let mut command = self.command(bindonce());
        command.arg(verb).arg("--socket").arg(self.socket());
        command
    }

    /// Runs `bindonce VERB --socket SOCKET ARGUMENTS` to its end.
    #[track_caller]
    pub(crate) fn run(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.bindonce(verb).args(arguments))
    }

    /// Starts a broker and waits until it answers.
    #[track_caller]
    pub(crate) fn broker(&self) -> Process {
        let mut broker = Process::start(&mut self.bindonce("serve"));
        self.wait_broker(&mut broker);
        broker
    }

    /// Waits until the broker at the test's socket answers.
    #[track_caller]
    pub(crate) fn wait_broker(&self, broker: &mut Process) {
        eventually("the broker to answer", || {
            assert!(broker.is_running(), "the broker ended: {}", broker.story());
            Wire::try_connect(&self.socket())
        });
    }

    /// A connection to the broker.
    #[track_caller]
    pub(crate) fn wire(&self) -> Wire {
        Wire::try_connect(&self.socket()).expect("connecting to the broker")
    }

    /// The living processes of this test: those with its mark in their environment, and those in
    /// its network namespace.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        self.processes_with(|_| true)
    }

    /// Those of them whose command line is wanted.
    fn processes_with(&self, wanted: impl Fn(&str) -> bool) -> Vec<(i32, String)> {
        let mark = format!("{MARK}={}", self.directory.display());
        let network =
            self.isolated.then(|| fs::read_link("/proc/thread-self/ns/net").ok()).flatten();
        let own = std::process::id().cast_signed();
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let inside = |pid: i32| {
            network.is_some() && fs::read_link(format!("/proc/{pid}/ns/net")).ok() == network
        };
        let marked = |pid: i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        pids.filter(|pid| *pid != own)
            .map(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                (pid, String::from_utf8_lossy(&command).replace('\0', " "))
            })
            .filter(|(_, command)| !command.is_empty() && wanted(command))
            // An environment is the longest of the files that are read here.
            .filter(|(pid, _)| inside(*pid) || marked(*pid))
            .collect()
    }

    /// The processes of this test that run haproxy (not the supervisor), by pid.
    pub(crate) fn haproxies(&self) -> Vec<i32> {
        let all = self.processes_with(Self::is_haproxy).into_iter();
        let mut pids: Vec<_> = all.map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        pids
    }

    /// Whether this command line is haproxy's, perhaps behind a loader.
    pub(super) fn is_haproxy(command: &str) -> bool {
        let program = command.split(' ').next().unwrap_or_default();
        let name = Path::new(program).file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name == "haproxy" || name.starts_with("ld-linux"))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A process that was told to end may need a moment.
        let patience = Instant::now() + DEADLINE;
        let mut left = self.processes();
        let mut pause = Pause::new();
        while !left.is_empty() && !std::thread::panicking() && Instant::now() < patience {
            pause.sleep();
            left = self.processes();
        }
        for (pid, _) in &left {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        fs::remove_dir_all(&self.directory).ok();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "processes left behind: {left:#?}");
            assert!(!self.directory.exists(), "{} left behind", self.directory.display());
        }
    }
}

#[test]
fn a_process_left_behind_is_seen_even_when_it_hides_its_parent() {
    let scene = Scene::new();
    // Its parent ends at once. A new session, and an empty environment where the network namespace
    // identifies it, hide it further.
    let hide = if scene.isolated { "env -i" } else { "" };
    let script = format!("setsid {hide} sleep 1000 >/dev/null 2>&1 & exit 0");
    finish(scene.command("sh").args(["-c", &script])).ok();
    let pid = eventually("the process", || {
        let found = scene.processes();
        found.into_iter().find(|(_, command)| command.contains("sleep 1000")).map(|(pid, _)| pid)
    });
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("ending it");
}
