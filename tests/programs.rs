//! Programs other than haproxy under `bindonce run`: Debian's nginx, and a server that systemd
//! could activate. Each row is one event, under load: no client is refused, and no stale answer
//! comes after `reload` has returned.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGKILL, SIGQUIT, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::harness::{
    DEADLINE, Fault, Finished, Guest, Process, Scene, Stage, eventually, finish, listening, rows,
};
use Fault::{Deaf, Hangs, Waits};

/// The longest wait of a client where nothing has to time out.
const PROMPTLY: Duration = Duration::from_secs(2);
/// After this time a generation is ended that is not known to have stopped accepting.
const RETIRE: [&str; 2] = ["--retire-timeout", "1s"];

rows!(
    [nginx: Nginx, activated: Activated],
    [
        many_reloads_lose_nothing_and_leave_nothing_stale,
        killed_before_it_was_ready_the_new_one_disturbs_nobody,
        killed_while_it_waits_what_served_is_started_again,
        killed_after_it_served_it_is_started_again,
        killed_while_it_drains_the_older_one_takes_only_its_own_connections_along,
        a_broken_configuration_is_named_and_forgotten,
        a_start_that_hangs_is_ended_in_time,
        a_binary_that_is_missing_is_named,
        a_signal_that_gets_lost_is_sent_again,
        one_that_ignores_its_signal_is_ended_before_the_reload_returns,
        one_that_ignores_sigterm_too_is_killed,
        one_that_ignores_sigterm_at_the_end_of_its_drain_is_killed,
        one_that_is_stopped_at_the_moment_of_the_signal_is_woken,
        one_that_somebody_else_tells_to_stop_is_replaced,
        fifty_reloads_at_once_are_few_and_all_get_an_answer,
    ]
);

/// A generation that ignores its stop signal delays a handover.
fn deaf(guest: Guest) -> [Fault; 1] {
    [Deaf(guest.retire_signal(), 0)]
}

impl Stage {
    /// Checks that twenty new connections, by four clients, are answered with this tag and no
    /// other.
    #[track_caller]
    fn twenty(&self, tag: u64) {
        let mut plan = bindonce_load::Plan::new(self.address);
        (plan.clients, plan.connections) = (4, Some(20));
        let load = plan.start().expect("load");
        assert!(load.wait_over(DEADLINE), "no answers");
        let report = load.stop();
        assert_eq!((report.ok, report.tokens.len()), (20, 1), "{report}");
        assert_eq!(report.tokens[0].token, tag.to_string(), "{report}");
    }
}

fn many_reloads_lose_nothing_and_leave_nothing_stale(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let inode = listening(stage.address)[0].inode;
    for tag in 2..=21 {
        stage.configure(tag);
        stage.haproxy.reload(&stage.scene).ok();
        // From here on no older answer is possible.
        if tag % 10 == 0 { stage.only(tag) } else { stage.twenty(tag) }
    }
    assert_eq!(listening(stage.address)[0].inode, inode);
    let report = stage.refused_nobody();
    println!("{guest:?}: {report}");
    assert_eq!(report.failed(), 0, "{report}");
    stage.wait_generations(&[(21, "serving")]);
    assert_eq!(stage.processes().len(), guest.processes());
}

// Generations that die.

fn killed_before_it_was_ready_the_new_one_disturbs_nobody(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[(2, &[Waits])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    let pid = stage.wait_waiting(2);
    kill(Pid::from_raw(pid), SIGKILL).expect("killing it");
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let said = reload.story();
    assert!(said.contains("SIGKILL") && said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
    stage.reload(3);
}

fn killed_while_it_waits_what_served_is_started_again(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[(1, &deaf(guest))], &RETIRE) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.wait_ready(2);
    stage.signal(2, SIGKILL);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    assert!(reload.story().contains("about to take over"), "{}", reload.story());
    // A program reads its files at each start: a restarted one has the new files.
    stage.wait_generations(&[(3, "serving")]);
    stage.only(2);
    stage.refused_nobody();
}

fn killed_after_it_served_it_is_started_again(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    let first = stage.processes();
    stage.signal(2, SIGKILL);
    stage.wait_generations(&[(1, "draining"), (3, "serving")]);
    stage.only(2);
    let report = stage.refused_nobody();
    assert_eq!(report.refused, 0, "{report}");
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(3, "serving")]);
    // No worker outlives the first process of its generation.
    let serving = stage.pid(3);
    eventually("the others to be gone", || {
        let left: Vec<_> = stage.processes();
        left.iter().all(|pid| !first.contains(pid) || *pid == serving).then_some(())
    });
}

fn killed_while_it_drains_the_older_one_takes_only_its_own_connections_along(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(2);
    stage.nothing_failed();
    drop(half);
}

// Generations that do not start.

fn a_broken_configuration_is_named_and_forgotten(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let file = if guest == Guest::Nginx { "nginx.conf" } else { "server.tag" };
    stage.scene.write(file, "no-such-word;\n");
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains("no-such-word") && said.contains(&format!("{file}:1")), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.reload(3);
    stage.nothing_failed();
}

fn a_start_that_hangs_is_ended_in_time(guest: Guest) {
    let arguments = ["--ready-timeout", "4s"];
    let Some(mut stage) = Stage::of(guest, &[(2, &[Hangs])], &arguments) else { return };
    stage.configure(2);
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains("not ready within 4s") && said.contains("--ready-timeout"), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.reload(3);
    stage.nothing_failed();
}

fn a_binary_that_is_missing_is_named(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let away = stage.scene.path("away");
    fs::rename(&stage.program, &away).expect("moving it away");
    stage.configure(2);
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains(&stage.program.display().to_string()), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.only(1);
    fs::rename(&away, &stage.program).expect("moving it back");
    stage.reload(3);
    stage.nothing_failed();
}

// Signals that are lost or ignored.

fn a_signal_that_gets_lost_is_sent_again(guest: Guest) {
    let lost = [Deaf(guest.retire_signal(), 1)];
    let Some(mut stage) = Stage::of(guest, &[(1, &lost), (2, &lost)], &[]) else { return };
    stage.reload(2);
    stage.reload(3);
    stage.wait_generations(&[(3, "serving")]);
    stage.nothing_failed();
}

fn one_that_ignores_its_signal_is_ended_before_the_reload_returns(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[(1, &deaf(guest))], &RETIRE) else { return };
    let said = stage.reload(2);
    assert!(said.contains("generation 1 went on accepting and had to be ended"), "{said}");
    stage.wait_generations(&[(2, "serving")]);
    stage.refused_nobody();
}

fn one_that_ignores_sigterm_too_is_killed(guest: Guest) {
    let faults = [Deaf(SIGQUIT, 0), Deaf(SIGTERM, 0)];
    let Some(mut stage) = Stage::of(guest, &[(1, &faults)], &RETIRE) else { return };
    let said = stage.reload(2);
    assert!(said.contains("generation 1 went on accepting and had to be ended"), "{said}");
    stage.wait_generations(&[(2, "serving")]);
    stage.refused_nobody();
    assert_eq!(stage.processes().len(), guest.processes(), "its workers went along");
}

fn one_that_ignores_sigterm_at_the_end_of_its_drain_is_killed(guest: Guest) {
    // The server treats SIGTERM as nothing new while it drains.
    let faults: &[Fault] = if guest == Guest::Nginx { &[Deaf(SIGTERM, 0)] } else { &[] };
    let drain = ["--drain-timeout", "1s"];
    let Some(mut stage) = Stage::of(guest, &[(1, faults)], &drain) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.haproxy.supervisor.wait_line("did not end in time (--drain-timeout)");
    stage.wait_generations(&[(2, "serving")]);
    stage.nothing_failed();
    drop(half);
}

fn one_that_is_stopped_at_the_moment_of_the_signal_is_woken(guest: Guest) {
    let Some(stage) = Stage::of(guest, &[], &[]) else { return };
    for pid in stage.processes() {
        kill(Pid::from_raw(pid), SIGSTOP).expect("stopping it");
    }
    let said = stage.reload(2);
    assert!(!said.contains("had to be ended"), "{said}");
    stage.wait_generations(&[(2, "serving")]);
}

fn one_that_somebody_else_tells_to_stop_is_replaced(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.signal(1, guest.retire_signal());
    stage.wait_generations(&[(1, "draining"), (2, "serving")]);
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.nothing_failed();
}

// Reloads that meet.

fn fifty_reloads_at_once_are_few_and_all_get_an_answer(guest: Guest) {
    let Some(mut stage) = Stage::of(guest, &[], &[]) else { return };
    stage.configure(2);
    let reload = || {
        let mut command = stage.scene.bindonce("reload");
        command.args(["--name", "web"]);
        std::thread::spawn(move || -> Finished { finish(&mut command) })
    };
    let calls: Vec<_> = (0..50).map(|_| reload()).collect();
    for call in calls {
        call.join().expect("a reload").ok();
    }
    stage.only(2);
    let (last, _) = stage.haproxy.serving(&stage.scene).expect("it serves");
    assert!((2..=51).contains(&last), "generation {last}");
    stage.wait_generations(&[(last, "serving")]);
    stage.nothing_failed();
}

// Behaviour of a single guest.

/// CPU time of a process, user and system.
fn cpu(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_ghost_is_removed_and_the_draining_one_burns_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return crate::harness::skip("removing ghosts needs root here");
    }
    let Some(mut stage) = Stage::of(Guest::Ghostly, &[], &[]) else { return };
    let half = stage.half_a_request();
    stage.reload(2);
    stage.haproxy.supervisor.wait_line("removed ghosts from its epoll sets");
    let old = stage.pid(1);
    let (before, begun) = (cpu(old), Instant::now());
    stage.wait_answers(400);
    let (burnt, took) = (cpu(old).saturating_sub(before), begun.elapsed());
    assert!(burnt * 10 <= took, "it burnt {burnt:?} in {took:?}");
    let answer = half.complete();
    assert!(answer.contains("x-generation: 1"), "{answer}");
    stage.wait_generations(&[(2, "serving")]);
    stage.nothing_failed();
}

#[test]
fn a_stranger_that_accepts_is_named() {
    let Some(stage) = Stage::of(Guest::Activated, &[], &[]) else { return };
    // The stranger runs at once when a client connects; without a processor meanwhile it shows
    // nothing.
    let script = "import os, select, socket\n\
                  s = socket.socket(fileno=3)\n\
                  try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n\
                  except OSError: pass\n\
                  print('up', os.getpid(), flush=True)\n\
                  while True:\n\
                  \x20   select.select([s], [], [])\n\
                  \x20   try: s.accept()[0].close()\n\
                  \x20   except BlockingIOError: pass\n";
    let mut command = stage.scene.bindonce("exec");
    command.args(["--listen", "web", "--", "python3", "-c", script]);
    let mut stranger = Process::start(&mut command);
    stranger.wait_line("up");
    let said = stage.haproxy.reload(&stage.scene).fails(1);
    assert!(said.contains("generation 2 serves"), "{said}");
    assert!(said.contains(&format!("pid {}", stranger.pid())), "{said}");
    stranger.kill();
    stage.reload(3);
}

/// That generation was never told to end, and waits forever.
#[test]
fn one_that_has_closed_its_listener_by_itself_ends_with_the_supervisor() {
    let (scene, _broker) = Scene::with_broker();
    let script = "import os, socket, time\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        web = socket.socket(fileno=int(os.environ['web']))\n\
        if os.environ['BINDONCE_GENERATION'] == '1': web.close()\n\
        time.sleep(1000)\n";
    let mut command = scene.bindonce("run");
    let listen = format!("web={}", scene.address());
    command.args(["--name", "web", "--listen", &listen, "--", "python3", "-c", script]);
    let mut supervisor = Process::start(&mut command);
    supervisor.wait_line(": serving generation=2 ");
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    assert!(supervisor.story().contains(": gone: SIGTERM generation=1 "), "{}", supervisor.story());
}

#[test]
fn ready_said_by_a_stranger_is_ignored() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    // Prints where it should report readiness, and never does.
    let mut command = scene.bindonce("run");
    command.args(["--name", "web", "--ready-timeout", "4s", "--listen", &format!("web={address}")]);
    command.args(["--", "sh", "-c", "echo socket $NOTIFY_SOCKET; exec sleep 1000"]);
    let mut supervisor = Process::start(&mut command);
    let line = supervisor.wait_line("socket @");
    let name = line.trim_start_matches("socket @");
    // Repeatedly, and from a process that has ended when it is looked at.
    let script = format!(
        "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         s.setblocking(False)\n\
         if os.getuid() == 0: os.setuid(65534)\n\
         s.connect(b'\\x00' + b'{name}'); s.send(b'READY=1'); end = time.time() + 2\n\
         while time.time() < end:\n\
         \x20   try: s.send(b'READY=1')\n\
         \x20   except OSError: time.sleep(0.001)\n"
    );
    finish(scene.command("python3").args(["-c", &script])).ok();
    supervisor.wait_line("READY=1 ignored");
    assert_eq!(supervisor.wait_exit().code(), Some(1), "{}", supervisor.story());
    let story = supervisor.story();
    assert!(story.contains("not ready within 4s"), "{story}");
    let lines = story.lines().filter(|line| line.contains("READY=1 ignored")).count();
    assert!(lines <= 20, "{lines} lines");
}

#[test]
fn descriptors_and_variables_are_what_was_asked_for() {
    let (scene, _broker) = Scene::with_broker();
    let (web, admin) = (scene.address(), scene.address());
    let script = "[ $LISTEN_PID = $$ ] && \
                  echo said $LISTEN_FDS $LISTEN_FDNAMES $web $admin_a $NGINX $ONE $GEN; \
                  exec sleep 1000";
    let mut command = scene.bindonce("run");
    command.args(["--listen", &format!("web={web}"), "--listen", &format!("admin-a={admin}")]);
    command.args(["--variable", "NGINX={fds:;};", "--variable", "ONE={fd:admin-a}"]);
    command.args(["--variable", "GEN={service}-{generation}", "--ready-delay", "10ms"]);
    let mut supervisor = Process::start(command.args(["--", "sh", "-c", script]));
    eventually("the program to have said it, and to serve", || {
        let story = supervisor.story();
        let said = story.contains("said 2 web:admin-a 3 4 3;4; 4 sh-1");
        (said && story.contains("serving")).then_some(())
    });
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn options_that_do_not_fit_the_program_are_refused_before_anything_is_started() {
    let scene = Scene::new();
    let run = |words: &[&str]| {
        let mut command = scene.bindonce("run");
        finish(command.args(words)).fails(2)
    };
    for (words, expected) in [
        (&["--retire-signal", "QUIT", "--", "haproxy", "-f", "x"][..], "--kind program"),
        (&["--ready-delay", "1s", "--", "haproxy", "-f", "x"], "--ready-delay"),
        (&["--as", "nginx", "--", "haproxy", "-f", "x"], "--as"),
        (&["--as", "nginx", "--intercept", "--", "nginx"], "cannot be used with"),
        (&["--", "nginx"], "--listen NAME=ADDR"),
        (&["--listen", "web=:1", "--no-admin", "--", "nginx"], "--kind haproxy"),
        (&["--listen", "web=:1", "--variable", "A={fd:b}", "--", "nginx"], "--listen b=ADDR"),
        (&["--listen", "web=:1", "--variable", "A={x}", "--", "nginx"], "{x}"),
        (&["--listen", "a-b=:1", "--listen", "a.b=:2", "--", "nginx"], "$a_b"),
        (&["--listen", "web=:1", "--retire-signal", "KILL", "--", "nginx"], "SIGKILL"),
        (&["--listen", "web=:1", "--watch", "--", "nginx"], "--watch"),
    ] {
        let said = run(words);
        assert!(said.contains(expected), "{words:?}: {said}");
    }
}
