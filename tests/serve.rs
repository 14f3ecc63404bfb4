//! The broker as a process: its socket, its users, its listeners.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Process, Scene, bindonce, finish, listening, skip};

#[test]
fn a_bound_listener_accepts_and_is_the_only_one() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let mut wire = scene.wire();
    let (first, held) = wire.bind(&[&format!("web={address}")]);
    assert_eq!(first[0]["name"], "web");
    assert_eq!(first[0]["created"], true);
    assert_eq!(first[0]["address"], address.to_string());
    let (again, _) = scene.wire().bind(&[&format!("web={address}")]);
    assert_eq!(again[0]["created"], false);
    assert_eq!(again[0]["inode"], first[0]["inode"]);
    let sockets = listening(address);
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    assert_eq!(first[0]["inode"], sockets[0].inode);

    let listener = TcpListener::from(held.into_iter().next().expect("a descriptor"));
    let client = TcpStream::connect(address).expect("connecting");
    // Shared descriptors stay non-blocking; the connection is in the queue when connect() is back.
    let (_, peer) = listener.accept().expect("accepting");
    assert_eq!(peer, client.local_addr().expect("an address"));
    let clash = TcpListener::bind(address).expect_err("the split becomes an error message");
    assert_eq!(clash.kind(), std::io::ErrorKind::AddrInUse);
}

/// The kernel would enlarge the table while every client waits.
#[test]
fn the_table_of_descriptors_is_wide_from_the_start() {
    let (_scene, broker) = Scene::with_broker();
    let number = |file: &str, line: &str, place: usize| -> usize {
        let text = fs::read_to_string(format!("/proc/{}/{file}", broker.pid())).expect(file);
        let line = text.lines().find(|text| text.starts_with(line)).expect("a line");
        line.split_whitespace().nth(place).and_then(|word| word.parse().ok()).expect("a number")
    };
    let limit = number("limits", "Max open files", 3);
    assert!(number("status", "FDSize", 1) >= limit.min(16 * 1024), "of {limit}");
}

#[test]
fn the_backlog_defaults_to_what_the_system_allows() {
    let (scene, _broker) = Scene::with_broker();
    let (plain, short) = (scene.address(), scene.address());
    scene.wire().bind(&[&plain.to_string(), &format!("{short},backlog=17")]);
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("somaxconn");
    assert_eq!(listening(plain)[0].limit.to_string(), somaxconn.trim());
    assert_eq!(listening(short)[0].limit, 17);
}

#[test]
fn conflicts_are_named_before_any_system_call() {
    let (scene, _broker) = Scene::with_broker();
    let port = scene.address().port();
    let mut wire = scene.wire();
    wire.bind(&[&format!("web=127.0.0.1:{port},backlog=100")]);
    let options = wire.error("bind", &json!([{"listen": format!("127.0.0.1:{port},backlog=200")}]));
    assert_eq!(options["code"], -32003, "{options}");
    let name = wire.error("bind", &json!([{"listen": "web=127.0.0.1:1"}]));
    assert_eq!(name["code"], -32003, "{name}");
    let overlap = wire.error("bind", &json!([{"listen": format!("0.0.0.0:{port}")}]));
    assert_eq!(overlap["code"], -32004, "{overlap}");
    let message = overlap["message"].as_str().expect("text");
    assert!(message.contains("web") && message.contains(&format!("127.0.0.1:{port}")), "{message}");
    assert!(overlap["data"]["hint"].is_string(), "{overlap}");
    // The held listener under another name is the same listener.
    let (other, _) = wire.bind(&[&format!("other=127.0.0.1:{port}")]);
    assert_eq!(other[0]["name"], "web");
}

#[test]
fn one_bad_listener_takes_none_of_its_request() {
    let (scene, _broker) = Scene::with_broker();
    let (free, taken) = (scene.address(), TcpListener::bind("127.0.0.1:0").expect("a socket"));
    let taken = (taken.local_addr().expect("address"), taken);
    let mut wire = scene.wire();
    let params = json!([{"listen": free.to_string()}, {"listen": taken.0.to_string()}]);
    let error = wire.error("bind", &params);
    assert_eq!(error["code"], -32005, "{error}");
    assert_eq!(error["data"]["errno"], nix::errno::Errno::EADDRINUSE as i32, "{error}");
    assert!(error["data"]["address"].as_str().expect("address").contains(&taken.0.to_string()));
    assert!(listening(free).is_empty(), "half of a request was bound");
    assert_eq!(wire.call("list", &json!([]))["listeners"], json!([]));
}

#[test]
fn every_kind_of_address() {
    let (scene, _broker) = Scene::with_broker();
    let port = scene.address().port();
    let path = scene.path("app.sock");
    let specs = [
        format!("six=[::1]:{port}"),
        format!("only=[::]:{},v6only", port + 1),
        format!("both=[::]:{},v4v6", port + 2),
        format!("datagram=udp4@127.0.0.1:{port}"),
        format!("quic=quic4@127.0.0.1:{}", port + 1),
        format!("path=unix@{},mode=0640", path.display()),
        format!("abstract=abns@bindonce-{}", std::process::id()),
    ];
    let specs: Vec<_> = specs.iter().map(String::as_str).collect();
    let (entries, _held) = scene.wire().bind(&specs);
    assert_eq!(entries.len(), specs.len());
    TcpStream::connect(("::1", port)).expect("IPv6");
    TcpStream::connect(("127.0.0.1", port + 1)).expect_err("v6only");
    TcpStream::connect(("127.0.0.1", port + 2)).expect("v4v6");
    std::net::UdpSocket::bind(("127.0.0.1", port)).expect_err("the UDP port is held");
    UnixStream::connect(&path).expect("UNIX path");
    assert_eq!(fs::metadata(&path).expect("the path").mode() & 0o777, 0o640);

    let broker_list = scene.run("list", &["--json"]).ok();
    for name in ["six", "only", "both", "datagram", "quic", "path", "abstract"] {
        assert!(broker_list.contains(&format!("\"{name}\"")), "{name}: {broker_list}");
    }
    scene.run("release", &["path"]).ok();
    assert!(!path.exists(), "a released path stays");
}

#[test]
fn a_stale_path_is_replaced_and_a_live_one_is_never_stolen() {
    let (scene, _broker) = Scene::with_broker();
    let (stale, live, file) = (scene.path("stale"), scene.path("live"), scene.path("file"));
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a path"));
    let _listener = std::os::unix::net::UnixListener::bind(&live).expect("a path");
    fs::write(&file, "precious").expect("a file");
    scene.wire().bind(&[&format!("unix@{}", stale.display())]);
    UnixStream::connect(&stale).expect("the stale path listens again");
    for path in [&live, &file] {
        let error =
            scene.wire().error("bind", &json!([{"listen": format!("unix@{}", path.display())}]));
        assert!(
            error["message"].as_str().expect("text").contains(&path.display().to_string()),
            "{error}"
        );
    }
    UnixStream::connect(&live).expect("the live path is as it was");
    assert_eq!(fs::read_to_string(&file).expect("the file is as it was"), "precious");
}

#[test]
fn the_socket_has_its_modes_and_goes_with_an_orderly_exit() {
    let scene = Scene::new();
    let socket = scene.path("deep/broker.sock");
    let serve = |scene: &Scene| {
        let mut command = scene.command(bindonce());
        command.arg("serve").arg("--socket").arg(&socket);
        command
    };
    let mut broker = Process::start(&mut serve(&scene));
    crate::harness::eventually("the broker to answer", || UnixStream::connect(&socket).ok());
    let metadata = fs::metadata(&socket).expect("the socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let directory = fs::metadata(socket.parent().expect("a directory")).expect("the directory");
    assert_eq!(directory.permissions().mode() & 0o777, 0o755);

    let second = finish(&mut serve(&scene)).fails(1);
    assert!(second.contains(&socket.display().to_string()), "{second}");
    UnixStream::connect(&socket).expect("the first one is unharmed");

    assert!(broker.terminate().success());
    assert!(!socket.exists(), "an orderly exit removes the socket");
}

#[test]
fn a_dead_brokers_path_is_replaced() {
    let (scene, mut broker) = Scene::with_broker();
    broker.kill();
    assert!(scene.socket().exists(), "killed: nobody removed it");
    let _next = scene.broker();
    scene.wire().call("ping", &json!([]));
}

#[test]
fn listeners_of_the_command_line_are_bound_from_the_start() {
    let scene = Scene::new();
    let address = scene.address();
    let mut broker =
        Process::start(scene.bindonce("serve").arg("--listen").arg(format!("web={address}")));
    scene.wait_broker(&mut broker);
    assert_eq!(listening(address).len(), 1);
    let listed = scene.wire().call("list", &json!([]));
    assert_eq!(listed["listeners"][0]["name"], "web");
    broker.signal(Signal::SIGTERM);
    assert!(broker.wait_exit().success());
    assert!(listening(address).is_empty());
}

#[test]
fn release_is_refused_while_another_uses_the_listener() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let mut user = scene.wire();
    user.bind(&[&format!("web={address}")]);
    let error = scene.wire().error("release", &json!(["web"]));
    assert_eq!(error["code"], -32007, "{error}");
    let pid = std::process::id().to_string();
    assert!(error["message"].as_str().expect("text").contains(&pid), "{error}");
    assert_eq!(scene.wire().error("release", &json!(["nobody"]))["code"], -32006);
    assert_eq!(listening(address).len(), 1);
    user.call("release", &json!(["web"]));
    assert!(listening(address).is_empty());
}

#[test]
fn a_tentative_listener_goes_with_its_last_lease() {
    let (scene, _broker) = Scene::with_broker();
    let (address, kept) = (scene.address(), scene.address());
    let mut wire = scene.wire();
    wire.call(
        "bind",
        &json!([
            {"listen": address.to_string(), "tentative": true},
            {"listen": kept.to_string(), "tentative": true},
        ]),
    );
    wire.take(2);
    assert_eq!(listening(address).len(), 1);
    scene.wire().bind(&[&kept.to_string()]);
    drop(wire);
    crate::harness::eventually("the tentative listener to be closed", || {
        listening(address).is_empty().then_some(())
    });
    assert_eq!(listening(kept).len(), 1, "confirmed by a plain claim");
}

#[test]
fn a_stranger_is_denied() {
    if !nix::unistd::geteuid().is_root() {
        skip("only root can become another user");
        return;
    }
    let (scene, _broker) = Scene::with_broker();
    // The file mode keeps other users out; with the mode opened up, peer credentials still do.
    fs::set_permissions(scene.socket(), fs::Permissions::from_mode(0o666)).expect("mode");
    let ask = r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":[{"listen":"127.0.0.1:0"}]}"#;
    let program = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                   s.sendall(sys.argv[2].encode()); print(s.recv(65536).decode())";
    let mut command = scene.command("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        program,
    ]);
    let reply = finish(command.arg(scene.socket()).arg(ask)).ok();
    assert!(reply.contains("-32002"), "{reply}");
    let out = finish(Command::new("ss").args(["-Hltn"])).ok();
    assert!(!scene.is_isolated() || out.is_empty(), "a stranger got a listener: {out}");
}

#[test]
fn commands_without_a_broker_say_what_to_do() {
    let scene = Scene::new();
    for verb in ["list", "status"] {
        let said = scene.run(verb, &[]).fails(1);
        assert!(said.contains(&scene.socket().display().to_string()), "{said}");
        assert!(said.contains("serve"), "no hint how to start one: {said}");
    }
}
