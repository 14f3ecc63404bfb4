//! The supervisor and the broker are killed at each step, under load, with haproxy and with other
//! programs: no client is refused, never do two generations accept, and the next supervisor
//! continues.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTOU};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    DEADLINE, Fault, Guest, Haproxy, Scene, Stage, Stranger, Wire, allow, eventually, finish, rows,
    wait_pending,
};
use Fault::{Deaf, Waits};

/// The longest wait of a client where nothing has to time out.
const PROMPTLY: Duration = Duration::from_secs(1);

/// How long the watchdog waits for an older generation to close its listeners.
const CLOSING: Duration = Duration::from_millis(500);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

rows!(
    [haproxy: Haproxy, nginx: Nginx, activated: Activated],
    [
        killed_between_reloads_the_supervisor_is_not_missed,
        killed_while_a_generation_starts_the_supervisor_takes_that_one_along,
        killed_while_an_older_one_drains_the_next_supervisor_lets_it_drain,
        killed_with_its_state_damaged_the_next_supervisor_finds_the_generations,
        replaced_under_load_the_supervisor_is_the_same_process,
        killed_between_reloads_the_broker_is_not_missed,
    ]
);

// Without a pause that proves the handover, the newer generation is held until the older one has
// received its signal.
rows!(
    [nginx_held: Nginx, activated_held: Activated],
    [killed_while_the_new_one_waits_the_supervisor_leaves_one_that_serves]
);

fn haproxy(faults: &[(u64, &[Fault])], arguments: &[&str]) -> Option<Stage> {
    Stage::of(Guest::Haproxy, faults, arguments)
}

/// The answer to one request.
#[track_caller]
fn answer(address: SocketAddr) -> String {
    let mut client = TcpStream::connect(address).expect("connecting");
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    client.write_all(REQUEST).expect("a request");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer");
    answer
}

/// Whether a process is stopped (SIGSTOP).
fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
}

/// Checks that nothing failed. With haproxy, whose handover is proved, also that no client waited
/// and no older generation answered after a newer one. Ends the load.
#[track_caller]
fn ends_well(mut stage: Stage, guest: Guest) {
    match guest {
        Guest::Haproxy => stage.answered_throughout(PROMPTLY),
        _ => stage.nothing_failed(),
    }
}

// The supervisor.

fn killed_between_reloads_the_supervisor_is_not_missed(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    stage.reload(2);
    stage.kill_supervisor();
    stage.only(2);
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains("bindonce run"), "{said}");
    stage.goes_on(2);
    ends_well(stage, guest);
}

fn killed_while_a_generation_starts_the_supervisor_takes_that_one_along(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[(2, &[Waits])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    let starting = stage.wait_waiting(2);
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    eventually("the one that was starting to be ended", || {
        kill(Pid::from_raw(starting), None).is_err().then_some(())
    });
    stage.only(1);
    stage.goes_on(1);
    ends_well(stage, guest);
}

fn killed_while_the_new_one_waits_the_supervisor_leaves_one_that_serves(guest: Guest) {
    let deaf_once = [Deaf(guest.retire_signal(), 1)];
    let Some(mut stage) = Stage::of(guest, &[(1, &deaf_once)], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    // The watchdog has told the older generation to stop, and lets the new one continue.
    let begun = Instant::now();
    let took = eventually("the new one to answer", || {
        answer(stage.address).contains("x-generation: 2").then(|| begun.elapsed())
    });
    let most = allow(Duration::from_secs(2));
    assert!(took < most, "it took {took:?}, at most {most:?}");
    stage.start_supervisor();
    let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(generation, 2, "{}", stage.haproxy.supervisor.story());
    stage.reload(9);
    stage.refused_nobody();
}

/// The supervisor continues an older generation that is stopped after 250 ms, and the watchdog
/// waits for one for [`CLOSING`]: on a busy machine an attempt may be too late for either.
#[test]
fn killed_before_the_older_one_has_closed_its_listener_the_new_one_waits_for_it() {
    eventually("an attempt in time", || the_new_one_waits().then_some(()));
}

/// One attempt; false if it was too late.
fn the_new_one_waits() -> bool {
    let Some(mut stage) = Stage::of(Guest::Activated, &[], &[]) else { return true };
    // A stopped generation receives nothing, and could accept again at any time.
    let older = Pid::from_raw(stage.pid(1));
    kill(older, SIGSTOP).expect("a signal to it");
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    let newer = Pid::from_raw(stage.pid(2));
    eventually("the new one to be stopped, or the older one to be continued", || {
        (is_stopped(newer) || !is_stopped(older)).then_some(())
    });
    let begun = Instant::now();
    stage.kill_supervisor();
    // From here on only this test continues it.
    let mut in_time = is_stopped(older);
    if in_time {
        wait_pending(older, SIGTERM);
    }
    let mut client = TcpStream::connect(stage.address).expect("connecting");
    client.write_all(REQUEST).expect("a request");
    client.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let early = client.read(&mut [0]);
    in_time &= begun.elapsed() < CLOSING;
    if in_time {
        let early = early.expect_err("no answer yet");
        assert_eq!(early.kind(), ErrorKind::WouldBlock, "{early}");
    }
    // After an attempt that was too late it may have ended.
    let _ = kill(older, SIGCONT);
    in_time &= begun.elapsed() < CLOSING;
    client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer");
    // One that was stopped between epoll_wait(2) and accept(2) accepts once more before it closes.
    in_time &= !answer.contains("x-generation: 1");
    if in_time {
        assert!(answer.contains("x-generation: 2"), "{answer}");
        assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    }
    stage.goes_on(2);
    stage.refused_nobody();
    in_time
}

fn killed_while_an_older_one_drains_the_next_supervisor_lets_it_drain(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.kill_supervisor();
    stage.only(2);
    stage.start_supervisor();
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    stage.reload(3);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(3, "serving")]);
    ends_well(stage, guest);
}

fn replaced_under_load_the_supervisor_is_the_same_process(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    for tag in 3..6 {
        stage.scene.run("upgrade", &["--name", "web"]).ok();
        assert!(stage.haproxy.supervisor.is_running());
        let (_, pid) = stage.haproxy.wait_serving(&stage.scene);
        assert_eq!(pid, stage.pid(tag - 1), "the same generation serves");
        stage.wait_generations(&[(1, "draining"), (tag - 1, "serving")]);
        stage.reload(tag);
    }
    stage.haproxy.supervisor.signal(SIGHUP);
    stage.wait_generations(&[(1, "draining"), (6, "serving")]);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(6, "serving")]);
    ends_well(stage, guest);
}

#[test]
fn killed_between_ready_and_the_older_ones_stop_it_leaves_one_that_serves() {
    // The older generation ignores SIGTTOU and keeps accepting while the new one is held.
    let Some(mut stage) = haproxy(&[(1, &[Deaf(SIGTTOU, 0)])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("ready: it has bound");
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    eventually("the older one to be gone", || (stage.scene.haproxies().len() == 1).then_some(()));
    stage.only(2);
    stage.start_supervisor();
    let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(generation, 2, "{}", stage.haproxy.supervisor.story());
    stage.reload(9);
    stage.answered_throughout(PROMPTLY);
}

/// No admin socket tells which of the two generations was told to stop.
#[test]
fn killed_in_a_handover_without_an_admin_socket_it_leaves_one_that_the_next_one_keeps() {
    let deaf = [Deaf(SIGTTOU, 0)];
    let Some(mut stage) = haproxy(&[(1, &deaf)], &["--no-admin"]) else { return };
    // The older generation does not end while this client is there.
    let half = stage.half_a_request();
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    let newer = stage.pid(2);
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    eventually("the new one to answer", || {
        answer(stage.address).contains("x-generation: 2").then_some(())
    });
    stage.start_supervisor();
    let serving = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(serving, (2, newer), "{}", stage.haproxy.supervisor.story());
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    stage.only(2);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn killed_while_the_service_is_paused_it_is_continued_within_a_second() {
    let Some(mut stage) = haproxy(&[], &[]) else { return };
    stage.answered_throughout(PROMPTLY);
    stage.configure(2);
    // The proof waits, with the older generation paused.
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    let begun = Instant::now();
    stage.kill_supervisor();
    drop(stranger);
    let first = answer(stage.address);
    let (took, most) = (begun.elapsed(), allow(Duration::from_secs(2)));
    assert!(took < most, "it took {took:?}, at most {most:?}");
    assert!(first.contains("x-generation: 2"), "{first}");
    stage.only(2);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    stage.start_supervisor();
    let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(generation, 2, "{}", stage.haproxy.supervisor.story());
    stage.reload(9);
}

/// The next reload has begun and waits for the broker. The generation that serves is in no handover
/// any more.
#[test]
fn killed_after_the_new_one_has_died_the_supervisor_leaves_the_older_one_that_serves() {
    let Some(mut stage) = haproxy(&[], &[]) else { return };
    stage.answered_throughout(PROMPTLY);
    stage.configure(2);
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    let newer = Pid::from_raw(stage.pid(2));
    let mut next = stage.reload_beside();
    eventually("the next reload to wait", || {
        let mut wire = Wire::try_connect(&stage.scene.path("web.d/control.sock"))?;
        (wire.call("status", &json!([]))["reloads_waiting"] == 1).then_some(())
    });
    stage.broker.signal(SIGSTOP);
    kill(newer, SIGKILL).expect("it waits");
    drop(stranger);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    stage.kill_supervisor();
    stage.broker.signal(SIGCONT);
    assert_eq!(next.wait_exit().code(), Some(1), "{}", next.story());
    stage.only(1);
    stage.configure(1);
    stage.goes_on(1);
}

/// A script that waits for haproxy would end with the signal, and haproxy would accept for ever.
#[test]
fn killed_while_the_new_one_waits_the_signal_reaches_a_haproxy_behind_a_script() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let text = format!("#!/bin/sh\n{} \"$@\"\nexit $?\n", program.display());
    let script = scene.write("start-it", &text);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    let deaf = [Deaf(SIGTTOU, 0)];
    let faults: &[(u64, &[Fault])] = &[(1, &deaf)];
    let Some(mut stage) = Stage::start_on(scene, Some(script), faults, &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    stage.kill_supervisor();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    eventually("the new one to answer", || {
        answer(stage.address).contains("x-generation: 2").then_some(())
    });
    stage.only(2);
    eventually("the older one to be gone", || (stage.scene.haproxies().len() == 1).then_some(()));
    stage.start_supervisor();
    let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
    assert_eq!(generation, 2, "{}", stage.haproxy.supervisor.story());
    stage.reload(9);
    stage.refused_nobody();
}

#[test]
fn killed_again_and_again_it_always_goes_on() {
    let Some(mut stage) = haproxy(&[], &[]) else { return };
    let mut serving = 1;
    for tag in [10, 20, 30, 40] {
        stage.configure(tag);
        let mut reload = stage.reload_beside();
        // At a different moment of each reload.
        std::thread::sleep(Duration::from_millis(4 * tag));
        stage.kill_supervisor();
        reload.wait_exit();
        stage.start_supervisor();
        let (generation, _) = stage.haproxy.wait_serving(&stage.scene);
        assert!(generation >= serving, "ids only grow: {serving}, then {generation}");
        serving = generation;
        stage.reload(tag + 1);
    }
    stage.refused_nobody();
    eventually("the older generations to be gone", || {
        (stage.scene.haproxies().len() == 1).then_some(())
    });
}

fn killed_with_its_state_damaged_the_next_supervisor_finds_the_generations(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let state = stage.scene.path("web.d/state.json");
    stage.reload(2);
    for (serving, damage) in [(2, "empty"), (3, "cut off"), (4, "next"), (5, "a directory")] {
        let pid = stage.pid(serving);
        stage.kill_supervisor();
        let good = fs::read_to_string(&state).expect("the state");
        match damage {
            "empty" => fs::write(&state, "").expect("writing"),
            "cut off" => fs::write(&state, &good[..good.len() - 20]).expect("writing"),
            "next" => {
                let next = format!("\"next\":{}", serving + 1);
                let bad = good.replace(&next, "\"next\":18446744073709551615");
                assert_ne!(good, bad);
                fs::write(&state, bad).expect("writing");
            }
            _ => {
                fs::remove_file(&state).expect("removing");
                fs::create_dir(&state).expect("a directory");
            }
        }
        stage.start_supervisor();
        stage.haproxy.supervisor.wait_line("continuing with what /proc and the broker report");
        assert_eq!(stage.haproxy.wait_serving(&stage.scene), (serving, pid), "{damage}");
        stage.only(serving);
        stage.reload(serving + 1);
        stage.wait_generations(&[(serving + 1, "serving")]);
    }
    let aside = fs::read_dir(stage.scene.path("web.d")).expect("the directory");
    let aside = aside.filter(|e| {
        e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("state.json.bad-"))
    });
    assert_eq!(aside.count(), 4);
    ends_well(stage, guest);
}

/// The next supervisor runs out of descriptors while it waits for the generation that it has found.
#[test]
fn killed_and_started_with_few_descriptors_the_supervisor_kills_no_generation() {
    let Some(mut stage) = haproxy(&[], &[]) else { return };
    stage.answered_throughout(PROMPTLY);
    let pid = stage.pid(1);
    stage.kill_supervisor();
    kill(Pid::from_raw(pid), SIGSTOP).expect("stopping it");
    stage.start_supervisor();
    let supervisor = stage.haproxy.supervisor.pid();
    let line = format!("Pid:\t{pid}");
    eventually("the generation to be found", || {
        let open = fs::read_dir(format!("/proc/{supervisor}/fdinfo")).ok()?.flatten();
        let texts = open.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let mut lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        lines.any(|it| it == line).then_some(())
    });
    let mut limit = stage.scene.command("prlimit");
    finish(limit.args(["--pid", &supervisor.to_string(), "--nofile=3:4096"])).ok();
    stage.haproxy.supervisor.wait_line("taken over: serving");
    kill(Pid::from_raw(pid), SIGCONT).expect("it is alive");
    stage.kill_supervisor();
    stage.start_supervisor();
    stage.wait_generations(&[(1, "serving")]);
    assert_eq!(stage.pid(1), pid);
    stage.only(1);
}

// The broker.

fn killed_between_reloads_the_broker_is_not_missed(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    stage.broker.kill();
    stage.only(1);
    stage.configure(2);
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains(&stage.scene.socket().display().to_string()), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    assert!(said.contains("bindonce serve"), "the hint: {said}");
    stage.only(1);
    stage.broker = stage.scene.broker();
    stage.haproxy.supervisor.wait_line("reconnected to the broker");
    stage.reload(2);
    ends_well(stage, guest);
}

#[test]
fn killed_while_a_generation_starts_the_broker_does_not_stop_the_handover() {
    let Some(mut stage) = haproxy(&[(2, &[Waits])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_waiting(2);
    stage.broker.kill();
    stage.only(1);
    stage.let_start(2);
    // haproxy already has its sockets; however the reload ends, one configuration answers.
    let answered = if reload.wait_exit().success() { 2 } else { 1 };
    stage.only(answered);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn killed_while_an_older_one_drains_the_broker_changes_nothing() {
    let Some(mut stage) = haproxy(&[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.broker.kill();
    stage.only(2);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    eventually("the older one to be gone", || (stage.scene.haproxies().len() == 1).then_some(()));
    stage.answered_throughout(PROMPTLY);
}
