//! bindonce under the name of haproxy, started and signalled as those do who start haproxy: each test is one caller of
//! docs/stand-in.md.

mod reloads;
mod replacing;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindonce_load::{Load, Plan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, assert_nothing_lost, bindonce, config, eventually, finish,
    skip,
};

/// A directory with a link to bindonce by the name of haproxy, and a broker.
pub(crate) struct Caller {
    _broker: Process,
    program: PathBuf,
    address: std::net::SocketAddr,
    pub(crate) scene: Scene,
}

impl Caller {
    pub(crate) fn new(program: &Path) -> Self {
        let scene = Scene::new();
        std::fs::create_dir(scene.path("bin")).expect("a directory");
        symlink(bindonce(), scene.path("bin/haproxy")).expect("a link");
        let (broker, address) = (scene.broker(), scene.address());
        let caller = Self { _broker: broker, program: program.to_owned(), address, scene };
        caller.configure("", 1);
        caller
    }

    pub(crate) fn configure(&self, global: &str, tag: u64) {
        let text = config(self.address, tag).replace("global\n", &format!("global\n{global}"));
        self.scene.write("haproxy.cfg", &text);
    }

    /// `haproxy WORDS`, by the link.
    pub(crate) fn haproxy(&self, words: &str) -> Command {
        self.command(self.scene.path("bin/haproxy"), words)
    }

    pub(crate) fn command(&self, program: impl AsRef<OsStr>, words: &str) -> Command {
        let mut command = self.scene.command(program);
        command.env("BINDONCE_HAPROXY", &self.program);
        command.env("BINDONCE_SOCKET", self.scene.socket());
        command.args(words.split_whitespace());
        command
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// A haproxy whose generations with these numbers, a pattern of the shell, each start when [`Caller::open_gate`] says so.
    pub(crate) fn gated(&self, generations: &str) -> PathBuf {
        let gate = self.scene.path("gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let (gate, haproxy) = (gate.display(), self.program.display());
        let starts = format!("case \"$BINDONCE_GENERATION $*\" in {generations}\\ *-db*)");
        let script =
            format!("#!/bin/sh\n{starts} read -r go <{gate};; esac\nexec {haproxy} \"$@\"\n");
        let script = self.scene.write("slow", &script);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&script, mode).expect("its mode");
        script
    }

    /// Lets the generation start that waits, or will wait, at the gate.
    #[track_caller]
    pub(crate) fn open_gate(&self) {
        eventually("a generation to read at the gate", || {
            let mut options = std::fs::OpenOptions::new();
            let gate = options.write(true).custom_flags(nix::libc::O_NONBLOCK);
            gate.open(self.scene.path("gate")).ok()?.write_all(b"go\n").ok()
        });
    }

    /// The name of the service, which is the only one.
    #[track_caller]
    pub(crate) fn service(&self) -> String {
        let status: serde_json::Value =
            serde_json::from_str(&self.scene.run("status", &["--json"]).ok()).expect("JSON");
        status["supervisors"][0]["service"].as_str().expect("a service").to_owned()
    }

    /// Waits until so many clients wait for a later reload.
    #[track_caller]
    pub(crate) fn wait_waiting(&self, count: u64) {
        eventually("clients to wait", || {
            let status = self.scene.run("status", &["--json"]).ok();
            let status: serde_json::Value = serde_json::from_str(&status).ok()?;
            (status["supervisors"][0]["reloads_waiting"] == count).then_some(())
        });
    }

    pub(crate) fn pid(&self, file: &str) -> Option<i32> {
        std::fs::read_to_string(self.scene.path(file)).ok()?.strip_suffix('\n')?.parse().ok()
    }

    /// Clients, once one is answered by generation 1.
    #[track_caller]
    pub(crate) fn load(&self) -> Load {
        self.answers(1)
    }

    #[track_caller]
    fn answers(&self, tag: u64) -> Load {
        eventually("it listens", || TcpStream::connect(self.address).ok());
        let mut plan = Plan::new(self.address);
        (plan.clients, plan.rate) = (4, Some(1000));
        let load = plan.start().expect("load");
        self.wait_tag(&load, tag);
        load
    }

    #[track_caller]
    pub(crate) fn wait_tag(&self, load: &Load, tag: u64) {
        assert!(load.wait_for_token(&tag.to_string(), DEADLINE), "generation {tag} never answered");
    }

    /// Sends a signal to every haproxy, as `kill -USR1 $(pidof haproxy)` does.
    pub(crate) fn signal_all(&self, signal: Signal) {
        for pid in self.scene.haproxies() {
            // It may be gone by now.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    #[track_caller]
    pub(crate) fn wait_none(&self) {
        eventually("no haproxy", || self.scene.haproxies().is_empty().then_some(()));
    }
}

#[track_caller]
fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it is there");
}

/// What haproxy says, without its pid and its path.
fn without_pids(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| line.split_once(") : ").map_or(line, |(_, rest)| rest));
    lines.filter(|line| !line.contains("Usage : ") && !line.contains("path to exec")).collect()
}

#[test]
fn what_haproxy_answers_without_serving_is_its_own_answer() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        caller.scene.write("bad.cfg", "frontend web\n    bnid :80\n");
        for words in [
            "-v",
            "-vv",
            "",
            "-h",
            "-cc 1",
            "-Z",
            "-f",
            "-c -f haproxy.cfg",
            "-W -c -q -f haproxy.cfg",
            "-c -f bad.cfg",
            "-c -f none.cfg",
            "-f haproxy.cfg -sf x",
        ] {
            let real = finish(&mut caller.command(&program, words));
            let ours = finish(&mut caller.haproxy(words));
            let by_command = finish(&mut caller.command(bindonce(), &format!("haproxy {words}")));
            for (how, ours) in [("by a link", ours), ("by the command", by_command)] {
                assert_eq!(ours.code, real.code, "{words} {how}: {}", ours.err);
                assert_eq!(ours.out, real.out, "{words} {how}");
                assert_eq!(without_pids(&ours.err), without_pids(&real.err), "{words} {how}");
            }
        }
    });
}

/// Options are refused as by haproxy at its start: `-S` without a master, and `-x` where nobody answers.
#[test]
fn sockets_that_are_not_as_haproxy_wants_them_are_refused_with_it() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let socket = caller.scene.path("m.sock").display().to_string();
        let words = format!("-f haproxy.cfg -S {socket}");
        let real = finish(&mut caller.command(&program, &format!("-c {words}")));
        let ours = finish(&mut caller.haproxy(&format!("-D -p pid {words}")));
        assert_eq!(ours.code, real.code, "{}", ours.err);
        assert!(ours.err.contains("master-worker mode (-W) is not enabled"), "{}", ours.err);
        assert!(!Path::new(&socket).exists(), "it is served");
        caller.signal_all(Signal::SIGTERM);
        caller.wait_none();
        let words = format!("-D -p pid -f haproxy.cfg -x {socket}");
        for (who, mut command) in
            [("haproxy", caller.command(&program, &words)), ("ours", caller.haproxy(&words))]
        {
            let said = finish(&mut command).fails(1);
            assert!(
                said.contains("Failed to get the sockets from the old process"),
                "{who}: {said}"
            );
        }
        caller.wait_none();
    });
}

/// The files are read once: a pipe has its text once.
#[test]
fn a_configuration_may_come_through_a_pipe() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let mut shell = caller.command("sh", "-c");
        let link = caller.scene.path("bin/haproxy");
        shell.arg(format!("cat haproxy.cfg | exec {} -W -f /dev/stdin", link.display()));
        let mut shell = Process::start(&mut shell);
        drop(caller.load());
        caller.signal_all(Signal::SIGTERM);
        caller.wait_none();
        shell.wait_exit();
        let mut shell = caller.command("sh", "-c");
        shell.arg(format!("cat haproxy.cfg | {} -D -p pid -f /dev/stdin", link.display()));
        assert_eq!(finish(&mut shell).ok(), "");
        drop(caller.load().stop());
        let supervisor = caller.pid("pid").expect("the pid file");
        // Whoever has written it may wait until nobody reads any more.
        let input = std::fs::read_link(format!("/proc/{supervisor}/fd/0")).expect("its input");
        assert_eq!(input, Path::new("/dev/null"));
        signal(supervisor, Signal::SIGTERM);
        caller.wait_none();
        // A check reads it once too.
        let mut shell = caller.command("sh", "-c");
        shell.arg(format!("cat haproxy.cfg | {} -c -f /dev/stdin", link.display()));
        finish(&mut shell).ok();
        // So haproxy cannot be asked why a start was refused.
        let other = format!("frontend other\n    bind {}\n", caller.address);
        let twice = config(caller.address, 1) + &other;
        caller.scene.write("twice.cfg", &twice);
        let mut shell = caller.command("sh", "-c");
        shell.arg(format!("cat twice.cfg | {} -D -f /dev/stdin", link.display()));
        let said = finish(&mut shell).fails(1);
        assert!(said.contains("is already bound at"), "{said}");
    });
}

/// What haproxy warns of is on standard error of whoever has started it, also where that is a reload.
#[test]
fn warnings_reach_whoever_starts_another_haproxy() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid")).ok();
        let supervisor = caller.pid("pid").expect("the pid file");
        let text = config(caller.address, 2).replace("timeout client", "# timeout client");
        caller.scene.write("haproxy.cfg", &text);
        let words = format!("-D -f haproxy.cfg -p pid -sf {supervisor}");
        let done = finish(&mut caller.haproxy(&words));
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(done.err.contains("missing timeouts for frontend 'web'"), "{}", done.err);
        signal(supervisor, Signal::SIGTERM);
        caller.wait_none();
    });
}

/// The official image's entrypoint prepends `-W -db`; engines send HUP or USR2 to reload, and USR1 to stop.
#[test]
fn an_image_has_the_pid_that_was_started_and_stops_in_order() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let mut haproxy = Process::start(&mut caller.haproxy("-W -db -f haproxy.cfg -p pid"));
        eventually("the pid file", || caller.pid("pid"));
        assert_eq!(caller.pid("pid"), Some(haproxy.pid().cast_signed()));
        let load = caller.load();
        for (tag, signal) in [(2, Signal::SIGHUP), (3, Signal::SIGUSR2)] {
            caller.configure("", tag);
            haproxy.signal(signal);
            caller.wait_tag(&load, tag);
        }
        assert_nothing_lost(&load.stop());
        assert_eq!(caller.pid("pid"), Some(haproxy.pid().cast_signed()));
        haproxy.signal(Signal::SIGUSR1);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
        caller.wait_none();
    });
}

/// With the link first in PATH, as in the image, `haproxy` is bindonce itself.
#[test]
fn a_command_of_bindonce_runs_the_haproxy_behind_the_link() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let path = format!("{}:/usr/bin:/bin", caller.scene.path("bin").display());
    let words = "run -- haproxy -f haproxy.cfg";
    let mut run = Process::start(caller.command(bindonce(), words).env("PATH", path));
    drop(caller.load().stop());
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait_exit().code(), Some(0), "{}", run.story());
}

/// Everything ends; a worker's end is no crash to be repaired.
#[test]
fn a_signal_to_every_haproxy_is_a_stop() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    for (signal, code) in [(Signal::SIGTERM, 0), (Signal::SIGINT, 130), (Signal::SIGUSR1, 0)] {
        let mut haproxy = Process::start(&mut caller.haproxy("-W -f haproxy.cfg"));
        // The broker has had the address since the first of them.
        haproxy.wait_line("serving");
        caller.signal_all(signal);
        assert_eq!(haproxy.wait_exit().code(), Some(code), "{signal}: {}", haproxy.story());
        caller.wait_none();
    }
}

/// A worker that ends by SIGTERM is no fault to haproxy's master.
#[test]
fn a_signal_ends_it_with_the_exit_code_of_haproxys_master() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let socket = caller.scene.path("m.sock");
        let words = format!("-W -f haproxy.cfg -S {}", socket.display());
        let ends = |mut command: Command, ready: &str| {
            for (signal, code) in
                [(Signal::SIGTERM, 0), (Signal::SIGINT, 130), (Signal::SIGUSR1, 0)]
            {
                let mut haproxy = Process::start(&mut command);
                // haproxy's own is ended by a signal before that, and up to 3.0 until it has executed itself again.
                haproxy.wait_line(ready);
                eventually("the master to answer", || {
                    let stream = UnixStream::connect(&socket).ok()?;
                    stream.set_read_timeout(Some(DEADLINE / 10)).ok()?;
                    master(stream)
                });
                haproxy.signal(signal);
                assert_eq!(haproxy.wait_exit().code(), Some(code), "{signal} {}", haproxy.story());
                caller.wait_none();
            }
        };
        ends(caller.command(&program, &words), "Loading success");
        ends(caller.haproxy(&words), "serving");
    });
}

/// A pid file is written only in the background or with a master, and looked at only then. A master goes on where nothing
/// is to be listened on: what it was started for may come with a reload.
#[test]
fn what_only_a_master_needs_is_asked_of_a_master_alone() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let mut haproxy = Process::start(&mut caller.haproxy("-db -f haproxy.cfg -p none/pid"));
        drop(caller.load().stop());
        haproxy.signal(Signal::SIGUSR1);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
        for (start, global) in [("-W -D", ""), ("-D", "    master-worker\n")] {
            caller.scene.write("haproxy.cfg", &format!("global\n    maxconn 10\n{global}"));
            finish(&mut caller.haproxy(&format!("{start} -f haproxy.cfg -p pid"))).ok();
            let supervisor = caller.pid("pid").expect("the pid file");
            caller.configure(global, 2);
            signal(supervisor, Signal::SIGUSR2);
            drop(caller.answers(2).stop());
            signal(supervisor, Signal::SIGTERM);
            caller.wait_none();
        }
    });
}

/// Without a master the signal itself ends haproxy. Who has started it may wait for the end of its output, and the broker
/// that was started for it goes on.
#[test]
fn its_output_ends_with_it() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    if !caller.scene.is_isolated() {
        return skip("needs root, for a /run of its own");
    }
    let inside = "mount -t tmpfs tmpfs /run && exec bin/haproxy -d -f haproxy.cfg";
    let mut command = caller.scene.command("unshare");
    command.args(["-m", "sh", "-c", inside]).env("BINDONCE_HAPROXY", &program);
    let mut haproxy = Process::start(&mut command);
    let started = haproxy.wait_line("broker started");
    let broker = started.split_once("pid=").and_then(|(_, rest)| rest.split(' ').next());
    let broker = broker.and_then(|pid| pid.parse().ok()).expect("its pid");
    drop(caller.load().stop());
    haproxy.signal(Signal::SIGTERM);
    let status = haproxy.wait_exit();
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{}", haproxy.story());
    haproxy.wait_silence();
    signal(broker, Signal::SIGTERM);
}

/// A container with a read-only root, a user without a home and the official image's command and stop signal: `docker stop`
/// answers what is in progress.
#[test]
fn a_container_ends_in_order() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    if !caller.scene.is_isolated() {
        return skip("needs root, for namespaces");
    }
    std::fs::create_dir(caller.scene.path("image")).expect("a directory");
    std::fs::copy(bindonce(), caller.scene.path("image/haproxy")).expect("the binary");
    let inside = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm && mount -o remount,bind,ro / && \
                  exec setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set=-all \
                  image/haproxy -W -db -f haproxy.cfg";
    let mut command = caller.scene.command("unshare");
    command.args(["-mpif", "--kill-child", "--mount-proc", "sh", "-c", inside]);
    command.env("BINDONCE_HAPROXY", &program).env_remove("XDG_RUNTIME_DIR");
    let mut container = Process::start(&mut command);
    drop(caller.load().stop());
    let mut client = TcpStream::connect(caller.address).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
    // Connections are accepted in order: with an answer to a later one, this one is in progress.
    drop(caller.load().stop());
    let engine = container.pid();
    let children = std::fs::read_to_string(format!("/proc/{engine}/task/{engine}/children"));
    signal(children.expect("it runs").trim().parse().expect("one child"), Signal::SIGUSR1);
    container.wait_line("shutdown requested");
    client.write_all(b"\r\n").expect("the rest");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(container.wait_exit().code(), Some(0), "{}", container.story());
}

/// The pid of the master that answers here.
fn master(mut stream: impl Read + Write) -> Option<i32> {
    stream.write_all(b"show proc;quit\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().nth(1)?.split(' ').next()?.parse().ok()
}

/// Prints variables as a script of a generation has them.
const ENVIRONMENT: &str = r#"core.register_init(function()
    local out = io.open(os.getenv("OUT") .. ".new", "w")
    for name in os.getenv("NAMES"):gmatch("%S+") do
        out:write(name, "=", tostring(os.getenv(name)), "\n")
    end
    out:close()
    os.rename(os.getenv("OUT") .. ".new", os.getenv("OUT"))
end)
"#;

/// What whoever started us is told by a service manager or a master is not for generations; all else is, in any bytes.
#[test]
fn a_generation_has_the_environment_of_a_worker() {
    use std::os::unix::ffi::OsStrExt as _;
    const NOT_THEIRS: [&str; 9] = [
        "HAPROXY_MWORKER_REEXEC",
        "HAPROXY_PROCESSES",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "LISTEN_FDS",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "MAINPID",
        "NOTIFY_SOCKET",
    ];
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        caller.scene.write("env.lua", ENVIRONMENT);
        caller.configure("    lua-load env.lua\n", 1);
        let version = finish(&mut caller.command(&program, "-v")).ok();
        let of = |words: &str, out: &str| {
            let mut command = caller.haproxy(words);
            let names = "HAPROXY_MWORKER HAPROXY_MASTER_CLI ODD";
            command.env("NAMES", format!("{names} {}", NOT_THEIRS.join(" ")));
            command.env("OUT", caller.scene.path(out)).env("ODD", OsStr::from_bytes(b"a\xffb"));
            for name in NOT_THEIRS {
                command.env(name, "1");
            }
            command.env("NOTIFY_SOCKET", "/nonexistent");
            command
        };
        let told = |out: &str| {
            let path = caller.scene.path(out);
            let text = eventually("what it has", || std::fs::read(&path).ok());
            let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
                let at = line.iter().position(|byte| *byte == b'=')?;
                Some((String::from_utf8(line[..at].to_vec()).ok()?, line[at + 1..].to_vec()))
            });
            lines.collect::<std::collections::BTreeMap<_, _>>()
        };
        let socket = caller.scene.path("m.sock").display().to_string();
        let words = format!("-W -db -f haproxy.cfg -p pid -S {socket}");
        let mut haproxy = Process::start(&mut of(&words, "first"));
        drop(caller.load().stop());
        finish(&mut of(&format!("-W -f haproxy.cfg -p pid -sf {}", haproxy.pid()), "next")).ok();
        for out in ["first", "next"] {
            let has = told(out);
            let text = |name: &str| String::from_utf8_lossy(&has[name]).into_owned();
            assert_eq!(has["ODD"], b"a\xffb", "{out}");
            for name in NOT_THEIRS {
                assert_eq!(text(name), "nil", "{out} {name}");
            }
            assert_eq!(text("HAPROXY_MWORKER"), "1", "{out}");
            let is_new = version.contains(" version 3.2");
            let expected = if is_new { "nil".to_owned() } else { format!("unix@{socket}") };
            assert_eq!(text("HAPROXY_MASTER_CLI"), expected, "{out}");
        }
        haproxy.signal(Signal::SIGTERM);
        assert_eq!(haproxy.wait_exit().code(), Some(0), "{}", haproxy.story());
    });
}
