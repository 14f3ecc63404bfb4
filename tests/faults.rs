//! Faults of a generation: each test has one fault, under load. The address answers throughout, no
//! stale answer comes after `reload` has returned, and the test names the state afterwards.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTOU, SIGUSR1};

use crate::harness::{
    Fault, Finished, Haproxy, Scene, Stage, Stranger, eventually, finish, listening,
};
use Fault::{Deaf, Dies, Hangs, Twice, Waits};

/// The longest wait of a client where nothing has to time out.
const PROMPTLY: Duration = Duration::from_secs(1);
/// After this time a generation is ended that is not known to have stopped accepting.
const RETIRE: [&str; 2] = ["--retire-timeout", "1s"];

#[track_caller]
fn stage(faults: &[(u64, &[Fault])], arguments: &[&str]) -> Option<Stage> {
    Stage::start(Haproxy::system(), faults, arguments)
}

impl Stage {
    /// A reload that must fail, with this tag in the configuration; returns its output.
    #[track_caller]
    pub(crate) fn refused(&self, tag: u64) -> String {
        self.configure(tag);
        self.haproxy.reload(&self.scene).fails(1)
    }
}

// Generations that die.

#[test]
fn killed_before_it_was_ready_the_new_one_disturbs_nobody() {
    let Some(mut stage) = stage(&[(2, &[Waits])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    let pid = stage.wait_waiting(2);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), SIGKILL).expect("killing it");
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let said = reload.story();
    assert!(said.contains("SIGKILL") && said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
    stage.reload(3);
}

#[test]
fn killed_when_it_was_ready_the_older_one_serves_on() {
    // The older generation ignores SIGTTOU and so delays the handover.
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGTTOU, 0)])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("ready: it has bound");
    stage.signal(2, SIGKILL);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let said = reload.story();
    assert!(
        said.contains("about to take over") && said.contains("generation 1 still serves"),
        "{said}"
    );
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn killed_while_the_older_one_is_paused_it_is_resumed() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    stage.answered_throughout(PROMPTLY);
    stage.configure(2);
    // The proof waits, with the older generation paused.
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    stage.signal(2, SIGKILL);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    drop(stranger);
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
}

/// haproxy becomes its user, and checks its limits, after it has told the older ones to stop: where
/// it may not, it closes its sockets and ends. Its silence must not count as an answer.
#[test]
fn dead_when_the_older_one_was_paused_for_it_the_older_one_serves_on() {
    let Some(mut stage) = stage(&[(2, &[Dies])], &[]) else { return };
    let said = stage.refused(2);
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    // The pause lasts until the end of the new one is seen.
    stage.answered_throughout(Duration::from_secs(5));
    stage.reload(3);
}

/// The new generation has the listeners and answers no client: the reload does not end before it
/// has been asked again.
#[test]
fn one_that_is_stopped_when_it_takes_over_is_continued_and_asked_again() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    stage.configure(2);
    // The proof waits, with the older generation paused.
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    stage.signal(2, SIGSTOP);
    drop(stranger);
    assert_eq!(reload.wait_exit().code(), Some(0), "{}", reload.story());
    stage.only(2);
    stage.reload(3);
}

#[test]
fn killed_after_it_served_it_is_started_again_and_the_draining_one_is_left_alone() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    stage.signal(2, SIGKILL);
    stage.wait_generations(&[(1, "draining"), (3, "serving")]);
    stage.only(2);
    stage.lost_only_what_was_accepted();
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(3, "serving")]);
}

#[test]
fn killed_while_it_drains_the_older_one_takes_only_its_own_connections_along() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(2);
    stage.answered_throughout(PROMPTLY);
    drop(half);
}

// Generations that do not start.

#[test]
fn a_broken_configuration_is_named_and_forgotten() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    stage.scene.write("haproxy.cfg", "frontend web\n    bind 127.0.0.1:9999\n    no-such-word\n");
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains("no-such-word") && said.contains("haproxy.cfg:3"), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    eventually("only its listener to be bound", || {
        (stage.bound() == [stage.address.to_string()]).then_some(())
    });
    stage.only(1);
    stage.reload(3);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn a_start_that_hangs_is_ended_in_time() {
    let Some(mut stage) = stage(&[(2, &[Hangs])], &["--ready-timeout", "4s"]) else { return };
    let said = stage.refused(2);
    assert!(said.contains("not ready within 4s") && said.contains("--ready-timeout"), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.reload(3);
    stage.answered_throughout(PROMPTLY);
}

/// It ignores SIGTERM, and is ready before it gets SIGKILL.
#[test]
fn one_that_is_ready_too_late_does_not_take_over() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let fifo = scene.path("go");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let waits = format!("[ $BINDONCE_GENERATION = 2 ] && read -r go <{}", fifo.display());
    let text = format!("#!/bin/sh\n{waits}\nexec {} \"$@\"\n", program.display());
    let script = scene.write("start-it", &text);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    // The shell ignores it too.
    let faults: &[(u64, &[Fault])] = &[(2, &[Deaf(SIGTERM, 0)])];
    let arguments = ["--ready-timeout", "4s"];
    let Some(mut stage) = Stage::start_on(scene, Some(script), faults, &arguments) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("it was not ready in time");
    // Opened for both directions, it does not wait for a reader.
    let mut go = fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("the fifo");
    go.write_all(b"go\n").expect("room in it");
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let story = stage.haproxy.supervisor.story();
    let is_ready = |line: &str| line.contains("ready: ") && line.contains("generation=2");
    assert!(!story.lines().any(is_ready), "{story}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn a_binary_that_is_missing_is_named() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    let away = stage.scene.path("away");
    fs::rename(&stage.program, &away).expect("moving it away");
    let said = stage.refused(2);
    assert!(said.contains(&stage.program.display().to_string()), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    fs::rename(&away, &stage.program).expect("moving it back");
    stage.reload(3);
    stage.answered_throughout(PROMPTLY);
}

// Signals that are lost, late or sent twice.

#[test]
fn a_pause_that_gets_lost_is_asked_for_again() {
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGTTOU, 1)])], &RETIRE) else { return };
    stage.reload(2);
    stage.answered_throughout(PROMPTLY);
    stage.wait_generations(&[(2, "serving")]);
}

#[test]
fn a_soft_stop_that_gets_lost_is_asked_for_again() {
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGUSR1, 1)])], &RETIRE) else { return };
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(2);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn the_first_of_every_signal_lost_leaves_no_stale_answer() {
    let faults = [Deaf(SIGTTOU, 1), Deaf(SIGUSR1, 1)];
    let Some(mut stage) = stage(&[(1, &faults), (2, &faults)], &RETIRE) else { return };
    stage.reload(2);
    stage.reload(3);
    stage.wait_generations(&[(3, "serving")]);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn one_that_is_deaf_to_the_soft_stop_stays_paused_until_it_is_ended() {
    let drain = ["--drain-timeout", "1s"];
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGUSR1, 0)])], &drain) else { return };
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(2);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn one_that_is_deaf_to_everything_is_ended_before_the_reload_returns() {
    let faults = [Deaf(SIGTTOU, 0), Deaf(SIGUSR1, 0)];
    let Some(mut stage) = stage(&[(1, &faults)], &RETIRE) else { return };
    let said = stage.reload(2);
    assert!(said.contains("generation 1 went on accepting and had to be ended"), "{said}");
    stage.wait_generations(&[(2, "serving")]);
    stage.lost_only_what_was_accepted();
}

#[test]
fn one_that_is_deaf_to_sigterm_too_is_killed() {
    let faults = [Deaf(SIGTTOU, 0), Deaf(SIGUSR1, 0), Deaf(SIGTERM, 0)];
    let Some(mut stage) = stage(&[(1, &faults)], &RETIRE) else { return };
    let said = stage.reload(2);
    assert!(said.contains("generation 1 went on accepting and had to be ended"), "{said}");
    stage.wait_generations(&[(2, "serving")]);
    stage.lost_only_what_was_accepted();
}

#[test]
fn one_that_ignores_sigterm_at_the_end_of_its_drain_is_killed() {
    let drain = ["--drain-timeout", "1s"];
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGTERM, 0)])], &drain) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.haproxy.supervisor.wait_line("did not end in time (--drain-timeout)");
    stage.wait_generations(&[(2, "serving")]);
    stage.answered_throughout(PROMPTLY);
    drop(half);
}

/// It is asked for its listeners when it is let in, and does not answer.
#[test]
fn one_that_is_paused_is_not_ended_because_the_new_one_does_not_answer() {
    // The older generation ignores SIGTTOU and so delays the proof.
    let deaf = [Deaf(SIGTTOU, 3)];
    let Some(mut stage) = stage(&[(1, &deaf)], &RETIRE) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    stage.signal(2, SIGSTOP);
    assert!(reload.wait_exit().success(), "{}", reload.story());
    let said = reload.story();
    assert!(!said.contains("had to be ended"), "{said}");
    // On a busy machine the signal may have come after the comparison.
    stage.signal(2, SIGCONT);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(2);
}

/// /proc cannot be read then, and so the processes of a generation not be found.
#[test]
fn one_that_ignores_sigterm_is_killed_by_a_supervisor_without_a_free_descriptor() {
    let drain = ["--drain-timeout", "4s"];
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGTERM, 0)])], &drain) else { return };
    let half = stage.half_a_request();
    let older = nix::unistd::Pid::from_raw(stage.pid(1));
    stage.reload(2);
    let supervisor = stage.haproxy.supervisor.pid().to_string();
    let limit = |limit: &str| {
        finish(stage.scene.command("prlimit").args(["--pid", &supervisor, limit])).ok();
    };
    limit("--nofile=3:4096");
    eventually("the older one to be gone", || {
        nix::sys::signal::kill(older, None).is_err().then_some(())
    });
    limit("--nofile=1024:4096");
    stage.wait_generations(&[(2, "serving")]);
    stage.answered_throughout(PROMPTLY);
    drop(half);
}

#[test]
fn one_that_is_stopped_at_the_moment_of_the_signal_is_woken() {
    let Some(stage) = stage(&[], &[]) else { return };
    stage.signal(1, SIGSTOP);
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
}

/// The stopped generation serves no client, so each moment before the new one serves is an outage:
/// its stick tables are not waited for.
#[test]
fn one_that_is_stopped_is_replaced_at_once() {
    let Some(stage) = stage(&[], &["--peers-timeout", "1h", "--ready-timeout", "1h"]) else {
        return;
    };
    stage.signal(1, SIGSTOP);
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
}

#[test]
fn signals_that_come_twice_do_what_they_do_once() {
    let twice = [Twice(SIGUSR1), Twice(SIGTTOU)];
    let Some(mut stage) = stage(&[(1, &twice), (2, &twice)], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.reload(3);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(3, "serving")]);
    stage.answered_throughout(PROMPTLY);
}

// Reloads that meet.

fn reload_in_a_thread(stage: &Stage) -> std::thread::JoinHandle<Finished> {
    let mut command = stage.scene.bindonce("reload");
    command.args(["--name", "web"]);
    std::thread::spawn(move || finish(&mut command))
}

#[test]
fn fifty_reloads_at_once_are_few_and_all_get_an_answer() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    stage.configure(2);
    let calls: Vec<_> = (0..50).map(|_| reload_in_a_thread(&stage)).collect();
    for call in calls {
        call.join().expect("a reload").ok();
    }
    stage.only(2);
    let (last, _) = stage.haproxy.serving(&stage.scene).expect("it serves");
    assert!((2..=51).contains(&last), "generation {last}");
    stage.wait_generations(&[(last, "serving")]);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn of_two_reloads_that_race_the_newer_configuration_serves() {
    let Some(mut stage) = stage(&[(2, &[Waits])], &[]) else { return };
    stage.configure(2);
    let first = reload_in_a_thread(&stage);
    stage.wait_waiting(2);
    // The first reload has read its configuration, which must not answer the second one.
    stage.configure(3);
    let second = reload_in_a_thread(&stage);
    stage.haproxy.supervisor.signal(SIGHUP);
    stage.let_start(2);
    let first = first.join().expect("a reload").ok();
    assert!(first.contains("generation 2 serves"), "{first}");
    let second = second.join().expect("a reload").ok();
    assert!(!second.contains("generation 2 serves"), "{second}");
    stage.only(3);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn the_sockets_stay_the_same_through_all_of_it() {
    let faults = [Deaf(SIGTTOU, 1), Twice(SIGUSR1)];
    let Some(stage) = stage(&[(1, &faults), (3, &[Hangs])], &["--ready-timeout", "4s"]) else {
        return;
    };
    let inode = listening(stage.address)[0].inode;
    stage.reload(2);
    stage.refused(3);
    stage.signal(2, SIGKILL);
    stage.wait_generations(&[(4, "serving")]);
    stage.only(2);
    assert_eq!(listening(stage.address)[0].inode, inode);
}
