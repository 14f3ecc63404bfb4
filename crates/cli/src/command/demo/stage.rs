//! The place of the demonstration: a directory, an address, perhaps a network namespace, and the
//! processes started in it. Dropping it ends them all and removes the directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bindonce_core::address::Address;
use bindonce_sys::process::Pidfd;
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::{diag, holders, inherit, network};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a start or a reload may take on a slow host.
pub(super) const READY: Duration = Duration::from_secs(20);
/// Time from SIGTERM to the next, stronger signal.
const ENDS: Duration = Duration::from_secs(5);
/// Log lines shown of a process that failed.
const LAST_WORDS: usize = 12;

/// The place, and all processes started in it.
#[derive(Debug)]
pub(super) struct Stage {
    /// Where haproxy listens.
    pub(super) address: SocketAddr,
    /// The haproxy to start.
    pub(super) haproxy: PathBuf,
    /// Whether the demonstration has its own network namespace.
    pub(super) isolated: bool,
    directory: PathBuf,
    signals: SignalFd,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    child: Child,
    pidfd: Pidfd,
}

impl Stage {
    /// Sets the stage. Call it before this process has any other thread.
    pub(super) fn set(haproxy: PathBuf) -> anyhow::Result<Self> {
        // From here on every wait notices a signal, and everything is ended.
        let signals = SignalFd::new(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
            .context("cannot take signals over")?;
        // Also free in this namespace, so that a tool that looks at all namespaces cannot confuse
        // the two.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|free| free.local_addr())
            .context("no port is free on 127.0.0.1")?;
        let isolated = network::isolate()?;
        let directory = std::env::temp_dir().join(format!("bindonce-demo-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { address, haproxy, isolated, directory, signals, running: Vec::new() })
    }

    /// The control socket of the broker.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("bindonce.sock")
    }

    /// The configuration of haproxy.
    pub(super) fn configuration(&self) -> PathBuf {
        self.directory.join("haproxy.cfg")
    }

    /// Replaces the configuration atomically, so that no process reads half of it.
    pub(super) fn configure(&self, text: &str) -> anyhow::Result<()> {
        let new = self.directory.join("new.cfg");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, self.configuration()))
            .context("cannot write a configuration")
    }

    /// Starts a program in its own process group: Ctrl-C reaches only us, and we end it in order.
    pub(super) fn start(
        &mut self,
        name: &'static str,
        program: &OsStr,
        words: &[OsString],
    ) -> anyhow::Result<u32> {
        let log = self.log(name)?;
        let mut command = Command::new(program);
        let ours = ["BINDONCE_SOCKET", "MULTIBINDER_SOCK"].into_iter();
        for ours in ours.chain(inherit::SERVICE_MANAGER) {
            command.env_remove(ours);
        }
        command.args(words).process_group(0).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if program == "/proc/self/exe" {
            command.arg0("bindonce");
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        match Pidfd::open(pid.cast_signed()) {
            Ok(pidfd) => self.running.push(Running { name, child, pidfd }),
            Err(error) => {
                child.kill().and_then(|()| child.wait())?;
                return Err(error).context("cannot watch a process");
            }
        }
        Ok(pid)
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.directory.join(name).with_extension("log");
        OpenOptions::new().create(true).append(true).open(path).context("cannot write a log")
    }

    /// Fails if a signal has arrived that ends the demonstration.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.signals.read()? {
            Some(received) => bail!(
                "{}: the demonstration stops here; everything that it started has ended",
                received.signo
            ),
            None => Ok(()),
        }
    }

    /// Waits for `time`, or until a signal ends the demonstration.
    pub(super) fn pause(&self, time: Duration) -> anyhow::Result<()> {
        wait(&[self.signals.as_fd()], time)?;
        self.check()
    }

    /// Waits for a process to end with success.
    pub(super) fn wait_success(&mut self, pid: u32, patience: Duration) -> anyhow::Result<()> {
        let Some(at) = self.running.iter().position(|one| one.child.id() == pid) else {
            return Ok(());
        };
        let until = Instant::now() + patience;
        let status = loop {
            let one = &mut self.running[at];
            if let Some(status) = one.child.try_wait()? {
                break status;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} did not end within {} s", one.name, patience.as_secs());
            }
            wait(&[self.signals.as_fd(), one.pidfd.as_fd()], left)?;
            self.check()?;
        };
        let one = self.running.remove(at);
        self.must_have_succeeded(one.name, status)
    }

    /// Waits until a process listens on the address with its own socket.
    pub(super) fn bound_by(&mut self, pid: u32) -> anyhow::Result<()> {
        let address = Address::Tcp(self.address);
        let until = Instant::now() + READY;
        loop {
            let listening = diag::tcp()?;
            let here = listening.iter().filter(|socket| socket.address == address);
            let inodes: Vec<u64> = here.map(|socket| socket.inode).collect();
            if holders::holds(pid.cast_signed(), &inodes)? {
                return Ok(());
            }
            self.all_run()?;
            if Instant::now() >= until {
                bail!("haproxy, pid {pid}, did not bind {}\n{}", self.address, self.last_words());
            }
            // No event announces it.
            self.pause(Duration::from_millis(10))?;
        }
    }

    /// Fails if a process has ended without success.
    pub(super) fn all_run(&mut self) -> anyhow::Result<()> {
        let mut at = 0;
        while let Some(one) = self.running.get_mut(at) {
            match one.child.try_wait()? {
                Some(status) => {
                    let one = self.running.remove(at);
                    self.must_have_succeeded(one.name, status)?;
                }
                None => at += 1,
            }
        }
        Ok(())
    }

    fn must_have_succeeded(&self, name: &str, status: ExitStatus) -> anyhow::Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!("{name} ended with {status}\n{}", self.words_of(name))
    }

    /// The last log lines of all running processes.
    pub(super) fn last_words(&self) -> String {
        let mut names: Vec<_> = self.running.iter().map(|one| one.name).collect();
        names.dedup();
        names.iter().map(|name| self.words_of(name)).collect::<Vec<_>>().join("\n")
    }

    fn words_of(&self, name: &str) -> String {
        let path = self.directory.join(name).with_extension("log");
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().map(|line| format!("  {name}: {line}")).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    /// Ends all processes, the last one first.
    pub(super) fn end_all(&mut self) {
        // Haproxies of the old way end together; the broker ends after its supervisor.
        let (haproxies, others): (Vec<_>, Vec<_>) =
            self.running.drain(..).partition(|one| one.name == "haproxy");
        for one in &haproxies {
            one.signal(Signal::SIGTERM);
        }
        for mut one in haproxies.into_iter().chain(others.into_iter().rev()) {
            one.end();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end_all();
        // The directory is ours, and no process is left that writes to it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        // Fails if the process has ended already, which is the goal.
        let _ = self.pidfd.send(signal);
    }

    /// Sends SIGTERM, SIGTERM again (a supervisor then lets nothing drain), and SIGKILL, until the
    /// process ends.
    fn end(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal);
            let _ = wait(&[self.pidfd.as_fd()], ENDS);
            if let Ok(Some(_)) | Err(_) = self.child.try_wait() {
                return;
            }
        }
    }
}

/// Waits until one of these is readable, for `time` at most.
fn wait(fds: &[std::os::fd::BorrowedFd<'_>], time: Duration) -> anyhow::Result<()> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // Rounded up: a wait of less than a millisecond must not become a busy loop.
    let milliseconds = u16::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut polled, PollTimeout::from(milliseconds)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait"),
    }
}

/// The first line of `haproxy -v`, without the address of its home page.
pub(super) fn version(haproxy: &Path) -> String {
    let banner = Command::new(haproxy).arg("-v").output().map(|output| output.stdout);
    let banner = String::from_utf8_lossy(&banner.unwrap_or_default()).into_owned();
    let first = banner.lines().next().unwrap_or("haproxy");
    first.split(" - ").next().unwrap_or(first).to_owned()
}
