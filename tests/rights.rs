//! Rights are in the configuration, are checked at each request, and change with SIGHUP.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Scene, Wire, eventually, finish};
use crate::strangers::{brokers, serve};

#[test]
fn with_rules_only_what_they_allow_is_allowed() {
    for user in brokers() {
        let scene = Scene::new();
        let (mine, other) = (scene.address(), scene.address());
        let uid = nix::unistd::getuid();
        let rule = |allow: &str, port: u16| {
            format!(
                "[[rule]]\nuid = {uid}\nallow = [{allow}]\naddresses = ['127.0.0.0/8:{port}']\n"
            )
        };
        let mut broker = serve(&scene, &rule("'bind', 'list'", mine.port()), user);
        let mut wire = scene.wire();
        wire.bind(&[&format!("web={mine}"), "web"]);
        let denied = wire.error("bind", &json!([{"listen": other.to_string()}]));
        assert_eq!(
            (&denied["code"], &denied["data"]["address"]),
            (&json!(-32002), &json!(other.to_string()))
        );
        let line = broker.wait_line("needed=");
        assert!(line.contains("allow") && line.contains(&other.to_string()), "{line}");
        // Part of a range is not enough, and each verb is a separate right.
        let range = format!("127.0.0.1:{}-{}", mine.port(), mine.port() + 9);
        assert_eq!(wire.error("bind", &json!([{"listen": range}]))["code"], -32002);
        assert_eq!(wire.error("release", &json!(["web"]))["code"], -32002);
        assert_eq!(wire.error("upgrade", &json!([]))["code"], -32002);
        assert_eq!(wire.call("list", &json!([]))["listeners"][0]["name"], "web");

        // Checked at each request, also of an open connection.
        scene.write("broker.toml", "[[rule]]\nuid = 1\n");
        broker.signal(Signal::SIGHUP);
        broker.wait_line("stay as they were");
        assert!(wire.request("list", &json!([]))["result"].is_object());
        scene.write("broker.toml", &rule("'use', 'release'", mine.port()));
        broker.signal(Signal::SIGHUP);
        broker.wait_line("read again");
        assert_eq!(wire.error("list", &json!([]))["code"], -32002);
        wire.bind(&["web", &mine.to_string()]);
        wire.call("release", &json!(["web"]));
        let denied = wire.error("bind", &json!([{"listen": mine.to_string()}]));
        assert_eq!(denied["code"], -32002, "it is not held any more");

        let check = |name: &str| {
            finish(scene.command(crate::harness::bindonce()).args(["check-config", name]))
        };
        assert!(check("broker.toml").ok().contains("1 rule"));
        scene.write("bad.toml", "[[rule]]\nuid = 1\nallow = ['all']\n");
        let story = check("bad.toml").fails(1);
        assert!(story.contains("rule[0]") && story.contains("bad.toml"), "{story}");
    }
}

#[test]
fn limits_are_errors_to_those_who_reach_them() {
    for user in brokers() {
        let scene = Scene::new();
        let limits =
            "[limits]\nconnections = 3\nlisteners = 2\nrequest_bytes = 200\nidle_time = '3s'\n";
        let _broker = serve(&scene, limits, user);
        let mut holder = scene.wire();
        holder.bind(&["a=127.0.0.1:0", "b=127.0.0.1:0"]);
        let error = holder.error("bind", &json!([{"listen": "127.0.0.1:0"}]));
        assert_eq!(error["code"], -32008, "{error}");
        assert!(
            error["message"].as_str().is_some_and(|text| text.contains("`listeners`")),
            "{error}"
        );
        let mut long = scene.wire();
        long.send(
            format!("{{\"method\":\"ping\",\"params\":[\"{}\"]}}", "x".repeat(300)).as_bytes(),
        );
        assert_eq!(long.reply()["error"]["code"], -32001);
        let refused = eventually("the limit", || {
            // Again at each attempt: the broker may have closed the earlier ones as idle.
            let _others = [(); 2].map(|()| Wire::try_connect(&scene.socket()));
            let mut fourth = Wire::try_connect(&scene.socket())?;
            let (text, _) = fourth.message()?;
            Some(String::from_utf8(text).expect("text"))
        });
        assert!(refused.contains("`connections`"), "{refused}");
        // Connections that use nothing are closed when idle; the holder stays.
        assert!(long.message().is_none());
        holder.call("ping", &json!([]));
    }
}

fn store(wire: &mut Wire, listen: &str, fd: &OwnedFd) -> Value {
    let request =
        json!({"jsonrpc": "2.0", "id": 9, "method": "store", "params": [{"listen": listen}]});
    wire.send_with(request.to_string().as_bytes(), &[fd.try_clone().expect("a copy")]);
    wire.reply()
}

/// The socket's real address decides who may store it, not the declared one.
#[test]
fn store_is_judged_by_the_socket_itself() {
    for user in brokers() {
        let scene = Scene::new();
        let (secret, mine, both) = (scene.address(), scene.address(), scene.address().port());
        let uid = nix::unistd::geteuid();
        let config = format!(
            "listen = ['secret={secret}']\n[limits]\nlisteners_per_user = 5\n\
                 [[rule]]\nuid = {uid}\nallow = ['use', 'list']\n\
                 [[rule]]\nuid = {uid}\nallow = ['store']\naddresses = ['127.0.0.1:{}', '127.0.0.1:0', '127.0.0.1:9000-9999', '0.0.0.0/0:7000', '[::]:{both}']\n",
            mine.port()
        );
        let mut broker = serve(&scene, &config, user);
        let mut wire = scene.wire();
        let (_, fds) = wire.bind(&["secret"]);
        let refused = store(&mut scene.wire(), &mine.to_string(), &fds[0]);
        assert_eq!(refused["error"]["code"], -32003, "{refused}");
        let refused = store(&mut scene.wire(), &secret.to_string(), &fds[0]);
        assert_eq!(refused["error"]["code"], -32002, "{refused}");
        // Both addresses are allowed, but the socket must have the declared one.
        let socket = TcpListener::bind("127.0.0.1:9100").expect("a socket");
        let refused = store(&mut scene.wire(), "127.0.0.1:9101", &OwnedFd::from(socket));
        assert_eq!(refused["error"]["code"], -32003, "{refused}");
        // Port 0 means a port that the kernel has chosen.
        let store_as_any = |port| {
            let socket = TcpListener::bind(("127.0.0.1", port)).expect("a socket");
            store(&mut scene.wire(), "127.0.0.1:0", &OwnedFd::from(socket))
        };
        if scene.is_isolated() {
            assert_eq!(store_as_any(7001)["error"]["code"], -32002);
        }
        assert!(store_as_any(0)["result"].is_object());
        // The rule is for IPv6. The socket has the declared address, but also takes IPv4.
        if let Ok(socket) = TcpListener::bind(("::", both)) {
            let said = format!("[::]:{both},v6only");
            let refused = store(&mut scene.wire(), &said, &OwnedFd::from(socket));
            assert_eq!(refused["error"]["code"], -32002, "{refused}");
        }

        let mut holder = scene.wire();
        let mut kept = Vec::new();
        let mut told = Vec::new();
        for port in 9001..9006 {
            let socket = TcpListener::bind(("127.0.0.1", port)).expect("a socket");
            let socket = OwnedFd::from(socket);
            told.push(store(&mut holder, &format!("127.0.0.1:{port}"), &socket));
            kept.push(socket);
        }
        let refused = told.iter().filter(|reply| reply["error"]["code"] == -32008);
        // `secret` belongs to the broker's user.
        let more = if user.is_none() { 3 } else { 4 };
        assert_eq!(
            refused.count(),
            5 - more,
            "one on any port and {more} more are allowed: {told:?}"
        );
        // A socket that the broker already holds does not count again.
        let again = store(&mut scene.wire(), "127.0.0.1:9001", &kept[0]);
        assert!(again["result"].is_object(), "{again}");

        if scene.is_isolated() {
            let elsewhere = std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own");
                OwnedFd::from(TcpListener::bind("0.0.0.0:7000").expect("a socket"))
            });
            let socket = elsewhere.join().expect("a socket");
            let refused = store(&mut scene.wire(), "0.0.0.0:7000", &socket);
            let message = refused["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("another network namespace"), "{refused}");
        }
        broker.terminate();
    }
}
