//! `bindonce doctor`: each finding from the real condition, made with real
//! processes, and nothing found where all is well.
//!
//! doctor looks at every network namespace, those of tests beside this one
//! included: only what it says of the test's own counts.

mod generations;
mod limits;
mod ownership;
mod queues;
mod quic;
mod split;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use crate::harness::{
    Finished, Haproxy, Process, Scene, bindonce, config, eventually, finish, skip,
};
use crate::untrusted::{HOSTILE, fit};

/// What doctor says of the test's own network, notes left out.
fn findings(scene: &Scene) -> Vec<Value> {
    let report = report(scene, &[]);
    let all = report["findings"].as_array().expect("findings").clone();
    all.into_iter().filter(|one| one["network"].is_null() && one["severity"] != "note").collect()
}

fn doctor(scene: &Scene, arguments: &[&str]) -> Finished {
    finish(scene.bindonce("doctor").args(arguments))
}

fn report(scene: &Scene, arguments: &[&str]) -> Value {
    let said = doctor(scene, &[&["--json"], arguments].concat());
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// The one finding of the kind; others are given as they are when it is missing.
#[track_caller]
fn expect(scene: &Scene, kind: &str) -> Value {
    let all = findings(scene);
    let found: Vec<_> = all.iter().filter(|one| one["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}: {all:#?}");
    found[0].clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn pids(finding: &Value) -> Vec<u32> {
    let pids = finding["pids"].as_array().expect("pids");
    pids.iter().filter_map(|pid| u32::try_from(pid.as_u64()?).ok()).collect()
}

/// A plain haproxy, as people start it without bindonce, that answers.
#[track_caller]
fn plain(scene: &Scene, program: &Path, file: &Path, more: &[&str]) -> Process {
    let mut command = scene.command(program);
    let process = Process::start(command.arg("-db").arg("-f").arg(file).args(more));
    wait_bound(process.pid());
    process
}

/// A plain haproxy with one listener that serves, in a place of its own.
fn served() -> Option<(Scene, SocketAddr, Process)> {
    let program = Haproxy::system()?;
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = plain(&scene, &program, &file, &[]);
    Some((scene, address, haproxy))
}

/// Waits until a process has a listening socket registered, which is when haproxy serves.
fn wait_bound(pid: u32) {
    eventually("haproxy to serve", || {
        let directory = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
        let serves = directory.flatten().any(|entry| {
            let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
            info.lines().filter(|line| line.starts_with("tfd:")).count() > 1
        });
        serves.then_some(())
    });
}

/// A client that has begun a request and does not end it: its haproxy cannot end.
fn half_a_request(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("connecting");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").expect("half a request");
    client
}

fn expect_any(scene: &Scene, kind: &str) -> Option<Value> {
    findings(scene).into_iter().find(|one| one["kind"] == kind)
}

#[test]
fn a_healthy_haproxy_gives_no_finding() {
    let Some((scene, _address, _haproxy)) = served() else { return };
    assert_eq!(findings(&scene), Vec::<Value>::new());
}

#[test]
fn an_address_where_nothing_listens_is_found_by_name() {
    let scene = Scene::new();
    // No test binds this port, and the kernel gives it to no client.
    let said = doctor(&scene, &["127.0.0.1:32000"]).fails(3);
    assert!(said.starts_with("unserved 127.0.0.1:32000: nothing listens here"), "{said}");
    let said = doctor(&scene, &["nonsense"]).fails(1);
    assert!(said.contains("nonsense"), "{said}");
}

#[test]
fn without_privileges_it_says_what_it_could_not_see() {
    let setpriv = PathBuf::from("/usr/bin/setpriv");
    if !nix::unistd::geteuid().is_root() || !setpriv.exists() {
        skip("needs root and setpriv to become another user");
        return;
    }
    let Some((scene, address, _haproxy)) = served() else { return };
    let binary = scene.path("bindonce");
    std::fs::copy(bindonce(), &binary).expect("a copy that anybody may execute");
    let mut command = scene.command(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    let said = finish(command.args(["doctor", &address.to_string(), "--json"]));
    let report: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(report["sockets"][0]["address"], address.to_string(), "{report:#}");
    let unseen = report["unseen"].to_string();
    assert!(unseen.contains("run as root"), "{unseen}");
    assert_eq!(report["healthy"], true, "{report:#}");
}

/// The remedies are commands: nothing in the report is printed that is not text.
#[test]
fn a_command_line_cannot_write_to_the_terminal() {
    let scene = Scene::new();
    let address = scene.address();
    let program = "import select, socket, sys\nhost, port = sys.argv[2].split(':')\n\
        s = socket.create_server((host, int(port)))\n\
        waiting = select.epoll()\nwaiting.register(s)\nprint('ready', flush=True)\nwaiting.poll()\n";
    // In a file, because a long command line is cut off.
    scene.write("listen.py", program);
    let mut command: Command = scene.command("python3");
    command.args(["listen.py", HOSTILE, &address.to_string()]);
    let mut process = Process::start(&mut command);
    process.wait_line("ready");
    let said = doctor(&scene, &[&address.to_string()]).out;
    assert!(said.contains("accepts") && said.contains("OWNED"), "{said}");
    fit("doctor", &said);
}

/// Any user may run something that is called haproxy and name any file: doctor opens no pipe and no
/// device for it.
#[test]
fn a_file_that_never_ends_or_never_begins_is_left_alone() {
    let (scene, _broker) = Scene::with_broker();
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("a fifo");
    let plain = scene.write("plain.cfg", "global\n");
    // The files of a haproxy are looked into where it accepts on a UNIX socket.
    let program = "import select, socket, sys\nopen('/proc/self/comm', 'w').write('haproxy')\n\
        s = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n\
        waiting = select.epoll()\nwaiting.register(s)\nprint('ready', flush=True)\nwaiting.poll()\n";
    let mut command: Command = scene.command("python3");
    command.args(["-c", program]).arg(scene.path("stats.sock"));
    for file in [&fifo, Path::new("/dev/zero"), &plain] {
        command.arg("-f").arg(file);
    }
    let mut theirs = Process::start(&mut command);
    theirs.wait_line("ready");
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
    let [of_fifo, of_plain] =
        [&fifo, &plain].map(|file| watch.add_watch(file, AddWatchFlags::IN_OPEN).expect("a watch"));
    // It looks at the whole host: what it finds there is others' affair.
    let code = scene.run("doctor", &[]).code;
    assert!(matches!(code, Some(0 | 3)), "{code:?}");
    let opened: Vec<_> =
        watch.read_events().expect("some file was opened").iter().map(|one| one.wd).collect();
    assert!(opened.contains(&of_plain) && !opened.contains(&of_fifo), "{opened:?}");
}
