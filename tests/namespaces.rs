//! The pod of deploy/container without a container engine: broker and haproxy in handmade
//! namespaces, with the confinement that compose.yaml asks for, replaced and killed under load. It
//! runs wherever root may create namespaces, also where no engine is available
//! (tests/containers.rs).

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;

use bindonce_load::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    DEADLINE, Finished, Haproxy, Process, Scene, assert_nothing_lost, bindonce, config, eventually,
    finish, listening, skip,
};

/// The user of the images.
const USER: u32 = 65532;

/// As an engine does it: the container has its own pid, mount, ipc and uts namespaces and the pod's
/// network; the root is read-only and only the volume is writable; then the user, without a
/// capability or a way to get one, and the program as PID 1.
const CONTAINER: &str = "
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/bindonce
mount --bind \"$VOLUME\" /run/bindonce
mount -o remount,bind,ro /
exec setpriv --reuid $USER --regid $USER --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \"$@\"
";

/// A container: `unshare`, and in its namespaces the program.
struct Container(Process);

impl Container {
    /// Stops the container as an engine does, and waits for an orderly end.
    #[track_caller]
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.0.wait_exit();
        assert!(status.success(), "{status}: {}", self.0.story());
    }

    /// Kills the container, as in a crash.
    fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.0.wait_exit();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.first()), signal).expect("a signal");
    }

    /// The pid of its PID 1 in our namespace.
    fn first(&self) -> i32 {
        let pid = self.0.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.expect("it runs").trim().parse().expect("one child")
    }

    /// Checks that the kernel confines it as intended.
    #[track_caller]
    fn assert_confined(&self) {
        let first = self.first();
        let status = fs::read_to_string(format!("/proc/{first}/status")).expect("its status");
        let says = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(says("Uid:"), ["65532"; 4]);
        assert_eq!(says("NSpid:"), [first.to_string(), "1".to_owned()]);
        for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(says(capabilities), ["0000000000000000"], "{capabilities}");
        }
        assert_eq!(says("NoNewPrivs:"), ["1"]);
        let mounts = fs::read_to_string(format!("/proc/{first}/mountinfo")).expect("its mounts");
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounts.rfind(|fields| fields[4] == "/").expect("a root");
        assert!(root[5].split(',').any(|option| option == "ro"), "{root:?}");
    }
}

/// Two containers that share a network and a volume.
struct Pod {
    scene: Scene,
    program: PathBuf,
    address: SocketAddr,
}

impl Pod {
    /// None if it cannot be created, with the reason reported.
    fn new() -> Option<Self> {
        let program = Haproxy::system()?;
        let scene = Scene::new();
        let mut can = scene.command("unshare");
        let can =
            finish(can.args(["-mpiuf", "--mount-proc", "setpriv", "--bounding-set=-all", "true"]));
        if !scene.is_isolated() || can.code != Some(0) {
            skip("needs root, for namespaces, and setpriv");
            return None;
        }
        let volume = scene.path("volume");
        fs::create_dir(&volume).expect("a directory");
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).expect("its mode");
        chown(&volume, Some(USER), Some(USER)).expect("its owner");
        // In a place that the user can reach.
        fs::copy(bindonce(), scene.path("bindonce")).expect("the binary");
        let address = scene.address();
        Some(Self { scene, program, address })
    }

    fn start(&self, words: &[&str]) -> Container {
        let mut command = self.scene.command("unshare");
        command
            .args(["-mpiuf", "--kill-child", "--mount-proc", "sh", "-euc", CONTAINER, "container"])
            .arg(self.scene.path("bindonce"))
            .args(words)
            .env("VOLUME", self.scene.path("volume"))
            .env("USER", USER.to_string())
            .env("XDG_RUNTIME_DIR", "/run/bindonce");
        if words.first() == Some(&"run") {
            command.env("BINDONCE_SOCKET", "/run/bindonce/bindonce.sock");
        }
        Container(Process::start(&mut command))
    }

    /// Runs a `bindonce` command from outside, with the socket in the volume.
    fn bindonce(&self, words: &[&str]) -> Finished {
        let socket = self.scene.path("volume/bindonce.sock");
        finish(self.scene.command(bindonce()).arg("--socket").arg(socket).args(words))
    }

    fn wait(&self, container: &mut Container, ping: &[&str]) {
        eventually("it to be well", || {
            assert!(container.0.is_running(), "{}", container.0.story());
            (self.bindonce(ping).code == Some(0)).then_some(())
        });
    }

    fn broker(&self) -> Container {
        let mut container = self.start(&["serve"]);
        self.wait(&mut container, &["ping"]);
        container
    }

    fn haproxy(&self, generation: u64) -> Container {
        let file = self.scene.write("haproxy.cfg", &config(self.address, generation));
        let program = self.program.display().to_string();
        let file = file.display().to_string();
        let words = ["run", "--drain-timeout", "25s", "--", &program, "-f", &file];
        let mut container = self.start(&words);
        self.wait(&mut container, &["ping", "--name", "haproxy", "--serving"]);
        container
    }

    /// The sockets on the address, by inode.
    fn inodes(&self) -> Vec<u64> {
        listening(self.address).into_iter().map(|socket| socket.inode).collect()
    }
}

#[test]
fn containers_made_by_hand_are_replaced_under_load_and_nobody_is_refused() {
    let Some(pod) = Pod::new() else { return };
    let mut broker = pod.broker();
    let mut haproxy = pod.haproxy(1);
    for container in [&broker, &haproxy] {
        container.assert_confined();
    }
    let inodes = pod.inodes();
    assert_eq!(inodes.len(), 1);
    let mut plan = Plan::new(pod.address);
    plan.clients = 10;
    plan.rate = Some(1000);
    let load = plan.start().expect("load");
    for generation in 2..7 {
        haproxy.stop();
        haproxy = pod.haproxy(generation);
        assert_eq!(pod.inodes(), inodes, "another socket");
        assert!(load.wait_for_token(&generation.to_string(), DEADLINE), "it answers nobody");
        if generation % 2 == 0 {
            broker.stop();
            broker = pod.broker();
            let given_back = || pod.bindonce(&["list"]).ok().contains(&pod.address.to_string());
            eventually("the listener to be given back", || given_back().then_some(()));
            assert_eq!(pod.inodes(), inodes, "another socket");
        }
    }
    let report = load.stop();
    assert_nothing_lost(&report);
    println!("{report}");
    // A reload is held by seccomp here too.
    pod.bindonce(&["reload"]).ok();
    haproxy.0.wait_line("it has bound everything, and is held");
    haproxy.stop();
    broker.stop();
}

#[test]
fn containers_made_by_hand_that_are_killed_refuse_nobody() {
    let Some(pod) = Pod::new() else { return };
    let mut broker = pod.broker();
    let mut haproxy = pod.haproxy(1);
    let inodes = pod.inodes();
    let mut plan = Plan::new(pod.address);
    plan.clients = 10;
    plan.rate = Some(1000);
    let load = plan.start().expect("load");
    assert!(load.wait_for(20, DEADLINE), "no answers");
    for generation in 2..4 {
        broker.kill();
        broker = pod.broker();
        let given_back = || pod.bindonce(&["list"]).ok().contains(&pod.address.to_string());
        eventually("the listener to be given back", || given_back().then_some(()));
        haproxy.kill();
        haproxy = pod.haproxy(generation);
        assert!(load.wait_for_token(&generation.to_string(), DEADLINE), "it answers nobody");
    }
    let report = load.stop();
    // Only requests in progress at the kill are lost.
    assert_eq!((report.refused, report.timed_out, report.stale), (0, 0, 0), "{report}");
    assert_eq!(pod.inodes(), inodes, "another socket");
    println!("{report}");
    haproxy.stop();
    broker.stop();
}
