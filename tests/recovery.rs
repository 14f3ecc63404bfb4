//! A broker is killed, and the next one recovers every listener: the same socket where any process
//! holds it, a new one otherwise, and never a second one.

use std::fs;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};

use bindonce_sys::lock::LockFile;
use serde_json::{Value, json};

use crate::harness::{
    Haproxy, Process, Scene, Wire, bindonce, config, eventually, listening, serves,
};

fn store(wire: &mut Wire, listen: &[&str], fds: &[OwnedFd]) -> Value {
    let params: Vec<_> = listen.iter().map(|text| json!({"listen": text})).collect();
    let request = json!({"jsonrpc": "2.0", "id": 9, "method": "store", "params": params});
    wire.send_with(request.to_string().as_bytes(), fds);
    wire.reply()
}

fn inodes(entries: &[Value]) -> Vec<u64> {
    entries.iter().map(|entry| entry["inode"].as_u64().expect("an inode")).collect()
}

/// The broker after a killed one, as soon as it accepts connections.
fn next(scene: &Scene) -> Process {
    let process = Process::start(&mut scene.bindonce("serve"));
    // The path leads to the dead broker until the next one has replaced it.
    eventually("the next broker", || Wire::try_connect(&scene.socket()));
    process
}

/// Returns once this process blocks in flock(2).
fn wait_for_lock(process: &mut Process) {
    let waits = format!(" {} ", process.pid());
    eventually("it waits for the lock", || {
        assert!(process.is_running(), "{}", process.story());
        let locks = fs::read_to_string("/proc/locks").ok()?;
        locks.lines().any(|it| it.contains("-> FLOCK") && it.contains(&waits)).then_some(())
    });
}

/// The kernel closes the files of a killed broker after its clients see its end, and a child may
/// keep them for longer.
#[test]
fn a_successor_waits_for_the_lock_of_one_that_ends() {
    let scene = Scene::new();
    let hold = |path: &str| {
        LockFile::try_acquire(&scene.path(path)).expect("a lock").expect("nobody has it")
    };
    let ends = hold("broker.sock.lock");
    let mut broker = Process::start(&mut scene.bindonce("serve"));
    wait_for_lock(&mut broker);
    drop(ends);
    scene.wait_broker(&mut broker);
    let Some(program) = Haproxy::system() else { return };
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    fs::DirBuilder::new().mode(0o700).create(scene.path("web.d")).expect("its directory");
    let ends = hold("web.d/lock");
    let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
    wait_for_lock(&mut haproxy.supervisor);
    drop(ends);
    haproxy.wait_serving(&scene);
}

#[test]
fn what_a_process_holds_comes_back_as_the_same_socket_and_what_nobody_holds_anew() {
    let (scene, mut first) = Scene::with_broker();
    let (held, lost) = (scene.address(), scene.address());
    let path = scene.path("app.sock").display().to_string();
    let wanted = [
        format!("web={held},backlog=33"),
        path.clone(),
        "abns@recovery".into(),
        "any=127.0.0.1:0".into(),
        "quic4@127.0.0.1:0".into(),
    ];
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let (entries, _fds) = scene.wire().bind(&wanted);
    let (gone, fds) = scene.wire().bind(&[&format!("gone={lost},backlog=44"), "free=127.0.0.1:0"]);
    drop(fds);
    let (released, _) = scene.wire().bind(&["old=127.0.0.1:0"]);
    scene.wire().call("release", &json!(["old"]));
    let state = scene.path("broker.sock.state");
    let mode = fs::metadata(&state).expect("the state file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.kill();

    let mut second = next(&scene);
    // The claim waits until the broker has recovered what it can.
    let (again, _more) = scene.wire().bind(&wanted);
    assert_eq!(inodes(&again), inodes(&entries), "{}", second.story());
    assert!(again.iter().all(|entry| entry["created"] == false));
    assert_eq!(again[3]["bound"], entries[3]["bound"]);
    let (anew, _) = scene.wire().bind(&["gone", "free"]);
    assert_ne!(anew[0]["inode"], gone[0]["inode"]);
    assert_eq!(anew[1]["bound"], gone[1]["bound"], "the port that the kernel once chose");
    assert_eq!(listening(lost)[0].limit, 44);
    let none = scene.wire().error("bind", &json!([{"name": "old"}]));
    assert_eq!(none["code"], -32006, "{none} {released:?}");
    assert_eq!((listening(held).len(), listening(lost).len()), (1, 1));
    TcpStream::connect(held).expect("connecting");

    // An orderly end leaves nothing to recover.
    second.terminate();
    assert!(!state.exists() && !fs::exists(&path).expect("the path"));
}

/// A broker that may trace no process, so that it cannot take descriptors itself.
fn serve_untracing(scene: &Scene, listen: &[String]) -> Process {
    let mut command = scene.command("setpriv");
    command.args(["--bounding-set", "-sys_ptrace"]).arg(bindonce()).arg("serve");
    command.arg("--socket").arg(scene.socket());
    command.args(listen.iter().flat_map(|text| ["--listen", text]));
    let process = Process::start(&mut command);
    eventually("the broker", || Wire::try_connect(&scene.socket()));
    process
}

#[test]
fn a_client_gives_back_what_it_holds() {
    let (scene, mut first) = Scene::with_broker();
    let address = scene.address();
    let (entries, fds) = scene.wire().bind(&[&format!("web={address},backlog=7")]);
    first.kill();
    // The broker cannot take the descriptor itself, since it may trace no process.
    let mut second = serve_untracing(&scene, &[]);

    let mut wire = scene.wire();
    // The name and the options are the recorded ones.
    let reply = store(&mut wire, &[&address.to_string()], &fds);
    let listener = &reply["result"]["listeners"][0];
    assert_eq!((&listener["name"], &listener["inode"]), (&json!("web"), &entries[0]["inode"]));
    let (again, _) = scene.wire().bind(&["web"]);
    assert_eq!(again[0]["inode"], entries[0]["inode"]);
    // Nothing is missing any more, so the broker does not wait.
    let recovered = second.wait_line("listeners of the previous broker recovered=");
    assert!(recovered.contains("lost=0"), "{recovered}");
    // The client has a lease; storing again changes nothing.
    let busy = scene.wire().error("release", &json!(["web"]));
    assert_eq!(busy["code"], -32007, "{busy}");
    let reply = store(&mut wire, &[&address.to_string()], &fds);
    assert_eq!(reply["result"]["listeners"][0]["inode"], entries[0]["inode"], "{reply}");
    second.terminate();
}

/// The next broker does not take a listener whose path is gone. It takes the generation's others.
#[test]
fn a_listener_that_is_astray_keeps_no_other_from_the_next_broker() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, mut first) = Scene::with_broker();
    let (web, path) = (scene.address(), scene.path("web.sock"));
    let bind = format!("bind unix@{}", path.display());
    let text = config(web, 1).replace("frontend web\n", &format!("frontend web\n {bind}\n"));
    let file = scene.write("haproxy.cfg", &text);
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    fs::remove_file(&path).expect("remove");
    first.kill();
    let mut second = serve_untracing(&scene, &[]);
    haproxy.supervisor.wait_lines(&[
        "the broker has not taken back 1 listener of generation 1",
        "it holds 1 listener of generation 1",
    ]);
    let busy = scene.wire().error("release", &json!([web.to_string()]));
    assert_eq!(busy["code"], -32007, "{busy}");
    assert_eq!(haproxy.serving(&scene).map(|(generation, _)| generation), Some(1));
    haproxy.reload(&scene).ok();
    serves(web, 1);
    std::os::unix::net::UnixStream::connect(&path).expect("connecting");
    drop(haproxy);
    second.terminate();
}

/// As when a container is replaced: the broker ends in order while a program in another pid
/// namespace, which it may not trace, continues with its listeners.
#[test]
fn a_broker_that_ends_in_order_leaves_what_is_in_use_to_the_next() {
    let scene = Scene::new();
    let (web, idle) = (scene.address(), scene.address());
    let path = scene.path("app.sock").display().to_string();
    let configured = [format!("web={web},backlog=7"), format!("idle={idle}")];
    let serve = || serve_untracing(&scene, &configured);
    let mut first = serve();
    let mut user = scene.wire();
    let wanted = ["web", &format!("app={path}")];
    let (entries, fds) = user.bind(&wanted);
    assert!(first.terminate().success(), "{}", first.story());
    assert_eq!((listening(web).len(), listening(idle).len()), (1, 0));
    assert!(fs::exists(&path).expect("the path"), "its clients still come by it");

    // The broker starts although its configured addresses are held, and has all of them once they
    // are given back.
    let mut second = serve();
    let mut user = scene.wire();
    let reply = store(&mut user, &[&format!("web={web}"), &format!("app={path}")], &fds);
    let back = reply["result"]["listeners"].as_array().expect("listeners");
    assert_eq!(inodes(back), inodes(&entries), "{}", second.story());
    let (again, more) = scene.wire().bind(&["web", "app", "idle"]);
    assert_eq!(inodes(&again[..2]), inodes(&entries));
    assert_eq!((listening(web)[0].limit, listening(idle).len()), (7, 1));

    // A listener that is closed when the next broker starts is not waited for, but bound anew.
    assert!(second.terminate().success(), "{}", second.story());
    drop((fds, more));
    let mut third = serve();
    let (anew, _) = scene.wire().bind(&["web"]);
    let recovered = third.wait_line("listeners of the previous broker recovered=");
    assert!(recovered.contains("lost=0"), "{recovered}");
    assert_ne!(anew[0]["inode"], entries[0]["inode"]);
    let none = scene.wire().error("bind", &json!([{"name": "app"}]));
    assert_eq!(none["code"], -32006, "{none}");
    third.terminate();
}

#[test]
fn what_cannot_be_had_back_is_named_and_never_bound_twice() {
    let (scene, mut first) = Scene::with_broker();
    let address = scene.address();
    let (entries, fds) = scene.wire().bind(&[&format!("web={address}")]);
    first.kill();
    let mut second = serve_untracing(&scene, &[]);
    let error = scene.wire().error("bind", &json!([{"listen": address.to_string()}]));
    assert_eq!(error["code"], -32005, "{error}");
    assert_eq!(listening(address).len(), 1);
    let line = second.wait_line("was not recovered");
    // A broker that may not take a descriptor may not see its owner either.
    assert!(line.contains(&address.to_string()) && line.contains("held_by="), "{line}");
    let list = scene.run("list", &[]).ok();
    let told = "listeners of the previous broker that are not recovered: 1 (web=";
    assert!(list.contains(told), "{list}");
    scene.run("upgrade", &[]).ok();
    let list = scene.run("list", &[]).ok();
    assert!(list.contains(told), "the next image knows it too: {list}");
    // A late return still succeeds.
    let reply = store(&mut scene.wire(), &[&address.to_string()], &fds);
    assert_eq!(reply["result"]["listeners"][0]["inode"], entries[0]["inode"], "{reply}");
    // And once its holder lets go, a third broker binds it anew.
    second.kill();
    drop(fds);
    let mut third = next(&scene);
    let (anew, _fds) = scene.wire().bind(&["web"]);
    assert_eq!(anew[0]["bound"], address.to_string());
    third.terminate();
}

#[test]
fn store_takes_only_what_is_what_it_is_said_to_be() {
    let (scene, _broker) = Scene::with_broker();
    let socket =
        |text: &str| -> OwnedFd { std::net::TcpListener::bind(text).expect("bind").into() };
    let (one, two) = (scene.address(), scene.address());
    let mut wire = scene.wire();
    let refused = |reply: Value, code: i64, part: &str| {
        let error = &reply["error"];
        assert_eq!(error["code"], code, "{reply}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(part)), "{reply}");
    };
    let text = one.to_string();
    refused(store(&mut wire, &[&text], &[]), -32602, "0 descriptors");
    let fds = [socket(&text), socket(&two.to_string())];
    refused(store(&mut wire, &[&text], &fds), -32602, "2 descriptors");
    refused(store(&mut wire, &[&two.to_string()], &fds[..1]), -32003, "is bound to");
    let file: OwnedFd = fs::File::open("/dev/null").expect("file").into();
    refused(store(&mut wire, &[&text], &[file]), -32003, "no bound socket");
    // All or none: the second descriptor is not the claimed listener.
    refused(store(&mut wire, &[&text, &text], &fds), -32003, "is bound to");
    assert_eq!(wire.call("list", &json!([]))["listeners"], json!([]));

    let texts = [format!("web={text}"), two.to_string()];
    let reply = store(&mut wire, &[&texts[0], &texts[1]], &fds);
    assert_eq!(reply["result"]["listeners"][0]["name"], "web", "{reply}");
    let (bound, _) = scene.wire().bind(&["web", &two.to_string()]);
    assert!(bound.iter().all(|entry| entry["created"] == false), "{bound:?}");
    // The name is taken.
    let third = scene.address().to_string();
    let reply = store(&mut wire, &[&format!("web={third}")], &[socket(&third)]);
    refused(reply, -32003, "web");
    // Descriptors with a request that takes none are closed, and the request is served.
    wire.send_with(br#"{"id":1,"method":"ping"}"#, &fds);
    assert_eq!(wire.reply()["result"]["pong"], true);
    drop(fds);
}
