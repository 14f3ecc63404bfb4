//! `bindonce doctor`: each finding from the real condition, made with real
//! processes, and nothing found where all is well.
//!
//! doctor looks at every network namespace, those of tests beside this one
//! included: only what it says of the test's own counts.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Finished, Haproxy, Process, Scene, config, eventually, finish, skip};

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

/// Whether every thread of a process is stopped.
fn all_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    threads.into_iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Whether the kernel tells of sockets that are bound and do not listen (Linux 6.8).
fn tells_of_bound_sockets() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

#[test]
fn a_healthy_haproxy_gives_no_finding() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let _haproxy = plain(&scene, &program, &file, &[]);
    assert_eq!(findings(&scene), Vec::<Value>::new());
}

/// The seed case: a generation that missed its signal, then a second one.
#[test]
fn split_names_the_pids_and_their_share() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let first = plain(&scene, &program, &file, &[]);
    let second = plain(&scene, &program, &file, &[]);
    for _ in 0..5 {
        let found = expect(&scene, "split");
        assert_eq!(found["address"], address.to_string());
        assert_eq!(pids(&found), [first.pid()]);
        let summary = text(&found["summary"]);
        assert!(summary.starts_with("1 of 2 connections, 50 %, go to pid "), "{summary}");
    }
    let third = plain(&scene, &program, &file, &[]);
    let found = expect(&scene, "split");
    assert_eq!(pids(&found), [first.pid(), second.pid()]);
    let summary = text(&found["summary"]);
    assert!(summary.starts_with("2 of 3 connections, 67 %, go to pid "), "{summary}");
    assert!(
        summary.ends_with(&format!("older than pid {} with the newest configuration", third.pid()))
    );
    // The person sees the finding first, and the remedy, run as it is printed, helps.
    let said = doctor(&scene, &[&address.to_string()]).fails(3);
    assert!(said.starts_with(&format!("split {address}: 2 of 3")), "{said}");
    assert!(said.contains("-f") && said.contains("haproxy.cfg"), "{said}");
    let remedy = text(&found["remedy"][0]);
    assert!(said.contains(remedy), "{said}");
    finish(scene.command("sh").args(["-c", remedy])).ok();
    eventually("the older to end", || (scene.haproxies().len() == 1).then_some(()));
    assert_eq!(findings(&scene), Vec::<Value>::new());
}

#[test]
fn a_plain_reload_gives_no_finding() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut haproxy = plain(&scene, &program, &file, &[]);
    for _ in 0..5 {
        let old = haproxy.pid().to_string();
        let mut command = scene.command(&program);
        let next = Process::start(command.arg("-db").arg("-f").arg(&file).args(["-sf", &old]));
        assert_eq!(findings(&scene), Vec::<Value>::new());
        haproxy.wait_exit();
        haproxy = next;
    }
}

#[test]
fn reloads_under_bindonce_give_no_finding() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    let _draining = half_a_request(address);
    let script = "until [ -e \"$3\" ]; do \"$1\" reload --name web --socket \"$2\" || exit 1; done";
    let stop = scene.path("stop");
    let mut reloads = scene.command("sh");
    reloads.args(["-c", script, "sh"]).arg(crate::harness::bindonce());
    let mut reloads = Process::start(reloads.arg(scene.socket()).arg(&stop));
    for _ in 0..5 {
        assert_eq!(findings(&scene), Vec::<Value>::new());
    }
    scene.write("stop", "");
    assert!(reloads.wait_exit().success(), "{}", reloads.story());
    let report = report(&scene, &["web"]);
    let sockets = report["sockets"].as_array().expect("sockets");
    let web = sockets.iter().find(|one| one["address"] == address.to_string());
    let holders = web.expect("the listener")["holders"].as_array().expect("holders").clone();
    let accepting: Vec<_> = holders.iter().filter(|one| one["accepts"] == "yes").collect();
    assert_eq!(accepting.len(), 1, "{holders:#?}");
}

/// Two generations on one shared socket, as after a lost signal with fd@.
fn shared(scene: &Scene, program: &Path, address: SocketAddr) -> Process {
    let text = config(address, 1).replace(&address.to_string(), "\"fd@${web}\"");
    let file = scene.write("shared.cfg", &text);
    let mut command = scene.bindonce("exec");
    command.arg("--listen").arg(format!("web={address}")).arg("--").arg(program);
    let process = Process::start(command.arg("-db").arg("-f").arg(&file));
    wait_bound(process.pid());
    process
}

#[test]
fn stale_and_ghost_on_a_shared_socket() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let old = shared(&scene, &program, address);
    assert_eq!(findings(&scene), Vec::<Value>::new());
    let client = half_a_request(address);
    eventually("the old one to take it", || {
        let sockets = report(&scene, &[&address.to_string()])["sockets"][0]["queue"].as_u64();
        (sockets == Some(0)).then_some(())
    });
    let new = shared(&scene, &program, address);
    let found = expect(&scene, "stale");
    assert_eq!(pids(&found), [old.pid()]);
    assert!(text(&found["summary"]).contains(&format!("beside pid {}", new.pid())), "{found:#}");

    // Told to stop it closes its listener; its epoll set keeps it, as 2.6 in -db does.
    old.signal(Signal::SIGUSR1);
    eventually("the ghost", || {
        findings(&scene).iter().all(|one| one["kind"] != "stale").then_some(())
    });
    let kinds: Vec<_> = findings(&scene).iter().map(|one| text(&one["kind"]).to_owned()).collect();
    if kinds.is_empty() {
        skip("this haproxy leaves no ghost");
    } else {
        let found = expect(&scene, "ghost");
        assert_eq!(pids(&found), [old.pid()]);
        assert_eq!(found["address"], address.to_string());
    }
    drop(client);
}

#[test]
fn a_stopped_haproxy_is_unserved_with_its_queue() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = plain(&scene, &program, &file, &[]);
    haproxy.signal(Signal::SIGSTOP);
    eventually("every thread to stop", || all_stopped(haproxy.pid()).then_some(()));
    let _clients: Vec<_> =
        (0..3).map(|_| TcpStream::connect(address).expect("connecting")).collect();
    let found = expect(&scene, "unserved");
    assert_eq!(found["evidence"]["queue"], 3, "{found:#}");
    assert!(text(&found["summary"]).starts_with("nobody accepts: 3 of "), "{found:#}");
    assert_eq!(found["remedy"][0], format!("kill -CONT {}", haproxy.pid()));
    haproxy.signal(Signal::SIGCONT);
    eventually("it to go on", || findings(&scene).is_empty().then_some(()));
}

#[test]
fn a_listener_without_a_service_is_unserved() {
    let scene = Scene::new();
    let broker = scene.broker();
    let address = scene.address();
    scene.run("bind", &[&format!("web={address}")]).ok();
    let found = expect(&scene, "unserved");
    assert_eq!((&found["severity"], pids(&found)), (&"warning".into(), vec![broker.pid()]));
    assert!(text(&found["remedy"][0]).contains("bindonce release web"), "{found:#}");
    let _client = TcpStream::connect(address).expect("connecting");
    eventually("a wait of a second", || {
        let found = expect_any(&scene, "unserved")?;
        text(&found["summary"]).contains("1 of").then(|| assert_eq!(found["severity"], "error"))
    });
}

fn expect_any(scene: &Scene, kind: &str) -> Option<Value> {
    findings(scene).into_iter().find(|one| one["kind"] == kind)
}

#[test]
fn an_address_where_nothing_listens_is_found_by_name() {
    let scene = Scene::new();
    // Other tests use the low ports in namespaces of their own.
    let said = doctor(&scene, &["127.0.0.1:59999"]).fails(3);
    assert!(said.starts_with("unserved 127.0.0.1:59999: nothing listens here"), "{said}");
    let said = doctor(&scene, &["nonsense"]).fails(1);
    assert!(said.contains("nonsense"), "{said}");
}

#[test]
fn paused_is_found_and_the_remedy_helps() {
    let Some(program) = Haproxy::system() else { return };
    if !tells_of_bound_sockets() {
        skip("Linux before 6.8 does not tell of sockets that are bound and do not listen");
        return;
    }
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = plain(&scene, &program, &file, &[]);
    haproxy.signal(Signal::SIGTTOU);
    let found = eventually("the pause", || expect_any(&scene, "paused"));
    assert_eq!(
        (&found["address"], pids(&found)),
        (&address.to_string().into(), vec![haproxy.pid()])
    );
    finish(scene.command("sh").args(["-c", text(&found["remedy"][0])])).ok();
    eventually("it to go on", || findings(&scene).is_empty().then_some(()));
}

/// A server that takes connections far more slowly than they come.
const SLOW: &str = r#"
import socket, sys, time, threading
host, port = sys.argv[1].split(":")
server = socket.socket()
server.bind((host, int(port)))
server.listen(3)
print("ready", flush=True)
def burn():
    while True: pass
threading.Thread(target=burn, daemon=True).start()
import select
poll = select.epoll()
poll.register(server, select.EPOLLIN)
while True:
    poll.poll()
    server.accept()[0].close()
    time.sleep(0.2)
"#;

#[test]
fn overflow_names_the_limit() {
    let scene = Scene::new();
    let address = scene.address();
    let mut command = scene.command("python3");
    let mut server = Process::start(command.args(["-c", SLOW, &address.to_string()]));
    server.wait_line("ready");
    let mut clients = Vec::new();
    let found = eventually("the queue to be full", || {
        for _ in 0..20 {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            );
            let socket = socket.expect("a socket");
            let to = nix::sys::socket::SockaddrStorage::from(address);
            let _ = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to);
            clients.push(socket);
        }
        expect_any(&scene, "overflow")
    });
    assert_eq!(found["address"], address.to_string());
    assert_eq!(found["evidence"]["queue_limit"], 3, "{found:#}");
    assert!(found["evidence"]["drops"].as_u64() > Some(0), "{found:#}");
    assert!(text(&found["summary"]).contains("the backlog given to listen()"), "{found:#}");
}

#[test]
fn saturated_is_haproxys_own_limit() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let stats = scene.path("stats.sock");
    let global = format!("maxconn 3\n    stats socket {} level admin\n", stats.display());
    let text_of = config(address, 1).replace("maxconn 500\n", &global);
    let file = scene.write("haproxy.cfg", &text_of);
    let haproxy = plain(&scene, &program, &file, &[]);
    assert_eq!(findings(&scene), Vec::<Value>::new());
    let _clients: Vec<_> = (0..5).map(|_| half_a_request(address)).collect();
    let found = eventually("the limit", || expect_any(&scene, "saturated"));
    assert_eq!(pids(&found), [haproxy.pid()]);
    assert!(text(&found["summary"]).contains("3 of 3"), "{found:#}");
    let all = findings(&scene);
    assert_eq!(all.len(), 1, "the queue is explained by it: {all:#?}");
}

#[test]
fn saturated_is_also_a_backend_that_cannot_keep_up() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let (address, behind) = (scene.address(), scene.address());
    let _server = TcpListener::bind(behind).expect("a server that never answers");
    let stats = scene.path("stats.sock");
    let text_of = config(address, 1)
        .replace("maxconn 500\n", &format!("stats socket {} level admin\n", stats.display()));
    let text_of = text_of
        .lines()
        .filter(|line| !line.contains("http-request"))
        .fold(String::new(), |text, line| text + line + "\n");
    let backend = format!(
        "    default_backend app\nbackend app\n    timeout queue 30s\n    server s1 {behind} maxconn 1\n"
    );
    let file = scene.write("haproxy.cfg", &(text_of + &backend));
    let _haproxy = plain(&scene, &program, &file, &[]);
    let _clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = TcpStream::connect(address).expect("connecting");
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
            client
        })
        .collect();
    let found = eventually("requests to queue", || expect_any(&scene, "saturated"));
    assert!(text(&found["summary"]).contains("3 requests wait for"), "{found:#}");
    assert!(text(&found["summary"]).contains("app"), "{found:#}");
}

#[test]
fn lingering_tells_how_many_and_what_holds_the_oldest() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let mut old: Vec<Process> = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let last = old.last().map(|process| process.pid().to_string());
        let more: Vec<&str> = last.iter().flat_map(|pid| ["-sf", pid]).collect();
        old.push(plain(&scene, &program, &file, &more));
        // The one before must have given the address up, else the client may reach it.
        eventually("one socket", || (crate::harness::listening(address).len() == 1).then_some(()));
        clients.push(half_a_request(address));
    }
    let found = eventually("the generations", || expect_any(&scene, "lingering"));
    let summary = text(&found["summary"]);
    assert!(summary.starts_with("7 replaced generations drain"), "{found:#}");
    assert!(summary.contains(&format!("pid {}", old[0].pid())), "{found:#}");
    assert!(text(&found["cause"]).contains(&address.to_string()), "{found:#}");
    for process in &mut old {
        process.signal(Signal::SIGTERM);
    }
}

#[test]
fn a_limit_of_descriptors_is_found() {
    let scene = Scene::new();
    let address = scene.address().to_string();
    let program = "import socket, os, resource, sys, time\n\
        host, port = sys.argv[1].split(':')\n\
        s = socket.create_server((host, int(port)))\n\
        resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))\n\
        [os.dup(0) for _ in range(9 - len(os.listdir('/proc/self/fd')) + 1)]\n\
        print('ready', flush=True)\n\
        s.accept()\n";
    let mut process = Process::start(scene.command("python3").args(["-c", program, &address]));
    process.wait_line("ready");
    let found = expect(&scene, "limit");
    assert_eq!(pids(&found), [process.pid()]);
    assert!(text(&found["summary"]).contains("of 10, "), "{found:#}");
}

#[test]
fn a_socket_that_haproxy_binds_itself_is_foreign() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let (address, peer) = (scene.address(), scene.address());
    let peers = format!("peers p\n    peer {} {peer}\n", host_name());
    let file = scene.write("haproxy.cfg", &(config(address, 1) + &peers));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    let found = expect(&scene, "foreign");
    assert_eq!((&found["address"], &found["service"]), (&peer.to_string().into(), &"web".into()));
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").expect("host name").trim().to_owned()
}

#[test]
fn not_exclusive_is_a_note_for_a_plain_haproxy() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let _haproxy = plain(&scene, &program, &file, &[]);
    let report = report(&scene, &[&address.to_string()]);
    let all = report["findings"].as_array().expect("findings");
    let note = all.iter().find(|one| one["kind"] == "not-exclusive" && one["network"].is_null());
    assert_eq!(note.expect("a note")["severity"], "note", "{all:#?}");
}

#[test]
fn without_privileges_it_says_what_it_could_not_see() {
    let Some(program) = Haproxy::system() else { return };
    let setpriv = PathBuf::from("/usr/bin/setpriv");
    if !nix::unistd::geteuid().is_root() || !setpriv.exists() {
        skip("needs root and setpriv to become somebody else");
        return;
    }
    let scene = Scene::new();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let _haproxy = plain(&scene, &program, &file, &[]);
    let binary = scene.path("bindonce");
    std::fs::copy(crate::harness::bindonce(), &binary).expect("a copy that anybody may execute");
    let mut command = scene.command(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    let said = finish(command.args(["doctor", &address.to_string(), "--json"]));
    let report: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(report["sockets"][0]["address"], address.to_string(), "{report:#}");
    let unseen = report["unseen"].to_string();
    assert!(unseen.contains("run as root"), "{unseen}");
    assert_eq!(report["healthy"], true, "{report:#}");
}

/// The goal of issue 5, on whatever machine this is: far less than a screen's patience.
#[test]
fn a_look_is_quick() {
    let scene = Scene::new();
    let listeners: Vec<_> =
        (0..200).map(|_| TcpListener::bind(scene.address()).expect("bind")).collect();
    let begun = Instant::now();
    report(&scene, &[]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(listeners);
}

/// The remedies are commands: nothing in the report is printed that is not text.
#[test]
fn a_command_line_cannot_write_to_the_terminal() {
    let scene = Scene::new();
    let address = scene.address();
    let program = "import socket, sys, time\nhost, port = sys.argv[1].split(':')\n\
        s = socket.create_server((host, int(port)))\nprint('ready', flush=True)\ns.accept()\n";
    let mut command: Command = scene.command("python3");
    command.args(["-c", program, &address.to_string(), "\u{1b}[2J"]);
    let mut process = Process::start(&mut command);
    process.wait_line("ready");
    let said = doctor(&scene, &[&address.to_string()]).out;
    assert!(said.contains("accepts") && !said.contains('\u{1b}'), "{said}");
}
