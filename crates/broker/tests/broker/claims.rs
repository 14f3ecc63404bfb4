//! What the broker binds, refuses, hands out and gives back.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bindonce_sys::queue;
use serde_json::{Value, json};

use crate::support::{Scene, assert_descriptors};

fn inode(fd: impl std::os::fd::AsFd) -> u64 {
    let file = fs::File::from(fd.as_fd().try_clone_to_owned().expect("dup"));
    file.metadata().expect("stat").ino()
}

#[test]
fn a_second_claim_receives_the_same_socket() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let (first, one) = broker.client().bind(&["web=127.0.0.1:0,backlog=9"]);
    let (again, two) = broker.client().bind(&["web=127.0.0.1:0", "web"]);
    assert_eq!((one.len(), two.len()), (1, 2));
    assert_eq!(first[0]["created"], true);
    assert_eq!(again[0]["created"], false);
    assert_eq!(inode(&one[0]), inode(&two[0]));
    assert_eq!(first[0]["inode"], inode(&two[1]));
    assert_eq!(queue::accept_queue(two[0].as_fd()).expect("queue").limit, 9);

    // The listener accepts, and a client that binds beside it fails.
    let bound = first[0]["bound"].as_str().expect("bound").to_owned();
    let listener = TcpListener::from(one.into_iter().next().expect("one"));
    let mut client = TcpStream::connect(&bound).expect("connect");
    client.write_all(b"x").expect("send");
    assert!(wait_for_connection(&listener));
    let (mut accepted, _) = listener.accept().expect("accept");
    accepted.set_nonblocking(false).expect("blocking");
    accepted.read_exact(&mut [0]).expect("receive");
    assert!(TcpListener::bind(&bound).is_err());
}

#[test]
fn what_a_client_used_that_has_just_ended_can_be_released() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    // Enough listeners that their leases end in several turns.
    let names: Vec<String> =
        (0..1000).map(|number| format!("abns@bindonce-{}-{number}", std::process::id())).collect();
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    for _ in 0..10 {
        let mut holder = broker.client();
        let mut other = broker.client();
        assert_eq!(holder.bind(&asked).1.len(), names.len());
        drop(holder);
        let reply = other.call("release", &json!([names[names.len() - 1]]));
        assert_eq!(reply["result"]["released"].as_array().map(Vec::len), Some(1), "{reply}");
    }
}

/// Waits for a connection on a non-blocking listener.
fn wait_for_connection(listener: &TcpListener) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if queue::accept_queue(listener.as_fd()).expect("queue").len > 0 {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_changing_claim_changes_the_socket_in_place_or_nothing() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut client = broker.client();
    let path = scene.path("a.sock");
    let unix = |mode: &str| format!("unix@{},mode={mode}", path.display());
    let (listeners, fds) = client.bind(&["web=127.0.0.1:0,backlog=9", &unix("0600")]);
    let mode = || path.metadata().expect("stat").permissions().mode() & 0o777;
    let limit = || queue::accept_queue(fds[0].as_fd()).expect("queue").limit;

    let web = "web=127.0.0.1:0,backlog=17";
    let (code, message, data) = client.refused("bind", &json!([{ "listen": web }]));
    assert_eq!((code, &data["address"]), (-32003, &json!("127.0.0.1:0")), "{message}");

    let change =
        |unix: &str| json!([{"listen": web, "change": true}, {"listen": unix, "change": true}]);
    let bad = format!("{},user=no-such-user", unix("0660"));
    let (code, message, data) = client.refused("bind", &change(&bad));
    assert_eq!((code, &data["address"]), (-32005, &json!(format!("unix@{}", path.display()))));
    assert!(message.contains("no-such-user") && data["hint"].is_string(), "{message}");
    assert_eq!((limit(), mode()), (9, 0o600), "all or nothing");

    let reply = client.call("bind", &change(&unix("0660")));
    let inodes = reply["result"]["listeners"].as_array().expect("listeners").clone();
    assert_eq!(inodes[0]["inode"], listeners[0]["inode"], "{reply}");
    assert_eq!((limit(), mode()), (17, 0o660));
    let list = client.call("list", &json!([]));
    let options = |at: usize| list["result"]["listeners"][at]["options"].clone();
    assert_eq!(options(1), json!({"backlog": 17}), "{list}");
    assert_eq!(options(0), json!({"mode": "0660"}), "{list}");
    assert!(list["result"]["listeners"][1]["changed"].is_null(), "{list}");
}

#[test]
fn hundreds_of_listeners_come_in_batches_and_in_order() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let before = broker.descriptors(0);
    let mut client = broker.client();
    let names: Vec<String> = (0..600).map(|n| format!("n{n}=127.0.0.1:0")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (listeners, descriptors) = client.bind(&names);
    assert_eq!(client.batches, [253, 253, 94]);
    for (index, (listener, fd)) in listeners.iter().zip(&descriptors).enumerate() {
        assert_eq!(listener["name"], format!("n{index}"));
        assert_eq!(listener["inode"], inode(fd));
    }
    drop(descriptors);
    let names: Vec<String> = (0..600).map(|n| format!("n{n}")).collect();
    let reply = client.call("release", &json!(names));
    assert_eq!(reply["result"]["released"], json!(names));
    drop(client);
    assert_descriptors(before);
}

#[test]
fn a_path_is_written_as_json_wants_it() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let path = scene.path(r#"a "quoted" \back.sock"#).display().to_string();
    let (listeners, _fds) = broker.client().bind(&[&path, "abns@\"\\"]);
    let texts = [format!("unix@{path}"), "abns@\"\\".to_owned()];
    for (listener, text) in listeners.iter().zip(&texts) {
        let same = ["name", "address", "bound"].iter().all(|member| listener[member] == **text);
        assert!(same, "{listener}");
    }
    assert_eq!((listeners.len(), &listeners[0]["created"]), (2, &json!(true)));
}

#[test]
fn multibinders_request_gets_its_socket() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut client = broker.client();
    // As multibinder's client sends it: no id, no line end.
    client
        .send(br#"{"jsonrpc":"2.0","method":"bind","params":[{"address":"localhost","port":0}]}"#);
    let reply = client.reply().expect("reply");
    assert_eq!(reply["id"], Value::Null);
    assert_eq!(client.descriptors.len(), 1, "with the reply's first byte");
    for bad in ["256.0.0.1", "no such host"] {
        let (code, message, data) = client.refused("bind", &json!([{"address": bad, "port": 1}]));
        assert_eq!(code, -32602, "{message}");
        assert!(message.contains(bad) && data["hint"].is_string());
    }
}

#[test]
fn a_claim_is_all_or_nothing_and_names_who_is_in_the_way() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let other = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = other.local_addr().expect("address");
    let before = broker.descriptors(0);
    let mut client = broker.client();
    let path = scene.path("a.sock");
    let wanted =
        json!([{"listen": "127.0.0.1:0"}, {"listen": path}, {"listen": taken.to_string()}]);
    // The error names the holder if it was found in time: not always, on a busy machine.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (code, message, data) = client.refused("bind", &wanted);
        assert_eq!((code, &data["errno"]), (-32005, &json!(98)), "{message}");
        assert_eq!(data["address"], taken.to_string());
        assert!(data["hint"].is_string());
        if message.contains(&format!("pid {}", std::process::id())) {
            break;
        }
        assert!(Instant::now() < deadline, "the holder is not named: {message}");
    }
    assert_eq!(client.call("list", &json!([]))["result"]["listeners"], json!([]));
    assert!(!path.exists());
    drop(client);
    assert_descriptors(before);
}

/// The path leads to a socket bound under another name, which replaced the broker's own socket at
/// this path.
#[test]
fn who_has_replaced_a_unix_path_is_named_and_not_who_had_it() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut client = broker.client();
    let path = scene.path("app.sock");
    let listen = format!("app=unix@{}", path.display());
    let _held = client.bind(&[&listen]);
    let other = scene.path("other.sock");
    let _replaced = UnixListener::bind(&other).expect("bind");
    std::fs::rename(&other, &path).expect("rename");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (code, message, data) = client.refused("bind", &json!([{ "listen": listen }]));
        assert_eq!(code, -32005, "{message}");
        if message.contains("held by") {
            assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
            assert_eq!(message.matches("pid ").count(), 1, "{message}");
            assert!(!data["hint"].as_str().expect("a hint").contains("another broker"), "{data}");
            break;
        }
        assert!(Instant::now() < deadline, "the holder is not named: {message}");
    }
}

#[test]
fn errors_carry_their_codes_and_hints() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut client = broker.client();
    let (listeners, _fds) = client.bind(&["web=127.0.0.1:0,backlog=7"]);
    let bound = listeners[0]["bound"].as_str().expect("bound").to_owned();
    let port = bound.rsplit(':').next().expect("port");
    let listen = |text: &str| json!([{ "listen": text }]);
    for (method, params, expected) in [
        ("bind", listen("web=127.0.0.1:0,backlog=8"), -32003),
        ("bind", listen("web=127.0.0.2:0"), -32003),
        ("bind", listen(&format!("0.0.0.0:{port}")), -32004),
        ("bind", listen("nobody"), -32006),
        ("bind", listen("localhost:80"), -32602),
        ("bind", listen(":1-65535,"), -32602),
        (
            "bind",
            json!([{"listen": ":1-65535"}, {"listen": "udp@:1-65535"}, {"listen": "[::]:1-65535"}]),
            -32008,
        ),
        ("bind", json!([]), -32602),
        ("release", json!(["nobody"]), -32006),
        ("nothing", json!([]), -32601),
    ] {
        let (code, message, data) = client.refused(method, &params);
        assert_eq!(code, expected, "{message}");
        assert!(code == -32602 || data["hint"].is_string(), "{message}");
    }
    // Another connection uses the listener.
    let mut other = broker.client();
    let label = json!([{"service": "edge", "generation": 7, "pid": 99, "state": "serving"}]);
    let _other = other.bind(&["web"]);
    assert_eq!(other.call("join", &label)["result"]["joined"], true);
    let (code, message, data) = client.refused("release", &json!(["web"]));
    assert_eq!((code, &data["pids"]), (-32007, &json!([99])), "{message}");
    let status = client.call("status", &json!([]));
    let generation = &status["result"]["services"][0]["generations"][0];
    assert_eq!((&generation["generation"], &generation["listeners"]), (&json!(7), &json!(["web"])));
    let listener = &status["result"]["listeners"][0];
    assert_eq!(listener["holders"].as_array().map(Vec::len), Some(2));
    assert_eq!((&listener["queue"], &listener["backlog"]), (&json!(0), &json!(7)));
    assert_eq!(listener["options"], json!({"backlog": 7}));
}

#[test]
fn a_holder_that_has_hung_up_does_not_stand_in_the_way() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut caller = broker.client();
    for _ in 0..300 {
        let mut holder = broker.client();
        holder.bind(&["web=127.0.0.1:0"]);
        drop(holder);
        let reply = caller.call("release", &json!(["web"]));
        assert_eq!(reply["result"]["released"], json!(["web"]), "{reply}");
    }
}

#[test]
fn tentative_listeners_end_with_their_client() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let before = broker.descriptors(0);
    let mut client = broker.client();
    let path = scene.path("t.sock");
    client.call("bind", &json!([{"listen": path, "tentative": true}]));
    assert!(path.exists());
    drop(client);
    assert_descriptors(before);
    assert!(!path.exists());
    let listed = broker.client().call("list", &json!([]));
    assert_eq!(listed["result"]["listeners"], json!([]));
}

#[test]
fn a_dead_path_is_replaced_and_a_live_one_is_not() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut client = broker.client();
    let (dead, live, file) = (scene.path("dead"), scene.path("live"), scene.path("file"));
    drop(UnixListener::bind(&dead).expect("bind"));
    let _live = UnixListener::bind(&live).expect("bind");
    fs::write(&file, "precious").expect("write");
    let (_, _fds) = client.bind(&[&format!("{},mode=0600", dead.display())]);
    assert_eq!(fs::metadata(&dead).expect("stat").permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&dead).expect("connect");
    for path in [&live, &file] {
        let (code, message, _) = client.refused("bind", &json!([{ "listen": path }]));
        assert_eq!(code, -32005, "{message}");
    }
    UnixStream::connect(&live).expect("still alive");
    assert_eq!(fs::read_to_string(&file).expect("read"), "precious");
    drop(client);
    broker.stop();
    assert!(!dead.exists(), "an orderly end removes the paths it made");
    assert!(live.exists());
}
