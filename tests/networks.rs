//! A program in its own network namespace, with the broker outside: its claims are bound in the
//! program's namespace.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

use crate::harness::{
    Haproxy, Process, Scene, bindonce, config, eventually, finish, listening, root, serves, skip,
};

/// A named network namespace, as `ip netns` creates it.
struct Namespace(String);

impl Namespace {
    fn new(scene: &Scene) -> Option<Self> {
        if !scene.is_isolated() {
            skip("needs root, for network namespaces");
            return None;
        }
        let name = scene.path("").file_name()?.to_str()?.to_owned();
        finish(Command::new("ip").args(["netns", "add", &name])).ok();
        let namespace = Self(name);
        finish(Command::new("ip").args(["-n", &namespace.0, "link", "set", "lo", "up"])).ok();
        Some(namespace)
    }

    /// A command in it, for more arguments.
    fn command(&self, scene: &Scene) -> Command {
        let mut command = scene.command("ip");
        command.args(["netns", "exec", &self.0]);
        command
    }

    /// The answer to a request in it.
    fn answer(&self, scene: &Scene, address: SocketAddr) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
            address.ip(),
            address.port()
        );
        let mut command = self.command(scene);
        let Output { stdout, .. } =
            command.args(["timeout", "5", "bash", "-c", &script]).output().expect("bash");
        String::from_utf8_lossy(&stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// A cgroup whose internet sockets are bound to the loopback device, as `ip vrf exec` binds them to
/// a VRF: this kernel may have no VRF.
struct Group {
    mounted: PathBuf,
    group: PathBuf,
}

impl Group {
    fn new(scene: &Scene) -> Option<Self> {
        let mounted = scene.path("cgroup");
        std::fs::create_dir(&mounted).expect("a directory");
        let mount = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&mounted).output();
        if !mount.is_ok_and(|mount| mount.status.success()) {
            skip("no cgroup2 can be mounted here");
            return None;
        }
        let group = mounted.join(scene.path("").file_name()?);
        Some(Self { mounted, group })
    }

    /// A command in it, for more arguments.
    fn command(&self, scene: &Scene) -> Command {
        let mut command = scene.command("python3");
        let script = root().join("tests/harness/device.py");
        command.arg(script).arg(&self.group).arg("1");
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes left by a failed test move to the root cgroup.
        let left = std::fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines() {
            let _ = std::fs::write(self.mounted.join("cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.group);
        let _ = Command::new("umount").arg(&self.mounted).status();
    }
}

#[test]
fn haproxy_whose_sockets_belong_to_a_device_has_its_listeners_there() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let Some(group) = Group::new(&scene) else { return };
    let _broker = scene.broker();
    let (address, other) = (scene.address(), scene.address());
    let text = |tag| format!("{}    bind fd@${{other}}\n", config(address, tag));
    let file = scene.write("haproxy.cfg", &text(1));
    let mut command = group.command(&scene);
    command.arg(bindonce()).args(["run", "--name", "web", "--socket"]).arg(scene.socket());
    command.args(["--listen", &format!("other={other}")]).arg("--").arg(&program).arg("-f");
    command.arg(&file);
    let mut haproxy =
        Haproxy { supervisor: Process::start(&mut command), service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    serves(address, 1);
    serves(other, 1);
    let list = scene.run("list", &[]).ok();
    for address in [address, other] {
        let address = address.to_string();
        let held = list.lines().find(|line| line.contains(&address)).unwrap_or_default();
        assert!(held.contains("interface=lo"), "{list}");
    }
    scene.write("haproxy.cfg", &text(2));
    haproxy.reload(&scene).ok();
    serves(address, 2);
    serves(other, 2);
    haproxy.supervisor.signal(SIGTERM);
    haproxy.supervisor.wait_exit();
}

#[test]
fn haproxy_in_another_network_listens_there_over_reloads_and_a_kill_of_the_broker() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let Some(namespace) = Namespace::new(&scene) else { return };
    let mut broker = scene.broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut command = namespace.command(&scene);
    command.arg(bindonce()).args(["run", "--name", "web", "--socket"]).arg(scene.socket());
    command.arg("--").arg(&program).arg("-f").arg(&file);
    let mut haproxy =
        Haproxy { supervisor: Process::start(&mut command), service: "web".to_owned() };
    haproxy.wait_serving(&scene);
    let answers = |tag: u64| {
        let wanted = format!("x-generation: {tag}");
        eventually("an answer", || {
            namespace.answer(&scene, address).contains(&wanted).then_some(())
        });
        assert_eq!(listening(address), [], "it is bound in the broker's own network");
    };
    answers(1);
    let held = format!("{address},netns={}", namespace.0);
    assert!(scene.run("list", &[]).ok().contains(&held), "{}", scene.run("list", &[]).ok());
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    answers(2);
    broker.signal(SIGKILL);
    broker.wait_exit();
    let _broker = scene.broker();
    eventually("the listener to be given back", || {
        scene.run("list", &[]).ok().contains(&held).then_some(())
    });
    scene.write("haproxy.cfg", &config(address, 3));
    haproxy.reload(&scene).ok();
    answers(3);
}

#[test]
fn an_address_is_released_where_the_caller_is() {
    let scene = Scene::new();
    let Some(namespace) = Namespace::new(&scene) else { return };
    let _broker = scene.broker();
    let address = scene.address();
    let there = |verb: &str| {
        let mut command = namespace.command(&scene);
        command.arg(bindonce()).args([verb, "--socket"]).arg(scene.socket());
        finish(command.arg(address.to_string()))
    };
    scene.run("bind", &[&address.to_string()]).ok();
    let none = there("release").fails(1);
    assert!(none.contains(&format!("{address},netns={}", namespace.0)), "{none}");
    there("bind").ok();
    let released = there("release").ok();
    assert!(released.contains(&format!("{address},netns={}", namespace.0)), "{released}");
    assert_eq!(listening(address).len(), 1, "the broker's own stays");
    let list = scene.run("list", &[]).ok();
    assert!(list.contains(&address.to_string()) && !list.contains("netns="), "{list}");
}

/// The listener would be bound where the caller does not expect it, or could not be found again
/// after a restart.
#[test]
fn a_claim_from_a_network_without_a_name_is_refused_and_nothing_is_bound() {
    let Some(scene) = Scene::isolated("needs root, for network namespaces") else { return };
    let _broker = scene.broker();
    let address = scene.address();
    let mut command = scene.command("unshare");
    command.arg("-n").arg(bindonce()).args(["exec", "--socket"]).arg(scene.socket());
    let said = finish(command.args(["--listen", &format!("web={address}"), "--", "true"])).fails(1);
    assert!(
        said.contains("network namespace has no name") && said.contains("ip netns attach"),
        "{said}"
    );
    assert_eq!(listening(address), []);
    assert!(!scene.run("list", &[]).ok().contains(&address.to_string()));
}
