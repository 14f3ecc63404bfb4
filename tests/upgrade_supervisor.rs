//! The supervisor becomes another binary in place, or cannot: whatever happens, every generation
//! stays watched, and no request is lost.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, Fault, Guest, Haproxy, Process, Scene, Stage, Wire, bindonce, config, eventually,
    serves,
};
use crate::stand_in::Caller;

/// A supervisor that runs from a binary of its own. Its second generation serves, and its first one
/// drains: a client has sent it half a request.
struct Service {
    haproxy: Haproxy,
    half: TcpStream,
    /// The pid of the draining generation.
    older: i32,
    address: SocketAddr,
    binary: PathBuf,
    _broker: Process,
    scene: Scene,
}

impl Service {
    #[track_caller]
    fn start() -> Option<Self> {
        Self::start_in("")
    }

    /// The same in a directory of the scene.
    #[track_caller]
    fn start_in(directory: &str) -> Option<Self> {
        let program = Haproxy::system()?;
        let (scene, broker) = Scene::with_broker();
        let (address, binary) = (scene.address(), scene.path("bindonce"));
        install(bindonce(), &binary);
        let file = scene.write("haproxy.cfg", &config(address, 1));
        let (mut command, directory) = (scene.command(&binary), scene.path(directory));
        fs::create_dir_all(&directory).expect("a directory");
        command.current_dir(directory);
        command.arg("run").arg("--socket").arg(scene.socket()).args(["--name", "web", "--"]);
        let supervisor = Process::start(command.args(Guest::Haproxy.command(&program, &file)));
        let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
        let (_, older) = haproxy.wait_serving(&scene);
        let mut half = TcpStream::connect(address).expect("connecting");
        half.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
        // Connections are accepted in order.
        serves(address, 1);
        let service = Self { haproxy, half, older, address, binary, _broker: broker, scene };
        service.configure(2);
        service.haproxy.reload(&service.scene).ok();
        serves(address, 2);
        Some(service)
    }

    /// Writes a configuration that answers with this tag.
    fn configure(&self, tag: u64) {
        self.scene.write("haproxy.cfg", &config(self.address, tag));
    }

    /// A `bindonce upgrade` that runs beside the test.
    fn upgrade_beside(&self) -> Process {
        Process::start(self.scene.bindonce("upgrade").args(["--name", "web"]))
    }

    /// Waits until the supervisor is about to become the new binary: it then waits, for a second,
    /// for an answer of the draining generation, which is stopped.
    #[track_caller]
    fn wait_for_the_middle(&mut self) {
        self.haproxy.supervisor.wait_line("the binary has proved itself");
    }

    fn signal_older(&self, signal: Signal) {
        kill(Pid::from_raw(self.older), signal).expect("signalling the draining generation");
    }

    /// Sends the other half of the request, and checks that the draining generation answers.
    #[track_caller]
    fn complete(&mut self) {
        self.half.write_all(b"Connection: close\r\n\r\n").expect("the other half");
        let mut answer = String::new();
        self.half.read_to_string(&mut answer).expect("the answer");
        assert!(answer.contains("x-generation: 1\r\n"), "{answer}");
    }

    /// Checks that both generations are watched. Another process tells the one that serves to stop:
    /// another one is started. The last client of the one that drains leaves: the supervisor lets
    /// it end.
    #[track_caller]
    fn is_watched(&mut self) {
        let (before, pid) = self.haproxy.wait_serving(&self.scene);
        kill(Pid::from_raw(pid), Signal::SIGUSR1).expect("signalling the serving generation");
        eventually("another generation", || {
            let (now, _) = self.haproxy.serving(&self.scene)?;
            (now > before).then_some(())
        });
        serves(self.address, 2);
        self.drains();
    }

    /// Checks that the draining generation answers its last client, and ends then.
    #[track_caller]
    fn drains(&mut self) {
        self.complete();
        eventually("the older generations to be gone", || {
            (self.scene.haproxies().len() == 1).then_some(())
        });
    }

    /// How often the supervisor has become another binary.
    #[track_caller]
    fn upgrades(&self) -> Value {
        upgrades(&self.scene)
    }
}

/// How often the only supervisor of a scene has become another binary.
#[track_caller]
fn upgrades(scene: &Scene) -> Value {
    let status = scene.run("status", &["--json"]).ok();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["supervisors"][0]["upgrades"].clone()
}

/// Installs a binary as a package manager does, written beside the older one and renamed: the
/// running file is not written to.
fn install(source: &Path, binary: &Path) {
    let new = binary.with_extension("new");
    fs::copy(source, &new).expect("copying");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::rename(&new, binary).expect("installing");
}

#[test]
fn a_binary_that_is_refused_leaves_every_generation_watched() {
    let Some(mut service) = Service::start() else { return };
    install(Path::new("/bin/false"), &service.binary);
    let story = service.scene.run("upgrade", &["--name", "web"]).fails(1);
    assert!(story.contains("nothing has changed"), "{story}");
    service.is_watched();
}

/// The next image would end at once, as a start does there.
#[test]
fn a_supervisor_whose_directory_is_gone_is_not_upgraded_and_says_why() {
    let Some(mut service) = Service::start_in("release") else { return };
    fs::remove_dir(service.scene.path("release")).expect("removed");
    let story = service.scene.run("upgrade", &["--name", "web"]).fails(1);
    assert!(story.contains("nothing has changed"), "{story}");
    assert!(story.contains("exit code 1: cannot tell the current directory"), "{story}");
    assert_eq!(service.upgrades(), 0);
    service.drains();
}

/// The socket of `-x` is that of a haproxy that has ended since.
#[test]
fn the_next_image_repeats_nothing_of_the_start() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let admin = caller.scene.path("older.sock");
    let older = UnixListener::bind(&admin).expect("a socket");
    let words = "-db -f haproxy.cfg -x older.sock";
    let mut supervisor = Process::start(&mut caller.haproxy(words));
    eventually("it listens", || TcpStream::connect(caller.address()).ok());
    serves(caller.address(), 1);
    drop(older);
    fs::remove_file(&admin).expect("removed");
    let status: Value =
        serde_json::from_str(&caller.scene.run("status", &["--json"]).ok()).expect("JSON");
    let name = status["supervisors"][0]["service"].as_str().expect("a service").to_owned();
    caller.scene.run("upgrade", &["--name", &name]).ok();
    assert_eq!(upgrades(&caller.scene), 1);
    serves(caller.address(), 1);
    supervisor.terminate();
}

/// The file is written to between its proof and the exec. By then no task watches the generations:
/// the supervisor waits for an answer of the draining one, which is stopped.
#[test]
fn a_binary_that_cannot_be_executed_leaves_every_generation_watched() {
    let Some(mut service) = Service::start() else { return };
    install(bindonce(), &service.binary);
    service.signal_older(Signal::SIGSTOP);
    let mut upgrade = service.upgrade_beside();
    service.wait_for_the_middle();
    let mut written = fs::File::options().append(true).open(&service.binary).expect("opened");
    written.write_all(b"x").expect("written");
    drop(written);
    assert_eq!(upgrade.wait_exit().code(), Some(1), "{}", upgrade.story());
    let story = upgrade.story();
    assert!(story.contains("modified after it had proved itself"), "{story}");
    service.signal_older(Signal::SIGCONT);
    service.is_watched();
}

/// The reload is requested at once, or in the middle of the upgrade.
#[track_caller]
fn reload_in_an_upgrade(in_the_middle: bool, by_signal: bool) {
    let Some(mut service) = Service::start() else { return };
    service.signal_older(Signal::SIGSTOP);
    let mut upgrade = service.upgrade_beside();
    if in_the_middle {
        service.wait_for_the_middle();
    }
    service.configure(3);
    match by_signal {
        true => service.haproxy.supervisor.signal(Signal::SIGHUP),
        false => drop(service.haproxy.reload(&service.scene).ok()),
    }
    eventually("the generation with the new configuration", || {
        (service.haproxy.serving(&service.scene)?.0 == 3).then_some(())
    });
    serves(service.address, 3);
    assert!(upgrade.wait_exit().success(), "{}", upgrade.story());
    assert_eq!(service.upgrades(), 1);
    serves(service.address, 3);
    service.signal_older(Signal::SIGCONT);
    service.drains();
}

/// The command of the reload waits in the queue of the control socket, and the next image serves
/// it.
#[test]
fn a_reload_that_is_requested_in_an_upgrade_is_done_and_so_is_the_upgrade() {
    for in_the_middle in [false, true] {
        reload_in_an_upgrade(in_the_middle, false);
    }
}

/// The signal is handled at once, and the upgrade begins again after the reload.
#[test]
fn a_reload_that_is_signalled_in_an_upgrade_is_done_and_so_is_the_upgrade() {
    for in_the_middle in [false, true] {
        reload_in_an_upgrade(in_the_middle, true);
    }
}

/// The next image would find that nothing serves, and begin the service again.
#[test]
fn a_stop_in_an_upgrade_stops_the_service() {
    let Some(mut service) = Service::start() else { return };
    service.signal_older(Signal::SIGSTOP);
    let mut upgrade = service.upgrade_beside();
    service.wait_for_the_middle();
    service.haproxy.supervisor.signal(Signal::SIGTERM);
    service.haproxy.supervisor.wait_line("shutdown requested");
    service.signal_older(Signal::SIGCONT);
    // The command is answered at once, and not when the last generation has drained.
    assert_eq!(upgrade.wait_exit().code(), Some(1), "{}", upgrade.story());
    assert!(upgrade.story().contains(ENDING), "{}", upgrade.story());
    service.complete();
    let supervisor = &mut service.haproxy.supervisor;
    assert!(supervisor.wait_exit().success(), "{}", supervisor.story());
}

const ENDING: &str = "not upgraded: the supervisor is ending";

#[test]
fn an_upgrade_in_a_stop_is_refused_at_once() {
    let Some(mut service) = Service::start() else { return };
    service.haproxy.supervisor.signal(Signal::SIGTERM);
    service.haproxy.supervisor.wait_line("shutdown requested");
    let story = service.scene.run("upgrade", &["--name", "web"]).fails(1);
    assert!(story.contains(ENDING), "{story}");
    service.complete();
    let supervisor = &mut service.haproxy.supervisor;
    assert!(supervisor.wait_exit().success(), "{}", supervisor.story());
}

/// Both have their outcome from the next image.
#[test]
fn two_that_ask_for_an_upgrade_have_the_same_one() {
    let faults: &[(u64, &[Fault])] = &[(2, &[Fault::Waits])];
    let Some(stage) = Stage::start(Haproxy::system(), faults, &[]) else { return };
    let mut reload = stage.reload_beside();
    stage.wait_waiting(2);
    let control = stage.scene.path("web.d/control.sock");
    let connect = || Wire::try_connect(&control).expect("the supervisor listens");
    let mut asking = [(); 2].map(|()| {
        let mut wire = connect();
        wire.send(br#"{"jsonrpc":"2.0","id":1,"method":"upgrade"}"#);
        wire
    });
    // Clients are accepted in order: once a later one is answered, these were accepted.
    connect().call("ping", &json!([]));
    stage.let_start(2);
    assert!(reload.wait_exit().success(), "{}", reload.story());
    for wire in &mut asking {
        let said = wire.message().map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned());
        assert_eq!(said, None, "the connections end with the exec");
    }
    assert_eq!(upgrades(&stage.scene), 1);
}

/// The next image would not know of the planned start, and would begin the service on the files as
/// they are on disk.
#[test]
fn an_upgrade_waits_while_a_haproxy_that_died_is_to_be_started_again() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, fails) = (scene.address(), scene.path("fails"));
    let script = format!(
        "#!/bin/sh\n[ \"${{BINDONCE_GENERATION:-0}}\" -gt 1 ] && [ -e {} ] && exit 1\nexec {} \"$@\"\n",
        fails.display(),
        program.display()
    );
    let wrapper = scene.write("haproxy", &script);
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("its mode");
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut haproxy = Haproxy::start_with(&scene, &[], &wrapper, &file);
    scene.write("haproxy.cfg", "no-such-word\n");
    fs::write(&fails, "").expect("every start fails from now on");
    let (_, pid) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing the serving generation");
    haproxy.supervisor.wait_line("again in 800ms");
    let mut upgrade = Process::start(scene.bindonce("upgrade").args(["--name", "web"]));
    haproxy.supervisor.wait_line("again in 1.6s");
    fs::remove_file(&fails).expect("the next start succeeds");
    assert!(upgrade.wait_exit().success(), "{}", upgrade.story());
    assert_eq!(upgrades(&scene), 1);
    serves(address, 1);
}
