//! How connections are served: slow peers, what peers leave behind, and peers without rights.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use serde_json::{Value, json};

use crate::support::{Client, Scene, assert_descriptors};

#[test]
fn slow_peers_delay_nobody_and_are_cut_off() {
    let scene = Scene::new();
    let mut config = scene.config();
    let request_time = Duration::from_secs(2);
    config.limits.clients.request_time = request_time;
    let broker = scene.start(config);
    let before = broker.descriptors(0);

    // One client asks for much and reads nothing.
    let mut deaf = broker.client();
    let many: Vec<String> = (0..200).map(|n| format!("n{n}=127.0.0.1:0")).collect();
    let many: Vec<Value> =
        many.iter().map(|text| json!({"listen": text, "tentative": true})).collect();
    let request = json!({"id": 1, "method": "bind", "params": many}).to_string();
    for _ in 0..40 {
        // The broker stops reading when its replies are not read.
        deaf.stream.set_write_timeout(Some(Duration::from_millis(20))).expect("timeout");
        if deaf.stream.write_all(request.as_bytes()).is_err() {
            break;
        }
    }
    // Another begins a request and does not finish it.
    let begun = Instant::now();
    let mut unfinished = broker.client();
    unfinished.send(br#"{"method":"pi"#);
    // Other clients are served before that one is cut off.
    for _ in 0..20 {
        assert_eq!(broker.client().call("ping", &json!([]))["result"]["pong"], true);
    }
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let early = rustix::net::recv(&unfinished.stream, &mut [0u8][..], flags);
    // On a busy machine its time may be over by now.
    if begun.elapsed() < request_time {
        assert_eq!(early.expect_err("no reply yet"), rustix::io::Errno::AGAIN);
    }

    let reply = unfinished.reply().expect("a reply");
    assert_eq!((&reply["error"]["code"], &reply["id"]), (&json!(-32009), &Value::Null));
    assert!(unfinished.reply().is_none(), "closed");
    drop(unfinished);
    // The deaf client is cut off, and its tentative listeners are closed again.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut watcher = broker.client();
    while watcher.call("list", &json!([]))["result"]["listeners"] != json!([]) {
        assert!(Instant::now() < deadline, "not cut off");
        std::thread::yield_now();
    }
    drop((deaf, watcher));
    assert_descriptors(before);
}

#[test]
fn requests_split_at_any_byte_and_merged_are_answered_in_order() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let text = r#"{"id":1,"method":"ping"} {"id":2,"method":"lost","params":["}"]}{"id":3}
        {"id":x}
        {"id":4,"method":"ping","params":[]}"#;
    let expected = [
        (json!(1), Value::Null),
        (json!(2), json!(-32601)),
        (json!(3), json!(-32600)),
        (Value::Null, json!(-32700)),
        (json!(4), Value::Null),
    ];
    let check = |client: &mut Client| {
        for (id, code) in &expected {
            let reply = client.reply().expect("reply");
            assert_eq!((&reply["id"], &reply["error"]["code"]), (id, code), "{reply}");
        }
    };
    let mut client = broker.client();
    client.send(text.as_bytes());
    check(&mut client);
    for byte in text.as_bytes() {
        client.send(&[*byte]);
    }
    check(&mut client);
    client.send(&[b' '; 100]);
    client.send(b"{\"x\":\"");
    client.send(&vec![b'y'; (1 << 20) + 10]);
    assert_eq!(client.reply().expect("reply")["error"]["code"], -32001);
    client.send(b"\"}");
    client.send(text.as_bytes());
    check(&mut client);
    client.send(b"{]{\"id\":5,\"method\":\"ping\"}");
    assert_eq!(client.reply().expect("reply")["error"]["code"], -32700);
    assert!(client.reply().is_none(), "the connection ends");
}

#[test]
fn nothing_leaks_over_many_connections() {
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let mut watcher = broker.client();
    drop(watcher.bind(&["web=127.0.0.1:0"]));
    let before = broker.descriptors(1);
    for round in 0..200 {
        let mut client = broker.client();
        match round % 5 {
            0 => drop(client.bind(&["web", "x=127.0.0.1:0"])),
            1 => drop(client.refused("bind", &json!([{"listen": "web"}, {"listen": "nobody"}]))),
            // Leaves without reading the descriptors.
            2 => client.send(br#"{"method":"bind","params":[{"listen":"web"}]}"#),
            // Sends descriptors that no request asks for.
            3 => client.bring(b"{\"id\":1,\"method\":\"ping\"}{", 3),
            _ => client.send(b"{"),
        }
    }
    // All clients have gone once only the watcher uses either listener.
    let deadline = Instant::now() + Duration::from_secs(10);
    while watcher.call("release", &json!(["x"]))["result"].is_null() {
        assert!(Instant::now() < deadline, "still in use");
    }
    assert_descriptors(before);
}

/// The other half of the next test, in a process of another user.
#[test]
fn as_a_stranger() {
    let Some(socket) = std::env::var_os("BINDONCE_TEST_SOCKET") else { return };
    let mut client = Client::connect(std::path::Path::new(&socket));
    for (method, params) in [
        ("ping", json!([])),
        ("list", json!([])),
        ("status", json!([])),
        ("bind", json!([{"listen": "127.0.0.1:0"}])),
        ("bind", json!([{"name": "web"}])),
        ("release", json!(["web"])),
        ("join", json!([{"service": "x", "generation": 1, "state": "serving"}])),
    ] {
        let (code, message, data) = client.refused(method, &params);
        assert_eq!(code, -32002, "{method}: {message}");
        assert!(message.contains("uid 65534") && data["hint"].is_string(), "{message}");
    }
    assert!(client.descriptors.is_empty());
}

#[test]
fn a_stranger_may_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can become somebody else.
    }
    let scene = Scene::new();
    let broker = scene.start(scene.config());
    let (_, _fds) = broker.client().bind(&["web=127.0.0.1:0"]);
    // Let the stranger past the file modes, to test what the broker itself answers.
    fs::set_permissions(&broker.socket, fs::Permissions::from_mode(0o666)).expect("chmod");
    fs::set_permissions(&scene.directory, fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = scene.path("stranger");
    fs::copy(std::env::current_exe().expect("own path"), &copy).expect("copy");
    let child = Command::new(copy)
        .args(["--exact", "clients::as_a_stranger"])
        .env("BINDONCE_TEST_SOCKET", &broker.socket)
        .uid(65534)
        .gid(65534)
        .output()
        .expect("start");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let listed = broker.client().call("list", &json!([]));
    assert_eq!(listed["result"]["listeners"].as_array().map(Vec::len), Some(1));
}
