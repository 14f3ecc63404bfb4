//! The open files and resident code of the broker, the supervisor and its clients return to their
//! earlier values.

use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Haproxy, Scene, config, eventually, open_files};

/// Whether each of these files is among the earlier ones, as often; both are sorted.
fn no_more(now: &[String], before: &[String]) -> bool {
    let mut before = before.iter();
    now.iter().all(|file| before.any(|one| one == file))
}

/// Waits until a process has these files open again and no more; a failure lists its actual files.
/// On a busy machine a connection that ended long ago may be among the earlier ones.
#[track_caller]
fn back_to(pid: u32, before: &[String], whose: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !no_more(&open_files(pid), before) {
        let late = Instant::now() > deadline;
        assert!(!late, "{whose} has {:#?} open, and had {before:#?}", open_files(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The result of `look` once it is stable for a while: connections that have just ended are then
/// closed.
#[track_caller]
fn at_rest<T: PartialEq>(look: impl Fn() -> T) -> T {
    eventually("descriptors to stand still", || {
        let first = look();
        std::thread::sleep(Duration::from_millis(200));
        (first == look()).then_some(first)
    })
}

#[test]
fn the_brokers_connections_and_listeners() {
    let (scene, broker) = Scene::with_broker();
    // It stays to the end, so that the others are known to be gone.
    let mut watcher = scene.wire();
    eventually("only the connection that asks to be left", || {
        let status = watcher.call("status", &serde_json::json!([]));
        (status["broker"]["connections"] == 1).then_some(())
    });
    let empty = at_rest(|| open_files(broker.pid()));
    let address = scene.address();
    for round in 0..20 {
        let mut wire = scene.wire();
        wire.bind(&[&format!("web={address}"), &format!("other=127.0.0.1:{}", 20_000 + round)]);
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
    let clash = clash.local_addr().map(|address| (address, clash)).expect("its address");
    for _ in 0..10 {
        let params = serde_json::json!([{"listen": "127.0.0.1:30000-30019"}, {"listen": clash.0.to_string()}]);
        scene.wire().error("bind", &params);
    }
    scene.run("release", &["web"]).ok();
    back_to(broker.pid(), &empty, "the broker");
}

#[test]
fn broker_and_supervisor_through_good_and_bad_reloads() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let settle = || {
        eventually("older generations to be gone", || (scene.haproxies().len() == 1).then_some(()));
    };
    let bad = "frontend web\n    bind 127.0.0.1:7999\n    no-such-word\n";
    // The first reloads may open files that stay open, such as a second admin socket.
    haproxy.reload(&scene).ok();
    scene.write("haproxy.cfg", bad);
    haproxy.reload(&scene).fails(1);
    scene.write("haproxy.cfg", &config(address, 1));
    haproxy.reload(&scene).ok();
    settle();
    let supervisor = haproxy.supervisor.pid();
    let before = at_rest(|| (open_files(broker.pid()), open_files(supervisor)));
    for round in 0..6 {
        if round % 2 == 0 {
            scene.write("haproxy.cfg", &config(address, 2 + round));
            haproxy.reload(&scene).ok();
        } else {
            scene.write("haproxy.cfg", bad);
            haproxy.reload(&scene).fails(1);
        }
    }
    settle();
    back_to(broker.pid(), &before.0, "the broker");
    back_to(supervisor, &before.1, "the supervisor");
}

/// Resident program code of a process, in KiB.
fn resident_code(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
    let mut lines =
        maps.lines().skip_while(|line| !(line.contains(" r-xp ") && line.contains('/')));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).expect("its code");
    rss.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn what_a_connection_needed_of_the_brokers_code_is_not_resident_after_it() {
    let (scene, broker) = Scene::with_broker();
    let mut wire = scene.wire();
    let look = || {
        wire.call("status", &serde_json::json!([]));
        resident_code(broker.pid())
    };
    // The end of the previous connection may take effect meanwhile.
    let used = std::iter::repeat_with(look).take(20).max().expect("some");
    drop(wire);
    eventually("the broker's code to be let go of", || {
        (resident_code(broker.pid()) < used / 2).then_some(())
    });
}
