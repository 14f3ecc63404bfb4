//! haproxy's own counters, as a supervisor exports them: over all generations of the service,
//! including those that are gone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Haproxy, Scene, config, eventually, serves};
use crate::metrics::{scrape, unix};

/// Sends one request on a connection that stays open.
fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("a request");
    let (mut answer, mut some) = (Vec::new(), [0; 512]);
    while !answer.ends_with(b"\r\n\r\nok") {
        let count = stream.read(&mut some).expect("an answer");
        assert!(count > 0, "closed");
        answer.extend_from_slice(&some[..count]);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// The answers of all frontends to our requests, in one scrape. haproxy counts the probes of a
/// handover as bad requests (400).
fn answered(scene: &Scene) -> f64 {
    let page = scrape(unix(scene, "web.d/metrics.sock"));
    let metric = "haproxy_frontend_http_responses_total{";
    let values = page.lines().filter(|line| line.starts_with(metric) && line.contains("\"2xx\""));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Waits until this many answers are reported, and checks that no scrape until then reports more,
/// or fewer than an earlier one.
fn counted(scene: &Scene, all: f64) {
    let mut before = 0.0;
    eventually("all answers to be counted", || {
        let now = answered(scene);
        assert!(before <= now && now <= all, "{before}, then {now} of {all}");
        before = now;
        (now >= all).then_some(())
    });
}

/// `through_ends`: the supervisor is upgraded and killed too. What it keeps for the next one is the
/// same with every version.
fn of_all_generations(program: &Path, through_ends: bool) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let kept = |tag| {
        let kept = "defaults\n    option idle-close-on-response\n";
        config(address, tag).replacen("defaults\n", kept, 1)
    };
    let file = scene.write("haproxy.cfg", &kept(1));
    let mut haproxy = Haproxy::start(&scene, program, &file);
    let (mut first, mut second) = (connect(address), connect(address));
    ask(&mut first);
    ask(&mut second);
    counted(&scene, 2.0);
    scene.write("haproxy.cfg", &kept(2));
    haproxy.reload(&scene).ok();
    serves(address, 2);
    ask(&mut first);
    counted(&scene, 4.0);
    ask(&mut second);
    drop((first, second));
    eventually("the older generation to be gone", || {
        let status = scene.run("status", &[]).ok();
        (!status.contains("draining")).then_some(())
    });
    counted(&scene, 5.0);
    if !through_ends {
        return;
    }
    scene.run("upgrade", &["--name", "web"]).ok();
    serves(address, 2);
    counted(&scene, 6.0);
    haproxy.supervisor.kill();
    haproxy = Haproxy::begin(&scene, &[], program, &file);
    haproxy.wait_serving(&scene);
    serves(address, 2);
    counted(&scene, 7.0);
}

#[test]
fn what_haproxy_counts_is_added_over_generations_and_never_goes_down() {
    for (number, program) in Haproxy::all().enumerate() {
        of_all_generations(&program, number == 0);
    }
}

/// The number of answers that haproxy itself reports for its frontend.
fn of_haproxy(scene: &Scene) -> u64 {
    let mut cli = UnixStream::connect(scene.path("cli")).expect("connecting");
    cli.write_all(b"show stat web 1 -1\n").expect("a command");
    let mut text = String::new();
    cli.read_to_string(&mut text).expect("an answer");
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let column = header.iter().position(|name| *name == "hrsp_2xx").expect("the column");
    let frontend = lines.find(|line| line.get(1) == Some(&"FRONTEND")).expect("the frontend");
    frontend[column].parse().expect("a number")
}

/// haproxy counts an answer a moment after its client has it.
fn of_haproxy_itself(scene: &Scene, count: u64) {
    let what = format!("haproxy itself to have counted {count}");
    eventually(&what, || (of_haproxy(scene) == count).then_some(()));
}

fn over_a_stats_file(program: &Path) {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let path = scene.path("counters/file");
    std::fs::create_dir(path.parent().expect("a directory")).expect("mkdir");
    let global = format!(
        "global\n    stats-file {}\n    stats socket {} level admin\n",
        path.display(),
        scene.path("cli").display()
    );
    let text = |tag| {
        let named = config(address, tag).replacen("global\n", &global, 1);
        named.replacen("frontend web\n", "frontend web\n    guid web-frontend\n", 1)
    };
    let file = scene.write("haproxy.cfg", &text(1));
    let mut haproxy = Haproxy::start(&scene, program, &file);
    let mut first = connect(address);
    ask(&mut first);
    for tag in 2..5 {
        scene.write("haproxy.cfg", &text(tag));
        haproxy.reload(&scene).ok();
        serves(address, tag);
        // haproxy continues from the file's counters; the export contains them once.
        of_haproxy_itself(&scene, tag);
        counted(&scene, tag as f64);
    }
    scene.run("upgrade", &["--name", "web"]).ok();
    serves(address, 4);
    counted(&scene, 5.0);
    // After a restart it begins with the file's counters: three were counted when it was written.
    let (_, pid) = haproxy.wait_serving(&scene);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing it");
    eventually("another one to serve", || {
        haproxy.serving(&scene).filter(|(_, other)| *other != pid)
    });
    serves(address, 4);
    of_haproxy_itself(&scene, 4);
    counted(&scene, 6.0);
    // A file that cannot be written is reported, and delays no reload.
    std::fs::remove_file(&path).expect("removing it");
    std::fs::create_dir(&path).expect("mkdir");
    scene.write("haproxy.cfg", &text(6));
    haproxy.reload(&scene).ok();
    serves(address, 6);
    counted(&scene, 7.0);
    haproxy.supervisor.wait_line("the stats-file could not be written");
}

#[test]
fn a_stats_file_is_written_before_the_next_one_starts_and_counted_once() {
    ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched).for_each(|it| over_a_stats_file(&it));
}
