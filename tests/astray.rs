//! Held sockets that no client reaches: the path, device or network namespace that they were bound
//! to is now another one. `list` and `doctor` report it, and a reload binds anew.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use crate::harness::{Haproxy, Process, Scene, eventually, finish};

fn config(bind: &str) -> String {
    format!(
        "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n\
         frontend f\n bind {bind}\n http-request return status 200 content-type text/plain string <here>\n"
    )
}

fn ip(arguments: &str) {
    finish(Command::new("ip").args(arguments.split(' '))).ok();
}

/// Another network namespace, which exists as long as this value.
struct Network(Process);

impl Network {
    fn new(scene: &Scene) -> Self {
        let mut command = scene.command("unshare");
        let process = Process::start(command.args(["--net", "sleep", "infinity"]));
        let network = Self(process);
        let own = fs::read_link("/proc/thread-self/ns/net").expect("our network");
        eventually("a network of its own", || {
            let other = fs::read_link(format!("/proc/{}/ns/net", network.0.pid())).ok()?;
            (other != own).then_some(())
        });
        network
    }

    fn run(&self, script: &str) -> String {
        let pid = self.0.pid();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["timeout", "30", "bash", "-c", script]);
        let out = command.output().expect("nsenter");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The answer that a client there gets from an address.
    fn ask(&self, address: &str) -> String {
        let answer = self.run(&format!(
            "exec 3<>/dev/tcp/{address}/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        ));
        answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
    }
}

/// Checks that `list` and `doctor` report that no client reaches a listener, and why.
#[track_caller]
fn is_told(scene: &Scene, why: &str) {
    is_told_of("no client reaches it", scene, why);
}

#[track_caller]
fn is_told_of(problem: &str, scene: &Scene, why: &str) {
    let listed = scene.run("list", &[]).ok();
    assert!(listed.contains(problem) && listed.contains(why), "{listed}");
    let said = scene.run("doctor", &[]).fails(3);
    assert!(said.contains(problem) && said.contains(why), "{said}");
}

#[track_caller]
fn is_well(scene: &Scene) {
    let listed = scene.run("list", &[]).ok();
    assert!(!listed.contains("problem"), "{listed}");
}

/// The test's network device, whose other end is in another network namespace.
fn device(network: &Network) {
    ip(&format!("link add bo0 type veth peer name bo1 netns {}", network.0.pid()));
    ip("address add 10.77.0.1/24 dev bo0");
    ip("link set bo0 up");
    network.run("ip address add 10.77.0.2/24 dev bo1; ip link set bo1 up");
    eventually("the link to be up", || {
        let state = fs::read_to_string("/sys/class/net/bo0/operstate");
        let up = finish(Command::new("ip").args(["-o", "link", "show", "bo0"]))
            .ok()
            .contains("state UP");
        (up || state.is_ok_and(|state| state.trim() == "up")).then_some(())
    });
}

#[test]
fn a_device_that_is_made_anew_gets_its_listener_at_the_next_reload() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("it takes a network namespace") else { return };
    let network = Network::new(&scene);
    device(&network);
    let _broker = scene.broker();
    let file = scene.write("haproxy.cfg", &config("0.0.0.0:8080 interface bo0"));
    let haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    is_well(&scene);

    ip("link delete bo0");
    // The next image keeps the socket that the generation has.
    scene.run("upgrade", &[]).ok();
    device(&network);
    assert_eq!(network.ask("10.77.0.1"), "");
    is_told(&scene, "the device bo0 that it was bound to has been deleted or renamed");
    haproxy.reload(&scene).ok();
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    is_well(&scene);

    // Without the device it is on every interface, as with plain haproxy, until the device is back.
    ip("link delete bo0");
    is_told(&scene, "bo0");
    haproxy.reload(&scene).ok();
    let elsewhere = || std::net::TcpStream::connect("127.0.0.1:8080").is_ok();
    assert!(elsewhere());
    is_well(&scene);
    device(&network);
    haproxy.reload(&scene).ok();
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    eventually("the older one to be closed", || (!elsewhere()).then_some(()));
    is_well(&scene);
}

/// Since Linux 5.7 any process that has a socket may bind it to a device.
#[test]
fn a_listener_that_a_holder_has_bound_to_a_device_is_told_and_kept() {
    let Some(scene) = Scene::isolated("it takes a network namespace") else { return };
    let _broker = scene.broker();
    let (bound, fds) = scene.wire().bind(&["web=0.0.0.0:8080"]);
    is_well(&scene);
    socket2::SockRef::from(&fds[0]).bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    let told = || is_told_of("only clients that come through lo reach it", &scene, "has bound it");
    told();
    scene.run("upgrade", &[]).ok();
    told();
    let (again, _fds) = scene.wire().bind(&["web"]);
    assert_eq!(again[0]["inode"], bound[0]["inode"]);
}

#[test]
fn a_device_that_comes_later_is_bound_at_the_next_reload() {
    Haproxy::all().for_each(|program| device_comes_later(&program));
}

fn device_comes_later(program: &Path) {
    let Some(scene) = Scene::isolated("it takes a network namespace") else { return };
    let network = Network::new(&scene);
    let _broker = scene.broker();
    let file = scene.write("haproxy.cfg", &config("0.0.0.0:8080 interface bo0"));
    let mut haproxy = Haproxy::start(&scene, program, &file);
    haproxy.supervisor.wait_line("the interface bo0 does not exist");
    let elsewhere = || std::net::TcpStream::connect("127.0.0.1:8080").is_ok();
    assert!(elsewhere(), "it listens on every interface");
    device(&network);
    haproxy.reload(&scene).ok();
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    eventually("the older one to be closed", || (!elsewhere()).then_some(()));
    // Also with a supervisor that took the generation over, and with one that starts anew.
    haproxy.supervisor.kill();
    drop(haproxy);
    let haproxy = Haproxy::start(&scene, program, &file);
    haproxy.reload(&scene).ok();
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    drop(haproxy);
    let haproxy = Haproxy::start(&scene, program, &file);
    haproxy.reload(&scene).ok();
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    assert!(scene.run("list", &[]).ok().contains("0.0.0.0:8080"), "the broker's by now");
}

#[test]
fn an_address_that_leaves_and_comes_back_needs_nothing() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("it takes a network namespace") else { return };
    let network = Network::new(&scene);
    device(&network);
    let _broker = scene.broker();
    let file = scene.write("haproxy.cfg", &config("10.77.0.1:8080"));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    ip("link delete bo0");
    is_told(&scene, "no interface has 10.77.0.1 now");
    device(&network);
    assert_eq!(network.ask("10.77.0.1"), "<here>");
    is_well(&scene);
}

fn ask_path(path: &Path) -> String {
    let answer = UnixStream::connect(path).and_then(|mut stream| {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    match answer {
        Ok(answer) => answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned(),
        Err(error) => error.kind().to_string(),
    }
}

#[test]
fn a_unix_path_that_is_removed_or_replaced_is_bound_anew_at_the_next_reload() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let directory = scene.path("sockets");
    fs::create_dir(&directory).expect("a directory");
    let path = directory.join("web.sock");
    let file = scene.write("haproxy.cfg", &config(&format!("unix@{} mode 666", path.display())));
    let haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(ask_path(&path), "<here>");
    is_well(&scene);

    fs::remove_file(&path).expect("remove");
    is_told(&scene, "is gone");
    haproxy.reload(&scene).ok();
    assert_eq!(ask_path(&path), "<here>", "removed");

    // A reload that binds it anew and fails leaves it to nobody, until the next one.
    fs::remove_file(&path).expect("remove");
    let text = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, format!("{text} nonsense\n")).expect("writing");
    haproxy.reload(&scene).fails(1);
    let problem = "its clients wait: it was bound anew";
    eventually("it to be told", || scene.run("list", &[]).ok().contains(problem).then_some(()));
    is_told_of(problem, &scene, "no process that uses it has the new socket");
    fs::write(&file, text).expect("writing");
    haproxy.reload(&scene).ok();
    assert_eq!(ask_path(&path), "<here>", "removed before a reload that failed");
    is_well(&scene);

    fs::remove_dir_all(&directory).expect("remove");
    fs::create_dir(&directory).expect("a directory made anew");
    is_told(&scene, "is gone");
    haproxy.reload(&scene).ok();
    assert_eq!(ask_path(&path), "<here>", "its directory made anew");

    fs::remove_file(&path).expect("remove");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("another's, which is dead"));
    is_told(&scene, "is another file now");
    haproxy.reload(&scene).ok();
    assert_eq!(ask_path(&path), "<here>", "replaced by a dead one");

    // Its mode is that of the bind line again, as of a file that haproxy alone would make anew.
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    is_told_of("not every client may connect", &scene, "has the mode 0600 now, not 0666");
    haproxy.reload(&scene).ok();
    let mode = fs::metadata(&path).expect("its file").permissions().mode();
    assert_eq!((mode & 0o777, ask_path(&path).as_str()), (0o666, "<here>"));
    is_well(&scene);
    drop(haproxy);
    let group = fs::metadata(&path).expect("its file").gid();
    let line = format!("unix@{} mode 660 gid {group}", path.display());
    let haproxy = Haproxy::start(&scene, &program, &scene.write("haproxy.cfg", &config(&line)));
    if std::os::unix::fs::lchown(&path, None, Some(group + 1)).is_ok() {
        let told = format!("belongs to group {} now, not to group {group}", group + 1);
        is_told_of("not every client may connect", &scene, &told);
        scene.run("upgrade", &[]).ok();
        is_told_of("not every client may connect", &scene, &told);
        haproxy.reload(&scene).ok();
        assert_eq!(fs::metadata(&path).expect("its file").gid(), group);
        is_well(&scene);
    }

    // A living socket, or a file that is no socket, is left alone, and the reload says so.
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "mine").expect("a file");
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains("it exists and is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "mine");
}

#[test]
fn a_network_namespace_that_is_made_anew_is_found_again() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("it takes a network namespace") else { return };
    let name = format!("bo-{}", std::process::id());
    let make = || {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
    };
    make();
    let _broker = scene.broker();
    let file = scene.write("haproxy.cfg", &config(&format!("127.0.0.1:8080 namespace {name}")));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let ask = || {
        let script =
            "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let mut command = Command::new("ip");
        let out =
            command.args(["netns", "exec", &name, "timeout", "30", "bash", "-c", script]).output();
        let answer = String::from_utf8_lossy(&out.expect("ip").stdout).into_owned();
        answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
    };
    assert_eq!(ask(), "<here>");
    is_well(&scene);
    ip(&format!("netns delete {name}"));
    make();
    assert_eq!(ask(), "");
    is_told(&scene, "is another one now");
    haproxy.reload(&scene).ok();
    assert_eq!(ask(), "<here>");
    is_well(&scene);

    // The file stays, and is no namespace any more.
    finish(Command::new("umount").args(["--lazy", &format!("/run/netns/{name}")])).ok();
    is_told(&scene, &format!("there is no network namespace {name} any more"));
    haproxy.reload(&scene).fails(1);
    ip(&format!("netns delete {name}"));
    make();
    haproxy.reload(&scene).ok();
    assert_eq!(ask(), "<here>");
    is_well(&scene);
    ip(&format!("netns delete {name}"));
}
