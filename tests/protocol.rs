//! The wire protocol at the level of bytes: split anywhere, merged, pipelined,
//! hostile; and the clients in other languages.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Scene, Wire, allow, finish, listening, root, skip};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

fn code(reply: &Value) -> i64 {
    reply["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {reply}"))
}

fn assert_pong(reply: &Value, id: impl Into<Value>) {
    assert_eq!(reply["result"]["pong"], true, "{reply}");
    assert_eq!(reply["id"], id.into(), "{reply}");
}

#[test]
fn a_request_may_be_split_at_every_byte() {
    let (scene, _broker) = Scene::with_broker();
    let request = json!({"jsonrpc": "2.0", "id": "ü\"}", "method": "bind",
                         "params": [{"listen": format!("a=127.0.0.1:{}", scene.address().port())}]});
    let request = request.to_string();
    for split in 1..request.len() {
        let mut wire = scene.wire();
        wire.send(&request.as_bytes()[..split]);
        // A reply to an earlier part of the stream would arrive first: there must be none.
        wire.send(&request.as_bytes()[split..]);
        let reply = wire.reply();
        assert_eq!(reply["id"], "ü\"}", "split at {split}: {reply}");
        assert_eq!(reply["result"]["listeners"][0]["name"], "a", "split at {split}: {reply}");
        wire.take(1);
    }
}

#[test]
fn requests_in_one_segment_are_answered_in_order() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    for separator in ["", "\n", " \r\n\t "] {
        let ping = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
        let requests: Vec<_> = (0..100).map(ping).collect();
        wire.send(requests.join(separator).as_bytes());
        for id in 0..100 {
            assert_pong(&wire.reply(), id);
        }
    }
}

#[test]
fn the_answer_comes_after_the_writing_half_is_closed() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    wire.send(PING.as_bytes());
    wire.close_write();
    assert_pong(&wire.reply(), 1);
    assert!(wire.message().is_none(), "then the broker closes");
}

#[test]
fn errors_have_their_codes_and_harm_no_other_request() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    let cases: [(&str, i64); 11] = [
        (r#"{"jsonrpc":"2.0","id":1,"method":"fly"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"store","params":[]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":{}}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":[{"listen":7}]}"#, -32602),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":[{"listen":"127.0.0.1:99999"}]}"#,
            -32602,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"bind","params":[{"address":"nowhere","port":1}]}"#,
            -32602,
        ),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":nonsense}\n", -32700),
        ("{\"jsonrpc\" \"2.0\"}\n", -32700),
    ];
    for (text, expected) in cases {
        wire.send(text.as_bytes());
        let reply = wire.reply();
        assert_eq!(code(&reply), expected, "{text}: {reply}");
        assert!(reply["error"]["message"].is_string(), "{reply}");
        assert!(reply["error"]["data"]["hint"].is_string(), "{text} has no hint: {reply}");
        wire.send(PING.as_bytes());
        assert_pong(&wire.reply(), 1);
    }
    assert!(wire.is_quiet(), "each bad request gets exactly one answer");
}

#[test]
fn a_request_without_an_id_is_answered_with_null() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    wire.send(br#"{"jsonrpc":"2.0","method":"ping"}"#);
    assert_pong(&wire.reply(), Value::Null);
}

#[test]
fn more_than_a_mebibyte_is_refused_once_and_the_next_request_is_answered() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    let huge = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":["{}"]}}"#,
        "x".repeat(3 << 20)
    );
    wire.send(huge.as_bytes());
    wire.send(PING.as_bytes());
    assert_eq!(code(&wire.reply()), -32001);
    assert_pong(&wire.reply(), 1);
    assert!(wire.is_quiet());
}

#[test]
fn what_cannot_be_cut_into_requests_is_answered_once_and_ends_the_connection() {
    let (scene, _broker) = Scene::with_broker();
    let deep = format!("{{\"id\":1,\"params\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    for bad in ["]]]", "GET / HTTP/1.1", "{\"id\":[1}", "{\"id\":\"cut off", &deep] {
        let mut wire = scene.wire();
        wire.send(format!("{PING}{bad}\n{PING}").as_bytes());
        assert_pong(&wire.reply(), 1);
        let reply = wire.reply();
        assert_eq!(code(&reply), -32700, "{bad}: {reply}");
        assert!(reply["error"]["data"]["hint"].is_string(), "{bad}: {reply}");
        assert!(wire.message().is_none(), "then the broker closes: {bad}");
    }
    scene.wire().call("ping", &json!([]));
}

#[test]
fn arbitrary_bytes_never_stop_the_broker() {
    let (scene, mut broker) = Scene::with_broker();
    // A generator with a fixed seed, so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let mut bytes = PING.repeat(3).into_bytes();
        for _ in 0..=(random() % 8) {
            let at = usize::try_from(random()).unwrap() % bytes.len();
            match random() % 3 {
                0 => bytes[at] = (random() & 0xff) as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, (random() & 0xff) as u8),
            }
        }
        let mut wire = scene.wire();
        wire.send(&bytes);
        wire.close_write();
        let mut replies = Vec::new();
        while let Some((bytes, descriptors)) = wire.message() {
            assert_eq!(descriptors, 0);
            replies.extend(bytes);
        }
        for line in replies.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let reply: Value =
                serde_json::from_slice(line).unwrap_or_else(|error| panic!("{round}: {error}"));
            assert!(
                reply["result"].is_object() || reply["error"]["code"].is_i64(),
                "{round}: {reply}"
            );
        }
    }
    assert!(broker.is_running());
    scene.wire().call("ping", &json!([]));
    // A panic ends only one connection.
    assert!(!broker.story().contains("panicked"), "{}", broker.story());
}

#[test]
fn one_slow_client_delays_nobody() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let mut slow: Vec<_> = (0..50).map(|_| scene.wire()).collect();
    for wire in &mut slow {
        wire.send(&PING.as_bytes()[..10]);
    }
    // A client that asks and never reads its descriptors.
    let mut deaf = scene.wire();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"listen": address.to_string()}]});
    deaf.send(request.to_string().repeat(500).as_bytes());
    for _ in 0..100 {
        let begun = Instant::now();
        scene.wire().call("ping", &json!([]));
        let (took, most) = (begun.elapsed(), allow(Duration::from_millis(500)));
        assert!(took < most, "a ping took {took:?}, at most {most:?}");
    }
}

#[test]
fn the_first_message_carries_all_text_and_253_descriptors_at_most() {
    let (scene, _broker) = Scene::with_broker();
    let mut wire = scene.wire();
    let port = scene.address().port();
    let count = 600;
    let range = format!("r=127.0.0.1:{port}-{}", usize::from(port) + count - 1);
    let request =
        json!({"jsonrpc": "2.0", "id": 1, "method": "bind", "params": [{"listen": range}]});
    wire.send(request.to_string().as_bytes());
    let (mut text, first) = wire.message().expect("a reply");
    assert_eq!(first, 253);
    let mut descriptors = first;
    while descriptors < count {
        let (bytes, more) = wire.message().expect("more");
        assert!(more <= 253);
        if text.ends_with(b"\n") {
            assert_eq!(bytes, b" ", "one space for each further message");
        }
        text.extend(bytes);
        descriptors += more;
    }
    assert_eq!(descriptors, count);
    let reply: Value = serde_json::from_slice(&text).expect("JSON and spaces");
    let entries = reply["result"]["listeners"].as_array().expect("listeners");
    assert_eq!(entries.len(), count);
    // In order: each descriptor is the socket that its entry names.
    for (entry, descriptor) in entries.iter().zip(wire.take(count)) {
        let inode = nix::sys::stat::fstat(&descriptor).expect("fstat").st_ino;
        assert_eq!(entry["inode"], inode, "{entry}");
    }
}

#[test]
fn multibinders_request_gets_text_and_descriptor_in_one_message() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let ask = |wire: &mut Wire, backlog: u32| {
        let params = json!([{"address": "127.0.0.1", "port": address.port(), "backlog": backlog}]);
        let request = json!({"jsonrpc": "2.0", "method": "bind", "params": params});
        wire.send(request.to_string().as_bytes());
        let (text, descriptors) = wire.message().expect("a reply");
        assert_eq!(descriptors, 1);
        let reply: Value = serde_json::from_slice(&text).expect("one whole line");
        assert!(reply.get("error").is_none() && text.ends_with(b"\n"), "{reply}");
        let descriptor = wire.take(1).remove(0);
        nix::sys::stat::fstat(&descriptor).expect("fstat").st_ino
    };
    let first = ask(&mut scene.wire(), 100);
    let mut wire = scene.wire();
    assert_eq!(
        (ask(&mut wire, 100), ask(&mut wire, 10240)),
        (first, first),
        "a repeated bind gives the same socket, whatever its backlog"
    );
    assert_eq!(listening(address)[0].limit, 100, "that of the first");
    // The form with `change` may change it; the plain form is a claim that must hold.
    let params =
        json!([{"address": "127.0.0.1", "port": address.port(), "backlog": 50, "change": true}]);
    wire.call("bind", &params);
    assert_eq!(listening(address)[0].limit, 50);
    let other = scene.wire().error("bind", &json!([{"listen": format!("{address},backlog=60")}]));
    assert_eq!(other["code"], -32003, "{other}");
}

/// Runs a client of tests/clients, in another language, against a broker.
fn foreign(interpreter: &str, places: &[&str], script: &str) {
    let program = places.iter().find(|place| Path::new(place).exists());
    let Some(program) = program else {
        return skip(&format!("no {interpreter} is installed"));
    };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let mut command = scene.command(program);
    command.env("MULTIBINDER_SOCK", scene.socket()).env("BINDONCE_SOCKET", scene.socket());
    command.arg(root().join("tests/clients").join(script));
    command.arg(scene.socket()).arg(address.ip().to_string()).arg(address.port().to_string());
    finish(&mut command).ok();
}

#[test]
fn the_python_client_of_the_documentation_works() {
    foreign("python3", &["/usr/bin/python3", "/usr/local/bin/python3"], "client.py");
}

#[test]
fn multibinders_ruby_client_works_unchanged() {
    foreign("ruby", &["/usr/bin/ruby", "/usr/local/bin/ruby"], "multibinder_client.rb");
}

#[test]
fn a_python_client_that_behaves_as_multibinders_works() {
    foreign("python3", &["/usr/bin/python3", "/usr/local/bin/python3"], "multibinder_client.py");
}
