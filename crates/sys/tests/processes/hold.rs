//! Programs that are held when they signal readiness.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bindonce_sys::executable;
use bindonce_sys::hold::Hold;
use bindonce_sys::intercept::Intercept;
use bindonce_sys::process::{self, Exit};
use bindonce_sys::shim::Interception;
use bindonce_sys::signals::{Signal, SignalFd};
use bindonce_sys::spawn::{self, Launch, Started};
use bindonce_sys::{queue, signals};

use crate::Test;
use crate::programs::wait;

pub(crate) const TESTS: &[Test] = &[
    ("held: until it is released, and not again", until_released),
    ("held: whatever signal comes, and the latest call counts", through_signals),
    ("held: not beyond the supervisor", until_nobody_holds),
    ("held: a program that dies is told", dies),
    ("held: a shim that dies gives nothing to hold with", dead_shim),
    ("held: haproxy accepts nothing before it is released", haproxy),
    ("another user's programs are held too", as_nobody),
    ("a call whose thread is gone is not looked at in what has its pid now", executes),
];

const DEADLINE: Duration = Duration::from_secs(10);
/// How long nothing must happen.
const STILL: Duration = Duration::from_millis(200);

/// This process, with SIGUSR1 blocked as in a supervisor, and a program that is about to call.
struct Scene {
    signals: SignalFd,
    started: Started,
    hold: Option<Hold>,
}

impl Scene {
    /// None if nothing can be held.
    async fn new(mut launch: Launch) -> Option<Self> {
        let signals = SignalFd::new(&[Signal::SIGUSR1]).expect("signalfd");
        launch.calls.hold = Some(pid());
        let mut started = launch.start().expect("start");
        let received = spawn::receive_hold(started.shim.take().expect("a socket")).await;
        let calls = received.map(|fd| Arc::new(Intercept::new(fd, Vec::new()).expect("calls")));
        let hold = calls.map(|calls| Hold::new(calls, drop));
        let scene = Self { signals, started, hold };
        if scene.hold.is_none() {
            crate::skip::skip("holds: seccomp(2) is refused");
            scene.started.pidfd.send(Signal::SIGKILL).expect("kill");
            wait(&scene.started.pidfd);
            return None;
        }
        Some(scene)
    }

    async fn ready() -> Option<Self> {
        Self::start(Stdio::piped()).await
    }

    async fn start(stdout: Stdio) -> Option<Self> {
        let mut launch = Launch::new(std::env::current_exe().expect("path"));
        launch.args = vec!["child".into(), "ready".into(), pid().to_string().into()];
        launch.stdout = stdout;
        let scene = Self::new(launch).await?;
        assert_eq!(scene.called().await, Some(scene.started.pid));
        Some(scene)
    }

    async fn called(&self) -> Option<i32> {
        let called = self.hold.as_ref().expect("held").called();
        tokio::time::timeout(DEADLINE, called).await.expect("in time").expect("told")
    }

    /// Checks that the program is held: for a while it prints nothing, and no signal comes.
    async fn is_held(&self) {
        self.is_silent().await;
        assert_eq!(self.signals.read().expect("read"), None);
    }

    async fn is_silent(&self) {
        let stdout = self.started.stdout.as_ref().expect("piped");
        let wrote = bindonce_sys::watch::Watch::new(stdout).expect("watch");
        let read = tokio::time::timeout(STILL, wrote.readable()).await;
        assert!(read.is_err(), "it goes on");
    }

    /// All output of the program, and how it ended. The runtime answers meanwhile.
    async fn finish(mut self) -> (String, Exit, Option<i32>) {
        let mut stdout = std::fs::File::from(self.started.stdout.take().expect("piped"));
        #[expect(clippy::disallowed_methods, reason = "the runtime must answer meanwhile")]
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("read");
            text
        });
        let text = tokio::time::timeout(DEADLINE, read).await.expect("in time").expect("read");
        let exit = wait(&self.started.pidfd);
        let sender = self.signals.read().expect("read").map(|signal| signal.pid);
        (text, exit, sender)
    }
}

fn pid() -> i32 {
    i32::try_from(std::process::id()).expect("pid")
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(test);
}

fn until_released() {
    run(async {
        let Some(scene) = Scene::ready().await else { return };
        scene.is_held().await;
        scene.hold.as_ref().expect("held").release();
        let pid = scene.started.pid;
        let (text, exit, sender) = scene.finish().await;
        assert_eq!((text.as_str(), exit), ("Ok(()) 0\nOk(()) 0\n", Exit::Code(0)));
        assert_eq!(sender, Some(pid));
    });
}

fn through_signals() {
    run(async {
        let Some(scene) = Scene::ready().await else { return };
        for signal in [Signal::SIGUSR2, Signal::SIGSTOP, Signal::SIGTTOU, Signal::SIGCONT] {
            scene.started.pidfd.send(signal).expect("send");
            scene.is_held().await;
        }
        // The program stops inside the call or right after it; either way it is released when it
        // continues.
        scene.started.pidfd.send(Signal::SIGSTOP).expect("send");
        scene.hold.as_ref().expect("held").release();
        scene.is_silent().await;
        scene.started.pidfd.send(Signal::SIGCONT).expect("send");
        let (text, exit, _) = scene.finish().await;
        assert_eq!((text.as_str(), exit), ("Ok(()) 1\nOk(()) 1\n", Exit::Code(0)));
    });
}

fn until_nobody_holds() {
    let mut launch = Launch::new(std::env::current_exe().expect("path"));
    launch.args = vec!["child".into(), "supervise".into()];
    launch.stdout = Stdio::piped();
    let mut started = launch.start().expect("start");
    let mut stdout = BufReader::new(std::fs::File::from(started.stdout.take().expect("piped")));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("read");
    if line == "held\n" {
        started.pidfd.send(Signal::SIGKILL).expect("kill");
        // The pipe ends with the program, which has it too.
        stdout.read_to_string(&mut line).expect("read");
        assert_eq!(line, "held\nErr(ENOSYS) 0\nErr(ENOSYS) 0\n");
    }
    wait(&started.pidfd);
}

/// Holds a program for as long as it lives; prints when the program has called.
pub(crate) fn supervise() {
    run(async {
        let scene = Scene::start(Stdio::inherit()).await;
        if scene.is_some() {
            println!("held");
            // Until this process is killed.
            std::future::pending::<()>().await;
        }
    });
}

fn dies() {
    run(async {
        let Some(scene) = Scene::ready().await else { return };
        scene.started.pidfd.send(Signal::SIGKILL).expect("kill");
        assert_eq!(wait(&scene.started.pidfd), Exit::Signal(9));
        let end = async {
            while scene.called().await.is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, end).await.expect("in time");
        scene.hold.as_ref().expect("held").release();
    });
}

fn dead_shim() {
    run(async {
        let mut launch = Launch::new("true");
        launch.env = vec![("TEST_SHIM_DIES".into(), "1".into())];
        launch.calls.hold = Some(pid());
        let mut started = launch.start().expect("start");
        let received = spawn::receive_hold(started.shim.take().expect("a socket"));
        let received = tokio::time::timeout(DEADLINE, received).await.expect("in time");
        assert!(received.is_none());
        wait(&started.pidfd);
        assert!(
            Launch::new("true").start().map(|s| (wait(&s.pidfd), s.shim)).expect("s").1.is_none()
        );
    });
}

fn haproxy() {
    if executable::find("haproxy".as_ref()).is_err() {
        crate::skip::skip("haproxy is not installed");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("address");
    let listener = OwnedFd::from(listener);
    run(async {
        let file = std::env::temp_dir().join(format!("bindonce-hold-{}.cfg", std::process::id()));
        let text = "defaults\n  mode http\n  timeout client 9s\nfrontend web\n  \
                    bind \"fd@${L}\"\n  http-request return status 200\n";
        std::fs::write(&file, text).expect("write");
        let mut launch = Launch::new("haproxy");
        launch.args = ["-db", "-f", file.to_str().expect("path"), "-sf", &pid().to_string()]
            .map(Into::into)
            .to_vec();
        launch.descriptors = vec![("L".to_owned(), listener.try_clone().expect("dup").into())];
        let scene = Scene::new(launch).await;
        let Some(scene) = scene else { return };
        assert_eq!(scene.called().await, Some(scene.started.pid));
        std::fs::remove_file(&file).expect("remove");

        let mut client = ask(at, STILL);
        let error = client.read(&mut [0; 16]).expect_err("nobody answers");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        assert_eq!(queue::accept_queue(listener.as_fd()).expect("queue").len, 1);
        assert_eq!(scene.signals.read().expect("read"), None);

        scene.hold.as_ref().expect("held").release();
        client.set_read_timeout(Some(DEADLINE)).expect("timeout");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, *b"HTTP/1.1 200");
        // A pending signal would swallow the same signal from another process.
        assert_eq!(scene.signals.read().expect("read"), None);
        // The program's own signals still reach it.
        scene.started.pidfd.send(Signal::SIGUSR1).expect("stop");
        assert!(wait(&scene.started.pidfd).success());
    });
}

fn ask(at: SocketAddr, patience: Duration) -> TcpStream {
    let mut client = TcpStream::connect(at).expect("connect");
    client.set_read_timeout(Some(patience)).expect("timeout");
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
    client
}

/// All tests above, in a process without privileges.
fn as_nobody() {
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        crate::skip::skip("needs root, to become another user");
        return;
    }
    signals::reset().expect("reset");
    let mut command = Command::new("/proc/self/exe");
    let output = command.arg("held:").uid(NOBODY).gid(NOBODY).output().expect("run");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    let held = TESTS.iter().filter(|(name, _)| name.starts_with("held:")).count();
    assert_eq!(stdout.matches("... ok").count(), held, "{stdout}");
    assert!(!stderr.contains("not tested"), "{stderr}");
}

fn executes() {
    run(async {
        let mut launch = Launch::new(std::env::current_exe().expect("path"));
        launch.args = vec!["child".into(), "bind-and-exec".into()];
        launch.calls.intercept = Interception::Always;
        let mut started = launch.start().expect("start");
        let received = spawn::receive_hold(started.shim.take().expect("a socket")).await;
        let Some(fd) = received else {
            wait(&started.pidfd);
            return crate::skip::skip("calls: seccomp(2) is refused");
        };
        let calls = Intercept::new(fd, Vec::new()).expect("calls");
        let call = tokio::time::timeout(DEADLINE, calls.next()).await.expect("in time");
        let call = call.expect("told").expect("a call");
        assert!(call.look()().is_ok());
        // Another thread executes another program, which takes over the process and its
        // descriptors.
        started.pidfd.send(Signal::SIGUSR2).expect("send");
        let until = tokio::time::Instant::now() + DEADLINE;
        while process::name(started.pid).as_deref() != Some("sleep") {
            assert!(tokio::time::Instant::now() < until, "it executes nothing");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = call.look()().map(drop).expect_err("nobody calls");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ESRCH), "{error}");
        started.pidfd.send(Signal::SIGKILL).expect("kill");
        wait(&started.pidfd);
    });
}
