//! Draining generations must not answer, burn CPU, or lose what they have learned.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGTTOU, SIGUSR1};

use crate::harness::{
    DEADLINE, Fault, Haproxy, Scene, Stage, assert_nothing_lost, config, eventually, listening,
};
use Fault::Deaf;

/// Number of entries for the listener in the epoll sets of a process.
fn registrations(pid: i32, inode: u64) -> usize {
    let wanted = format!("ino:{inode:x}");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let lines = |text: String| {
        let words = text.lines().filter(|line| line.starts_with("tfd:"));
        words.filter(|line| line.split_whitespace().any(|word| word == wanted)).count()
    };
    texts.map(lines).sum()
}

/// CPU time of a process, user and system.
fn cpu(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Nine draining generations with half a request each, and a tenth that serves.
fn nine(program: Option<PathBuf>, faults: &[(u64, &[Fault])]) {
    let arguments = ["--retire-timeout", "1s"];
    let Some(mut stage) = Stage::start(program, faults, &arguments) else { return };
    let inode = listening(stage.address)[0].inode;
    let mut halves = Vec::new();
    for generation in 1..=9 {
        halves.push((generation, stage.half_a_request()));
        stage.reload(generation + 1);
    }
    let mut wanted: Vec<_> = (1..=9).map(|generation| (generation, "draining")).collect();
    wanted.push((10, "serving"));
    stage.wait_generations(&wanted);
    let draining: Vec<i32> = (1..=9).map(|generation| stage.pid(generation)).collect();
    eventually("no entry of the listener in their epoll sets", || {
        draining.iter().all(|pid| registrations(*pid, inode) == 0).then_some(())
    });
    let before: Vec<_> = draining.iter().map(|pid| cpu(*pid)).collect();
    let begun = Instant::now();
    stage.wait_answers(400);
    let took = begun.elapsed();
    for (pid, before) in draining.iter().zip(before) {
        let burnt = cpu(*pid).saturating_sub(before);
        // Ten times the promised 1 %, because a tick of the clock is 10 ms.
        assert!(burnt * 10 <= took, "pid {pid} burnt {burnt:?} in {took:?}");
    }
    stage.only(10);
    for (generation, half) in halves {
        let answer = half.complete();
        assert!(answer.contains(&format!("x-generation: {generation}\r\n")), "{answer}");
    }
    stage.wait_generations(&[(10, "serving")]);
    stage.answered_throughout(Duration::from_secs(1));
}

#[test]
fn nine_that_linger_answer_nobody_and_burn_nothing() {
    nine(Haproxy::system(), &[]);
}

#[test]
fn nine_that_linger_answer_nobody_with_haproxy_3_0() {
    nine(Haproxy::fetched("3.0"), &[]);
}

#[test]
fn nine_that_linger_answer_nobody_with_haproxy_3_2() {
    nine(Haproxy::fetched("3.2"), &[]);
}

#[test]
fn nine_that_linger_and_lost_their_first_signals_answer_nobody() {
    let lost = [Deaf(SIGUSR1, 1), Deaf(SIGTTOU, 1)];
    let faults: Vec<(u64, &[Fault])> = (1..=9).map(|number| (number, lost.as_slice())).collect();
    nine(Haproxy::system(), &faults);
}

#[test]
fn two_of_ten_that_are_deaf_to_everything_are_ended_and_answer_nobody() {
    let deaf = [Deaf(SIGUSR1, 0), Deaf(SIGTTOU, 0)];
    let arguments = ["--retire-timeout", "1s"];
    let faults: [(u64, &[Fault]); 2] = [(8, &deaf), (9, &deaf)];
    let Some(mut stage) = Stage::start(Haproxy::system(), &faults, &arguments) else { return };
    let mut halves = Vec::new();
    for generation in 1..=9 {
        halves.push(stage.half_a_request());
        let said = stage.reload(generation + 1);
        let ended = format!("generation {generation} went on accepting and had to be ended");
        assert_eq!(said.contains(&ended), generation >= 8, "{said}");
    }
    let mut wanted: Vec<_> = (1..=7).map(|generation| (generation, "draining")).collect();
    wanted.push((10, "serving"));
    stage.wait_generations(&wanted);
    stage.only(10);
    stage.refused_nobody();
    drop(halves);
}

#[test]
fn more_than_may_linger_end_the_oldest() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &["--max-draining", "2"]) else {
        return;
    };
    let halves: Vec<_> = (2..6)
        .map(|tag| {
            let half = stage.half_a_request();
            stage.reload(tag);
            half
        })
        .collect();
    stage.wait_generations(&[(3, "draining"), (4, "draining"), (5, "serving")]);
    stage.only(5);
    drop(halves);
    stage.answered_throughout(Duration::from_secs(1));
}

#[test]
fn retire_ends_what_drains_oldest_first_and_leaves_what_serves() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let retire = |words: &[&str]| stage.scene.run("retire", &[&["--name", "web"], words].concat());
    let said = retire(&[]).fails(1);
    assert!(said.contains("no generation of web drains") && said.contains("hint:"), "{said}");
    let halves: Vec<_> = (2..5)
        .map(|tag| {
            let half = stage.half_a_request();
            stage.reload(tag);
            half
        })
        .collect();
    stage.wait_generations(&[(1, "draining"), (2, "draining"), (3, "draining"), (4, "serving")]);
    let said = retire(&["4"]).fails(1);
    assert!(said.contains("generation 4 of web is serving, not draining"), "{said}");
    assert!(retire(&["99"]).fails(1).contains("web has no generation 99"));
    let pid = stage.pid(1);
    let said = retire(&[]).ok();
    // The command answers when the process is gone, not when it was signalled.
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{said}");
    assert!(said.starts_with(&format!("generation 1, pid {pid}, was ended")), "{said}");
    assert!(retire(&["3"]).ok().starts_with("generation 3, pid "));
    stage.wait_generations(&[(2, "draining"), (4, "serving")]);
    stage.only(4);
    drop(halves);
    stage.answered_throughout(Duration::from_secs(1));
}

/// A configuration whose answers count the requests of their client in a table
/// that peers carry from one generation to the next.
fn counting(scene: &Scene, address: std::net::SocketAddr, peer: std::net::SocketAddr) -> PathBuf {
    let head = format!("peers all\n    peer me {peer}\n");
    let table = "    stick-table type string len 8 size 1k expire 10m store gpc0 peers all\n    \
                 http-request track-sc0 str(all)\n    http-request sc-inc-gpc0(0)\n";
    let text = config(address, 1)
        .replace("global\n", "global\n    localpeer me\n")
        .replace("    http-request return", &format!("{table}    http-request return"))
        .replace("x-generation 1", "x-count %[sc_get_gpc0(0)]");
    scene.write("haproxy.cfg", &format!("{text}{head}"))
}

/// Sends one request; returns the count in its answer.
fn count(address: std::net::SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let line = answer.lines().find_map(|line| line.strip_prefix("x-count: "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

/// Stick tables reach the next generation, also right after the first start and when reloads follow
/// each other quickly.
fn tables(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, peer) = (scene.address(), scene.address());
    let file = counting(&scene, address, peer);
    let haproxy = Haproxy::start(&scene, &program, &file);
    let mut asked = 0;
    for reload in 0..4 {
        for _ in 0..5 {
            asked += 1;
            count(address);
        }
        haproxy.reload(&scene).ok();
        // The table comes over its own connection, a moment after the handover.
        eventually(&format!("the table after reload {reload}"), || {
            asked += 1;
            (count(address) > 5).then_some(())
        });
        let kept = count(address);
        asked += 1;
        assert!(kept + 2 >= asked.min(6) && kept <= asked, "{kept} of {asked}");
    }
}

#[test]
fn stick_tables_reach_the_next_generation_with_haproxy_3_0() {
    tables(Haproxy::fetched("3.0"));
}

#[test]
fn stick_tables_reach_the_next_generation_with_haproxy_3_2() {
    tables(Haproxy::fetched("3.2"));
}

#[test]
fn a_host_that_only_the_newest_configuration_knows_is_known_at_once() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    // Any other host gets 503: there is no backend.
    let text = config(address, 1).replace("string ok", "string ok if { hdr(host) a }");
    let file = scene.write("haproxy.cfg", &text);
    let haproxy = Haproxy::start(&scene, &program, &file);
    let mut halves = Vec::new();
    for tag in 2..6 {
        let mut half = TcpStream::connect(address).expect("connecting");
        half.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").expect("half a request");
        halves.push(half);
        let newest = text.replace("hdr(host) a }", &format!("hdr(host) a b{tag} }}"));
        scene.write(
            "haproxy.cfg",
            &newest.replace("x-generation 1", &format!("x-generation {tag}")),
        );
        haproxy.reload(&scene).ok();
        let mut plan = bindonce_load::Plan::new(address);
        plan.connections = Some(200);
        plan.host = format!("b{tag}");
        let load = plan.start().expect("load");
        assert!(load.wait_over(DEADLINE));
        let report = load.stop();
        assert_eq!(report.ok, 200, "{report}");
        assert_nothing_lost(&report);
    }
}
