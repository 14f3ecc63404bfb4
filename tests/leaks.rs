//! Descriptor counts of the broker, the supervisor and its clients return to
//! where they were.

use crate::harness::{Haproxy, Scene, config, descriptors, eventually};

/// Waits until a process has this many descriptors again.
#[track_caller]
fn back_to(pid: u32, before: usize, whose: &str) {
    let what = format!("{whose} to have {before} descriptors again");
    eventually(&what, || (descriptors(pid) == before).then_some(()));
}

#[test]
fn the_brokers_connections_and_listeners() {
    let scene = Scene::new();
    let broker = scene.broker();
    scene.wire().call("ping", &serde_json::json!([]));
    let empty = eventually("the broker to be at rest", || {
        let count = descriptors(broker.pid());
        (count == descriptors(broker.pid())).then_some(count)
    });
    let address = scene.address();
    for round in 0..20 {
        let mut wire = scene.wire();
        wire.bind(&[
            &format!("web={address}"),
            &format!("other=127.0.0.1:{}", 20_000 + round),
        ]);
        // Ends in the middle of a request, with a reply unread, or in order.
        match round % 3 {
            0 => wire.send(b"{\"jsonrpc\":"),
            1 => wire.send(br#"{"jsonrpc":"2.0","id":1,"method":"list"}"#),
            _ => {}
        }
        drop(wire);
        scene.wire().call("release", &serde_json::json!(["other"]));
    }
    // A failed request binds and closes half of its listeners.
    let clash = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let clash = clash
        .local_addr()
        .map(|address| (address, clash))
        .expect("its address");
    for _ in 0..10 {
        let params = serde_json::json!([{"listen": "127.0.0.1:30000-30019"}, {"listen": clash.0.to_string()}]);
        scene.wire().error("bind", &params);
    }
    scene.run("release", &["web"]).ok();
    back_to(broker.pid(), empty, "the broker");
}

#[test]
fn broker_and_supervisor_through_good_and_bad_reloads() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let scene = Scene::new();
    let broker = scene.broker();
    let address = scene.address();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let settle = || {
        eventually("older generations to be gone", || {
            (scene.haproxies().len() == 1).then_some(())
        });
    };
    // The first reload may open what stays open, such as a second admin socket.
    haproxy.reload(&scene).ok();
    settle();
    let supervisor = haproxy.supervisor.pid();
    let before = eventually("descriptors to stand still", || {
        let look = || (descriptors(broker.pid()), descriptors(supervisor));
        let first = look();
        std::thread::sleep(std::time::Duration::from_millis(100));
        (first == look()).then_some(first)
    });
    for round in 0..6 {
        if round % 2 == 0 {
            scene.write("haproxy.cfg", &config(address, 2 + round));
            haproxy.reload(&scene).ok();
        } else {
            scene.write(
                "haproxy.cfg",
                "frontend web\n    bind 127.0.0.1:7999\n    no-such-word\n",
            );
            haproxy.reload(&scene).fails(1);
        }
    }
    settle();
    back_to(broker.pid(), before.0, "the broker");
    back_to(supervisor, before.1, "the supervisor");
}
