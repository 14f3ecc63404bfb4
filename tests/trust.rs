//! Directories that another user could change: a broker's user tries to become root through the
//! supervisor, and any user through a world-writable directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::unistd::geteuid;
use serde_json::json;

use crate::harness::{
    Finished, Haproxy, Process, Scene, Wire, bindonce, config, eventually, finish, skip,
};

const OTHER: u32 = 65_533;

/// A broker's directory that is not root's, and the bait for root's supervisor in it.
struct Trap {
    scene: Scene,
    socket: PathBuf,
    victim: PathBuf,
    sleeper: Child,
    /// The directory where the supervisor keeps its files instead.
    private: Option<PathBuf>,
}

impl Trap {
    /// Creates the trap in a directory with this owner and mode.
    fn new(owner: u32, mode: u32) -> Option<Self> {
        if !geteuid().is_root() {
            skip("needs root, for which the trap is laid");
            return None;
        }
        let scene = Scene::new();
        let directory = scene.path("b");
        fs::create_dir(&directory).expect("mkdir");
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("chmod");
        chown(&directory, Some(owner), Some(owner)).expect("chown");
        let victim = scene.write("victim", "precious\n");
        let sleeper = scene.command("sleep").arg("60").spawn().expect("sleep");
        Some(Self { socket: directory.join("broker.sock"), scene, victim, sleeper, private: None })
    }

    fn service(&self) -> PathBuf {
        self.socket.with_file_name("haproxy.d")
    }

    /// Creates SERVICE.d as the other user would: a pid file that leads to root's file, and a state
    /// that names root's process as one to end.
    fn lay(&self) {
        let path = self.service();
        fs::create_dir(&path).expect("mkdir");
        symlink(&self.victim, path.join("pid")).expect("symlink");
        let pid = self.sleeper.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let state = json!({"next": 5, "generations": [{"id": 4, "pid": pid, "state": "starting",
            "start_time": fields[19].parse::<u64>().expect("a number")}]});
        fs::write(path.join("state.json"), state.to_string()).expect("write");
        for entry in fs::read_dir(&path).expect("read").map(|entry| entry.expect("entry").path()) {
            lchown(entry, Some(OTHER), Some(OTHER)).expect("chown");
        }
        chown(path, Some(OTHER), Some(OTHER)).expect("chown");
    }

    /// bindonce, as this user.
    fn as_user(&self, user: u32) -> Command {
        let mut command = self.scene.command("setpriv");
        command.args([
            format!("--reuid={user}"),
            format!("--regid={user}"),
            "--clear-groups".into(),
        ]);
        let binary = self.scene.path("bindonce");
        if !binary.exists() {
            fs::copy(bindonce(), &binary).expect("a copy that anybody may execute");
        }
        command.arg(binary).arg("--socket").arg(&self.socket);
        command
    }

    fn broker(&self, user: u32) -> Process {
        let mut command = self.as_user(user);
        command.arg("serve");
        let mut broker = Process::start(&mut command);
        broker.wait_line("broker serves");
        eventually("the broker", || Wire::try_connect(&self.socket));
        broker
    }

    fn run(&self, verb: &str) -> Finished {
        let mut command = self.scene.command(bindonce());
        finish(command.arg("--socket").arg(&self.socket).arg(verb))
    }

    /// Root's supervisor, once it serves.
    fn supervisor(&mut self, program: &Path) -> Process {
        let mut supervisor = self.begin(program);
        supervisor.wait_line("serving");
        supervisor
    }

    /// Root's supervisor, once it has chosen the place of its files.
    fn begin(&mut self, program: &Path) -> Process {
        let file = self.scene.path("haproxy.cfg");
        if !file.exists() {
            fs::write(&file, config(self.scene.address(), 1)).expect("write");
        }
        let mut command = self.scene.command(bindonce());
        command
            .arg("--socket")
            .arg(&self.socket)
            .args(["run", "--"])
            .arg(program)
            .arg("-f")
            .arg(file);
        let mut supervisor = Process::start(&mut command);
        let line = supervisor.wait_line("files of this service lie elsewhere");
        let private = PathBuf::from(line.rsplit("path=").next().expect("a path").trim());
        self.private = Some(private);
        supervisor
    }

    /// Checks that nothing of root's was changed.
    fn harmless(&mut self) {
        assert_eq!(fs::read_to_string(&self.victim).expect("the file"), "precious\n");
        assert!(self.sleeper.try_wait().expect("wait").is_none(), "root's process was ended");
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.sleeper.kill().and_then(|()| self.sleeper.wait()).ok();
        // The directory above it is the supervisors' of all tests.
        if let Some(directory) = self.private.as_deref().and_then(Path::parent) {
            fs::remove_dir_all(directory).ok();
        }
    }
}

#[test]
fn the_brokers_user_cannot_swap_what_roots_supervisor_executes() {
    let Some(program) = Haproxy::system() else { return };
    let Some(mut trap) = Trap::new(OTHER, 0o755) else { return };
    let _broker = trap.broker(OTHER);
    let mut supervisor = trap.supervisor(&program);
    let link = fs::read_link(trap.service()).expect("a link for people");
    assert_eq!(Some(link.as_path()), trap.private.as_deref());
    assert!(link.starts_with("/run/bindonce-services") && link.join("state.json").exists());
    let said = trap.run("reload").ok();
    assert!(said.contains("generation 2 serves"), "{said}");

    // The broker's user can only remove the link, which misleads no one.
    fs::remove_file(trap.service()).expect("the link");
    trap.lay();
    let said = trap.run("reload").ok();
    assert!(said.contains("generation 3 serves"), "{said}");
    assert!(trap.run("status").ok().contains("service haproxy, supervisor pid"));
    supervisor.terminate();
    let mut supervisor = trap.supervisor(&program);
    trap.harmless();
    supervisor.terminate();
}

/// The caller's environment may hold secrets.
#[test]
fn a_supervisor_of_another_user_does_not_get_roots_environment() {
    let Some(program) = Haproxy::system() else { return };
    let Some(trap) = Trap::new(OTHER, 0o755) else { return };
    let _broker = trap.broker(OTHER);
    let file = trap.scene.write("haproxy.cfg", &config(trap.scene.address(), 1));
    let mut command = trap.as_user(OTHER);
    let mut supervisor =
        Process::start(command.args(["run", "--"]).arg(&program).arg("-f").arg(&file));
    supervisor.wait_line("serving");
    let mut command = trap.scene.command(bindonce());
    command.arg("--socket").arg(&trap.socket).args(["run", "--"]).arg(&program);
    let pid = supervisor.pid().to_string();
    let said = finish(command.arg("-f").arg(&file).args(["-sf", &pid])).fails(1);
    assert!(said.contains(&format!("runs as user {OTHER}")), "{said}");
    // `bindonce reload` sends nothing of the kind.
    assert!(trap.run("reload").ok().contains("generation 2 serves"));
    supervisor.terminate();
}

#[test]
fn a_directory_of_somebody_else_is_not_used_in_one_that_all_may_write() {
    let Some(program) = Haproxy::system() else { return };
    let Some(mut trap) = Trap::new(0, 0o1777) else { return };
    trap.lay();
    let _broker = trap.broker(0);
    let mut supervisor = trap.supervisor(&program);
    assert!(trap.run("reload").ok().contains("generation 2 serves"));
    trap.harmless();
    supervisor.terminate();
}

#[test]
fn roots_broker_keeps_nothing_where_others_could_replace_it() {
    for (owner, mode, why) in
        [(OTHER, 0o755, "belongs to user 65533"), (0, 0o777, "others may write to")]
    {
        let Some(trap) = Trap::new(owner, mode) else { return };
        let said = trap.run("serve").fails(1);
        assert!(said.contains(why) && said.contains("namei -l"), "{said}");
        assert!(!trap.socket.exists());
        // That user's own broker may use it; another user's broker warns of the danger.
        let mut broker = trap.broker(OTHER);
        broker.terminate();
        assert_eq!(broker.story().contains("take the control socket's place"), owner != OTHER);
    }
}

/// A link of the broker's user does not make root's supervisor create a directory anywhere.
#[test]
fn roots_supervisor_makes_nothing_where_others_could_replace_it() {
    let Some(program) = Haproxy::system() else { return };
    let Some(mut trap) = Trap::new(OTHER, 0o755) else { return };
    let link = trap.socket.with_file_name("link");
    fs::create_dir(trap.scene.path("roots")).expect("mkdir");
    symlink(trap.scene.path("roots"), &link).expect("symlink");
    lchown(&link, Some(OTHER), Some(OTHER)).expect("chown");
    trap.socket = link.join("run/broker.sock");
    let mut supervisor = trap.begin(&program);
    assert!(!trap.scene.path("roots/run").exists());
    assert!(trap.private.as_ref().is_some_and(|path| path.is_dir()), "{:?}", trap.private);
    // No broker can run there.
    supervisor.wait_line("no broker answers");
}

#[test]
fn a_socket_may_be_named_from_the_current_directory() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut command = scene.command(bindonce());
    command.current_dir(scene.path("")).args(["--socket", "broker.sock", "run", "--"]);
    let mut supervisor = Process::start(command.arg(program).arg("-f").arg(file));
    supervisor.wait_line("serving");
    assert!(scene.run("reload", &[]).ok().contains("generation 2 serves"));
    supervisor.terminate();
}
