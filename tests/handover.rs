//! The main task: a real haproxy reloaded under load, with nothing lost, one socket throughout, and
//! no answer from a replaced generation.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bindonce_load::{Load, Plan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    DEADLINE, Haproxy, Scene, Stage, assert_nothing_lost, config, eventually, listening,
};

const RELOADS: u64 = 10;

fn load(address: std::net::SocketAddr, clients: usize) -> Load {
    let mut plan = Plan::new(address);
    plan.clients = clients;
    plan.start().expect("starting the load")
}

/// Reloads five times a second under twenty clients.
fn reloads_under_load(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let load = load(address, 20);
    assert!(load.wait_for(100, DEADLINE), "no answers");

    let mut sockets = BTreeSet::new();
    let mut returned = Vec::new();
    let begun = Instant::now();
    for number in 0..RELOADS {
        scene.write("haproxy.cfg", &config(address, 2 + number));
        haproxy.reload(&scene).ok();
        returned.push(load.elapsed());
        let shown = listening(address);
        assert_eq!(shown.len(), 1, "sockets on the address: {shown:?}");
        sockets.insert(shown[0].inode);
        assert!(
            load.wait_for_token(&(2 + number).to_string(), DEADLINE),
            "generation {number} answers"
        );
        let next = begun + Duration::from_millis(200) * u32::try_from(number + 1).unwrap();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    assert!(load.wait_for(100, DEADLINE), "no answers after the last reload");
    let report = load.stop();
    // From the moment that `reload` returns no stale answer is possible.
    for (old, returned) in report.tokens.iter().zip(&returned) {
        assert!(
            old.last_begun <= *returned,
            "generation {} answered after the reload: {report}",
            old.token
        );
    }
    assert_nothing_lost(&report);
    assert_eq!(report.tokens.len() as u64, RELOADS + 1, "{report}");
    assert_eq!(sockets.len(), 1, "the inode changed: {sockets:?}");
    eventually("the older generations to be gone", || (scene.haproxies().len() == 1).then_some(()));
}

#[test]
fn reloads_under_load_lose_nothing_with_the_systems_haproxy() {
    reloads_under_load(Haproxy::system());
}

#[test]
fn reloads_under_load_lose_nothing_with_haproxy_3_0() {
    reloads_under_load(Haproxy::fetched("3.0"));
}

#[test]
fn reloads_under_load_lose_nothing_with_haproxy_3_2() {
    reloads_under_load(Haproxy::fetched("3.2"));
}

#[test]
fn signals_reload_too() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let load = load(address, 4);
    for (tag, signal) in [("2", Signal::SIGHUP), ("3", Signal::SIGUSR2)] {
        scene.write("haproxy.cfg", &config(address, tag.parse().unwrap()));
        haproxy.supervisor.signal(signal);
        assert!(load.wait_for_token(tag, DEADLINE), "{signal} does not reload");
    }
    assert_nothing_lost(&load.stop());
}

/// The stop signal of haproxy's container images. A request in progress is answered, however often
/// the signal is sent.
#[test]
fn sigusr1_from_anybody_but_a_generation_is_a_soft_stop() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.nothing_failed();
    for _ in 0..3 {
        stage.haproxy.supervisor.signal(Signal::SIGUSR1);
    }
    stage.haproxy.supervisor.wait_line("shutdown requested");
    stage.haproxy.supervisor.wait_line("stopped accepting");
    stage.haproxy.supervisor.signal(Signal::SIGUSR1);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    let supervisor = &mut stage.haproxy.supervisor;
    assert_eq!(supervisor.wait_exit().code(), Some(0), "{}", supervisor.story());
}

/// `kill -USR1 $(pidof haproxy)`, where no answer of an admin socket shows it.
#[test]
fn without_an_admin_socket_one_that_another_process_stops_is_replaced() {
    let Some(stage) = Stage::start(Haproxy::system(), &[], &["--no-admin"]) else { return };
    // It does not exit while this client is there.
    let half = stage.half_a_request();
    stage.signal(1, Signal::SIGUSR1);
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
}

/// No descriptor of the broker's shows whether such a haproxy has stopped.
#[test]
fn a_haproxy_that_binds_all_by_itself_is_not_taken_for_stopped() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let text = format!(
        "peers p\n    peer me {}\nbackend b\n    stick-table type ip size 1k peers p\n",
        scene.address()
    );
    let file = scene.write("haproxy.cfg", &text);
    let words =
        [program.as_os_str(), "-L".as_ref(), "me".as_ref(), "-f".as_ref(), file.as_os_str()];
    let words = words.map(OsString::from);
    let mut haproxy = Haproxy::begin_command(&scene, &["--no-admin"], &words);
    let (generation, pid) = haproxy.wait_serving(&scene);
    for _ in 0..10 {
        // The supervisor looks ten times a second at first.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(haproxy.serving(&scene), Some((generation, pid)));
    }
    assert_eq!(scene.haproxies().len(), 1);
}

#[test]
fn many_reloads_at_once_all_get_an_answer() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let (first, _) = haproxy.serving(&scene).expect("it serves");
    let load = load(address, 4);
    scene.write("haproxy.cfg", &config(address, 2));
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut command = scene.bindonce("reload");
            command.args(["--name", &haproxy.service]);
            std::thread::spawn(move || crate::harness::finish(&mut command))
        })
        .collect();
    for call in calls {
        call.join().expect("a reload").ok();
    }
    let (last, _) = haproxy.serving(&scene).expect("it serves");
    assert!(last > first && last <= first + 20, "generation {first}, then {last}");
    assert!(load.wait_for_token("2", DEADLINE));
    assert_nothing_lost(&load.stop());
}

#[test]
fn a_killed_haproxy_is_started_again_and_none_is_refused() {
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (address, mut haproxy) = Haproxy::start_at(&scene, &[], &program);
    let inode = listening(address)[0].inode;
    let clients = 20;
    let load = load(address, clients);
    assert!(load.wait_for(100, DEADLINE));
    let (old, pid) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing haproxy");
    eventually("a new generation", || {
        haproxy.serving(&scene).filter(|(generation, _)| *generation > old)
    });
    assert!(load.wait_for(100, DEADLINE), "no answers afterwards");
    let report = load.stop();
    assert_eq!((report.refused, report.timed_out, report.local), (0, 0, 0), "{report}");
    // Only the connections that the dead process had accepted are lost.
    assert!(report.failed() <= clients as u64, "{report}");
    assert_eq!(listening(address)[0].inode, inode);
}

#[test]
fn a_request_in_progress_outlives_its_generation() {
    use std::io::{Read, Write};
    let Some(program) = Haproxy::system() else {
        return;
    };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    let mut half = std::net::TcpStream::connect(address).expect("connecting");
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").expect("half a request");
    // A second connection is accepted after the first, so haproxy has the first one now.
    let load = load(address, 1);
    assert!(load.wait_for(5, DEADLINE));
    scene.write("haproxy.cfg", &config(address, 2));
    haproxy.reload(&scene).ok();
    assert!(load.wait_for_token("2", DEADLINE));
    half.write_all(b"Connection: close\r\n\r\n").expect("the other half");
    let mut answer = String::new();
    half.read_to_string(&mut answer).expect("the answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-generation: 1"), "{answer}");
    assert_nothing_lost(&load.stop());
    eventually("the drained generation to end", || (scene.haproxies().len() == 1).then_some(()));
}
