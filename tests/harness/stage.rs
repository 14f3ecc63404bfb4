//! A haproxy, or another program, under load and under a supervisor. Its generations can have
//! faults: they wait at a fifo before they start, or ignore a signal.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bindonce_load::{Load, Plan, Report};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};

use super::{DEADLINE, Guest, Haproxy, Process, Scene, eventually, finish};

/// The number of clients of the load.
const CLIENTS: usize = 4;

/// The fault of one generation's program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It ignores the first so many of a signal; 0: all of them.
    Deaf(Signal, u32),
    /// It receives a signal twice.
    Twice(Signal),
    /// It waits before it starts, until [`Stage::let_start`].
    Waits,
    /// It sleeps and never becomes the program.
    Hangs,
    /// It closes its sockets and ends, just after it has said by a signal that it is ready.
    Dies,
}

/// A broker, a haproxy that serves with `x-generation: 1`, and light load on it.
pub(crate) struct Stage {
    load: Option<Load>,
    pub(crate) haproxy: Haproxy,
    pub(crate) broker: Process,
    pub(crate) address: SocketAddr,
    pub(crate) program: PathBuf,
    guest: Guest,
    arguments: Vec<String>,
    pub(crate) scene: Scene,
}

/// The library that makes haproxy ignore signals, built once for each run of this program.
fn library(scene: &Scene) -> PathBuf {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    let library = scene.path("faults.so");
    let bytes = BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/faults.c");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(&library);
        finish(cc.arg(source).arg("-ldl")).ok();
        fs::read(&library).expect("the library")
    });
    fs::write(&library, bytes).expect("the library");
    library
}

impl Stage {
    /// Starts everything, with the faults of each generation and more arguments for `bindonce run`.
    #[track_caller]
    pub(crate) fn start(
        program: Option<PathBuf>,
        faults: &[(u64, &[Fault])],
        arguments: &[&str],
    ) -> Option<Self> {
        Self::start_on(Scene::new(), program, faults, arguments)
    }

    /// The same with any program.
    #[track_caller]
    pub(crate) fn of(guest: Guest, faults: &[(u64, &[Fault])], arguments: &[&str]) -> Option<Self> {
        Self::begin(guest, Scene::new(), guest.program(), faults, arguments)
    }

    /// The same, in a scene that was prepared.
    #[track_caller]
    pub(crate) fn start_on(
        scene: Scene,
        program: Option<PathBuf>,
        faults: &[(u64, &[Fault])],
        arguments: &[&str],
    ) -> Option<Self> {
        Self::begin(Guest::Haproxy, scene, program, faults, arguments)
    }

    #[track_caller]
    fn begin(
        guest: Guest,
        scene: Scene,
        program: Option<PathBuf>,
        faults: &[(u64, &[Fault])],
        arguments: &[&str],
    ) -> Option<Self> {
        let program = with_faults(&scene, guest, &program?, faults);
        let broker = scene.broker();
        let address = scene.address();
        let file = scene.write(guest.file(), &guest.config(&scene, address, 1));
        let mut all = guest.arguments(address);
        all.extend(arguments.iter().map(ToString::to_string));
        let arguments: Vec<_> = all.iter().map(String::as_str).collect();
        let words = guest.command(&program, &file);
        let mut haproxy = Haproxy::begin_command(&scene, &arguments, &words);
        haproxy.wait_serving(&scene);
        let mut plan = Plan::new(address);
        plan.clients = CLIENTS;
        plan.rate = Some(400);
        let load = plan.start().expect("starting the load");
        assert!(load.wait_for(20, DEADLINE), "no answers");
        let load = Some(load);
        Some(Self { load, haproxy, broker, address, program, guest, arguments: all, scene })
    }

    /// Writes a configuration that answers with this tag.
    pub(crate) fn configure(&self, tag: u64) {
        self.scene.write(self.guest.file(), &self.guest.config(&self.scene, self.address, tag));
    }

    /// Reloads with a configuration that answers with this tag. The reload must succeed, and from
    /// then on no other tag may be seen. Returns its output.
    #[track_caller]
    pub(crate) fn reload(&self, tag: u64) -> String {
        self.configure(tag);
        let said = self.haproxy.reload(&self.scene).ok();
        self.only(tag);
        said
    }

    /// Checks that new connections are answered with this tag and no other: 100 in a row, then 100
    /// by twenty clients at once.
    #[track_caller]
    pub(crate) fn only(&self, tag: u64) {
        for (clients, connections) in [(1, 100), (20, 100)] {
            let mut plan = Plan::new(self.address);
            plan.clients = clients;
            plan.connections = Some(connections);
            let load = plan.start().expect("load");
            assert!(load.wait_over(DEADLINE), "no answers");
            let report = load.stop();
            let tokens: Vec<_> = report.tokens.iter().map(|token| token.token.as_str()).collect();
            assert_eq!(tokens, [tag.to_string()], "{report}");
            assert_eq!(report.ok, connections, "{report}");
        }
    }

    /// A `bindonce reload` that runs beside the test.
    pub(crate) fn reload_beside(&self) -> Process {
        Process::start(self.scene.bindonce("reload").args(["--name", "web"]))
    }

    /// Kills the supervisor with SIGKILL.
    pub(crate) fn kill_supervisor(&mut self) {
        self.haproxy.supervisor.kill();
    }

    /// Starts the supervisor again, as a service manager would.
    pub(crate) fn start_supervisor(&mut self) {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let words = self.guest.command(&self.program, &self.scene.path(self.guest.file()));
        self.haproxy = Haproxy::begin_command(&self.scene, &arguments, &words);
    }

    /// Starts the next supervisor, which takes over the serving generation and reloads: nothing
    /// else is left.
    #[track_caller]
    pub(crate) fn goes_on(&mut self, serving: u64) {
        self.start_supervisor();
        let (generation, _) = self.haproxy.wait_serving(&self.scene);
        assert_eq!(generation, serving, "{}", self.haproxy.supervisor.story());
        self.haproxy.supervisor.wait_line("taken over: serving");
        self.reload(9);
        let all = self.generations();
        assert_eq!(all.iter().filter(|(_, state, _)| state == "serving").count(), 1, "{all:?}");
        eventually("the older generations to be gone", || {
            (self.processes().len() == self.guest.processes()).then_some(())
        });
    }

    /// The living processes of the generations.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let all = self.scene.processes().into_iter();
        all.filter(|(_, command)| {
            let ours = command.contains("bindonce ") || command.contains("__watchdog");
            !ours && self.guest.is(command)
        })
        .map(|(pid, _)| pid)
        .collect()
    }

    /// Lets a waiting generation continue.
    pub(crate) fn let_start(&self, generation: u64) {
        fs::write(self.scene.path(&format!("wait-{generation}")), "go\n").expect("the fifo");
    }

    /// Waits until this generation waits at its fifo, and returns its pid.
    #[track_caller]
    pub(crate) fn wait_waiting(&self, generation: u64) -> i32 {
        let marker = self.scene.path(&format!("waits-{generation}"));
        eventually("the new generation to be started", || {
            fs::read_to_string(&marker).ok()?.trim().parse().ok()
        })
    }

    /// Waits until this generation is ready and held, while the older ones are told to stop.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self, generation: u64) {
        let supervisor = &mut self.haproxy.supervisor;
        supervisor.wait_line(&format!("started generation={generation}"));
        supervisor.wait_line("ready: ");
    }

    /// Every generation that the broker knows, by number: its state and pid.
    pub(crate) fn generations(&self) -> Vec<(u64, String, i32)> {
        let status = self.scene.wire().call("status", &json!([]));
        let service = status["services"].as_array().and_then(|all| all.first());
        let generations = service.and_then(|service| service["generations"].as_array());
        let mut found: Vec<_> = generations
            .into_iter()
            .flatten()
            .map(|generation| {
                let number = generation["generation"].as_u64().unwrap_or_default();
                let state = generation["state"].as_str().unwrap_or_default().to_owned();
                let pid = generation["pid"].as_i64().unwrap_or_default();
                (number, state, i32::try_from(pid).unwrap_or_default())
            })
            .collect();
        found.sort();
        found
    }

    /// Waits until the generations are exactly these, with these states.
    #[track_caller]
    pub(crate) fn wait_generations(&self, wanted: &[(u64, &str)]) {
        let mut last = Vec::new();
        let deadline = std::time::Instant::now() + DEADLINE;
        while std::time::Instant::now() < deadline {
            last = self.generations();
            if last
                .iter()
                .map(|(number, state, _)| (*number, state.as_str()))
                .eq(wanted.iter().copied())
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the generations are {last:?}, not {wanted:?}");
    }

    /// The pid of a generation.
    #[track_caller]
    pub(crate) fn pid(&self, generation: u64) -> i32 {
        let all = self.generations();
        let found = all.iter().find(|(number, ..)| *number == generation);
        found.unwrap_or_else(|| panic!("no generation {generation} in {all:?}")).2
    }

    /// Sends a generation a signal.
    #[track_caller]
    pub(crate) fn signal(&self, generation: u64, signal: Signal) {
        kill(Pid::from_raw(self.pid(generation)), signal).expect("signalling a generation");
    }

    /// Sends half a request to the address, which keeps the generation that accepts it draining.
    /// Returns when a process has accepted it.
    #[track_caller]
    pub(crate) fn half_a_request(&self) -> Half {
        let mut stream = TcpStream::connect(self.address).expect("connecting");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
        // Connections are accepted in order: once a later connection is answered, this one was
        // accepted.
        let mut plan = Plan::new(self.address);
        plan.clients = 2;
        plan.connections = Some(20);
        assert!(plan.start().expect("load").wait_over(DEADLINE));
        Half(stream)
    }

    /// Checks that the address answered throughout: nothing failed, no client waited longer than
    /// `most`, and no older generation answered after a newer one. Ends the load.
    #[track_caller]
    pub(crate) fn answered_throughout(&mut self, most: Duration) {
        let report = self.end_load();
        assert_eq!((report.failed(), report.local, report.stale), (0, 0, 0), "{report}");
        let most = super::allow(most);
        assert!(report.answer.max() <= most, "longer than {most:?}: {report}");
    }

    /// As [`Stage::answered_throughout`], except for the connections of a killed process.
    #[track_caller]
    pub(crate) fn lost_only_what_was_accepted(&mut self) {
        assert_eq!(self.refused_nobody().stale, 0);
    }

    /// Checks that no client was refused or waited in vain, and that only killed processes lost
    /// connections. Does not check who answered: a supervisor killed during a handover leaves both
    /// generations accepting until its watchdog notices. Ends the load.
    #[track_caller]
    pub(crate) fn refused_nobody(&mut self) -> Report {
        let report = self.end_load();
        assert_eq!((report.refused, report.timed_out, report.local), (0, 0, 0), "{report}");
        assert!(report.failed() <= 2 * CLIENTS as u64, "{report}");
        report
    }

    /// Checks that nothing failed. Ends the load.
    #[track_caller]
    pub(crate) fn nothing_failed(&mut self) {
        let report = self.refused_nobody();
        assert_eq!(report.failed(), 0, "{report}");
    }

    /// Waits until the load has this many more good answers.
    #[track_caller]
    pub(crate) fn wait_answers(&self, answers: u64) {
        let load = self.load.as_ref().expect("the load runs");
        assert!(load.wait_for(answers, DEADLINE), "no more answers");
    }

    #[track_caller]
    fn end_load(&mut self) -> Report {
        self.wait_answers(20);
        self.load.take().expect("the load runs").stop()
    }

    /// The broker's TCP listeners.
    pub(crate) fn bound(&self) -> Vec<String> {
        let listed = self.scene.wire().call("list", &json!([]));
        let all = listed["listeners"].as_array().cloned().unwrap_or_default();
        let addresses = all.iter().filter_map(|entry: &Value| entry["address"].as_str());
        addresses.filter(|address| !address.contains('@')).map(str::to_owned).collect()
    }
}

/// Half a request on an accepted connection.
pub(crate) struct Half(TcpStream);

impl Half {
    /// Sends the other half and returns the answer.
    #[track_caller]
    pub(crate) fn complete(mut self) -> String {
        self.0.write_all(b"Connection: close\r\n\r\n").expect("the other half");
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).expect("the answer");
        answer
    }
}

/// A wrapper that runs the guest's program with the faults of each generation.
pub(crate) fn with_faults(
    scene: &Scene,
    guest: Guest,
    program: &Path,
    faults: &[(u64, &[Fault])],
) -> PathBuf {
    let mut script = "#!/bin/sh\ncase $BINDONCE_GENERATION in\n".to_owned();
    for (generation, faults) in faults {
        let mut words = Vec::new();
        write!(script, "{generation})").expect("a string");
        for fault in *faults {
            match fault {
                Fault::Deaf(signal, count) => {
                    words.push(format!("deaf:{}:{count}", *signal as i32));
                }
                Fault::Twice(signal) => words.push(format!("twice:{}", *signal as i32)),
                Fault::Waits => {
                    let fifo = scene.path(&format!("wait-{generation}"));
                    mkfifo(&fifo, Mode::S_IRWXU).expect("a fifo");
                    let marker = scene.path(&format!("waits-{generation}"));
                    let (fifo, marker) = (fifo.display(), marker.display());
                    writeln!(script, " echo $$ >{marker}; read -r go <{fifo}").expect("a string");
                }
                Fault::Hangs => script.push_str(" exec sleep 1000\n"),
                Fault::Dies => words.push("dies".to_owned()),
            }
        }
        if !words.is_empty() {
            let library = library(scene);
            let (words, library) = (words.join(" "), library.display());
            write!(script, " export FAULT='{words}' LD_PRELOAD='{library}'").expect("a string");
        }
        script.push_str(";;\n");
    }
    writeln!(script, "esac\nexec {} \"$@\"", program.display()).expect("a string");
    let path = scene.write(guest.name(), &script);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its mode");
    path
}
