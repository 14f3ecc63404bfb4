//! What can go wrong with a generation: each test one fault, under load. The
//! address answers throughout, no stale answer comes after `reload` has returned,
//! and the state afterwards is named.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTOU, SIGUSR1};

use crate::harness::{
    Fault, Finished, Haproxy, Stage, Stranger, eventually, finish, listening, skip,
};
use Fault::{Deaf, Hangs, Twice, Waits};

/// No client waits longer than this where nothing has to time out.
const PROMPTLY: Duration = Duration::from_secs(1);
/// A generation that is not known to have stopped accepting is ended after this.
const RETIRE: [&str; 2] = ["--retire-timeout", "1s"];

#[track_caller]
fn stage(faults: &[(u64, &[Fault])], arguments: &[&str]) -> Option<Stage> {
    Stage::start(Haproxy::system(), faults, arguments)
}

impl Stage {
    /// A reload that must fail, with this tag in the configuration; gives what was said.
    #[track_caller]
    fn refused(&self, tag: u64) -> String {
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
    assert!(said.contains("SIGKILL") && said.contains("generation 1 serves on"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
    stage.reload(3);
}

#[test]
fn killed_when_it_was_ready_the_older_one_serves_on() {
    // Deaf to SIGTTOU the older one keeps the handover waiting.
    let Some(mut stage) = stage(&[(1, &[Deaf(SIGTTOU, 0)])], &[]) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("ready: it has bound");
    stage.signal(2, SIGKILL);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let said = reload.story();
    assert!(
        said.contains("about to take over") && said.contains("generation 1 serves on"),
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
    // The proof waits, with the older one paused.
    let stranger = Stranger::at(&stage);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("Paused frontend");
    stage.signal(2, SIGKILL);
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    drop(stranger);
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
}

/// It has the listeners and answers nobody: the reload is not over before it has been asked again.
#[test]
fn one_that_is_stopped_when_it_takes_over_is_continued_and_asked_again() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    stage.configure(2);
    // The proof waits, with the older one paused.
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
    assert!(said.contains("generation 1 serves on"), "{said}");
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
    assert!(said.contains("generation 1 serves on"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.reload(3);
    stage.answered_throughout(PROMPTLY);
}

#[test]
fn a_binary_that_is_missing_is_named() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    let away = stage.scene.path("away");
    fs::rename(&stage.program, &away).expect("moving it away");
    let said = stage.refused(2);
    assert!(said.contains(&stage.program.display().to_string()), "{said}");
    assert!(said.contains("generation 1 serves on"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    fs::rename(&away, &stage.program).expect("moving it back");
    stage.reload(3);
    stage.answered_throughout(PROMPTLY);
}

// Signals that are lost, late or doubled.

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

#[test]
fn one_that_is_stopped_at_the_moment_of_the_signal_is_woken() {
    let Some(stage) = stage(&[], &[]) else { return };
    stage.signal(1, SIGSTOP);
    stage.reload(2);
    stage.wait_generations(&[(2, "serving")]);
}

/// It serves nobody, so that each moment before the new one is an outage: its stick tables are not waited for.
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
    // The first has read its configuration; the second must not be answered by it.
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

// A run directory that cannot be written.

/// A service whose directory is a file system of its own, or nothing where that needs root.
fn on_a_small_disk() -> Option<Stage> {
    use nix::mount::{MsFlags, mount};
    let scene = crate::harness::Scene::new();
    let private = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).and_then(|()| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
    });
    let place = scene.path("web.d");
    fs::create_dir(&place).expect("a directory");
    let options = Some("size=128k,mode=0700");
    let mounted = private
        .and_then(|()| mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), options));
    if let Err(error) = mounted {
        crate::harness::skip(&format!("no file system of its own: {error}"));
        return None;
    }
    Stage::start_on(scene, Haproxy::system(), &[], &[])
}

/// Ends everything and takes the file system away, so that the directory can be removed.
fn take_away(stage: Stage) {
    let place = stage.scene.path("web.d");
    let Stage { mut haproxy, broker, scene, .. } = stage;
    haproxy.supervisor.terminate();
    drop((haproxy, broker));
    nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).expect("taking it away");
    drop(scene);
}

#[test]
fn a_full_run_directory_fails_a_reload_and_no_restart() {
    let Some(mut stage) = on_a_small_disk() else { return };
    let ballast = stage.scene.path("web.d/ballast");
    let mut file = fs::File::create(&ballast).expect("a file");
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written > 0) {}
    let said = stage.refused(2);
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("generation 1 serves on"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    // What dies is started again all the same, also by a supervisor that has found it.
    stage.answered_throughout(PROMPTLY);
    stage.configure(1);
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(3, "serving")]);
    stage.only(1);
    stage.kill_supervisor();
    stage.start_supervisor();
    stage.wait_generations(&[(3, "serving")]);
    stage.signal(3, SIGKILL);
    stage.wait_generations(&[(4, "serving")]);
    stage.only(1);
    drop(file);
    fs::remove_file(&ballast).expect("making room");
    stage.reload(3);
    take_away(stage);
}

#[test]
fn a_read_only_run_directory_fails_a_reload_and_no_restart() {
    use nix::mount::{MsFlags, mount, umount2};
    let Some(mut stage) = on_a_small_disk() else { return };
    let place = stage.scene.path("web.d");
    // Over itself: files that are open for writing keep a file system writable.
    let bind =
        |flags| mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>);
    bind(MsFlags::empty()).expect("mounting it over itself");
    bind(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).expect("making it read-only");
    let said = stage.refused(2);
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains("generation 1 serves on"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(PROMPTLY);
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(3, "serving")]);
    stage.only(1);
    umount2(&place, nix::mount::MntFlags::MNT_DETACH).expect("making it writable");
    stage.reload(3);
    take_away(stage);
}

/// What a first start in a directory says that takes no files, and that one with room for the lock and
/// the control socket alone serves.
#[test]
fn a_first_start_without_room_says_what_to_do_or_serves() {
    use nix::mount::{MsFlags, mount};
    let Some(program) = Haproxy::system() else { return };
    let Some(stage) = on_a_small_disk() else { return };
    take_away(stage);
    let scene = crate::harness::Scene::new();
    let place = scene.path("web.d");
    fs::create_dir(&place).expect("a directory");
    let file = scene.write("h.cfg", &crate::harness::config(scene.address(), 1));
    let _broker = scene.broker();
    let on = |flags, options: &str| {
        mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some(options)).expect("a file system");
    };
    let off = || nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    let read_only = (MsFlags::MS_RDONLY, "mode=0700", "Read-only file system");
    let no_room = "No space left on device";
    // Room for nothing, for the lock, and for all but the control socket.
    let full = [1, 2, 4].map(|files| format!("mode=0700,nr_inodes={files}"));
    let full = full.iter().map(|options| (MsFlags::empty(), options.as_str(), no_room));
    for (flags, options, reason) in full.chain([read_only]) {
        on(flags, options);
        let mut run = scene.bindonce("run");
        run.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file);
        let said = crate::harness::finish(&mut run).fails(1);
        let error = said.lines().find(|line| line.starts_with("bindonce: ")).expect(&said);
        assert_eq!(error.matches(reason).count(), 1, "{said}");
        assert!(error.contains(place.to_str().expect("its path")), "{said}");
        assert!(said.contains("hint: make room there, or mount it writable"), "{said}");
        off();
    }
    on(MsFlags::empty(), "mode=0700,nr_inodes=5");
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.supervisor.wait_line("takes no files; those of this start lie elsewhere");
    let (first, pid) = haproxy.wait_serving(&scene);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), SIGKILL).expect("haproxy");
    crate::harness::eventually("another one", || {
        haproxy.serving(&scene).filter(|(generation, _)| *generation > first)
    });
    haproxy.supervisor.terminate();
    off();
}

#[test]
fn the_directory_of_a_service_that_was_removed_is_made_anew() {
    let Some(mut stage) = stage(&[], &[]) else { return };
    let (directory, again) = (stage.scene.path("web.d"), "were removed, and are there again");
    let metrics = directory.join("metrics.sock");
    fs::remove_dir_all(&directory).expect("the directory");
    stage.haproxy.supervisor.wait_line(again);
    let mode = fs::symlink_metadata(&directory).expect("the directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(stage.scene.run("status", &[]).ok().contains("web"));
    crate::harness::eventually("metrics", || metrics.exists().then_some(()));
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.reload(2);
    // Nobody has had the time to make it anew, or only some of it is gone.
    fs::remove_dir_all(&directory).expect("the directory");
    stage.signal(3, SIGKILL);
    stage.haproxy.supervisor.wait_line(again);
    stage.wait_generations(&[(4, "serving")]);
    for gone in ["control.sock", "lock"] {
        fs::remove_file(directory.join(gone)).expect(gone);
        stage.haproxy.supervisor.wait_line(again);
    }
    fs::remove_dir_all(directory.join("generation-3")).expect("the copy that serves");
    stage.signal(4, SIGKILL);
    stage.wait_generations(&[(5, "serving")]);
    stage.only(2);
    stage.reload(3);
    // The next supervisor finds all of it.
    stage.kill_supervisor();
    stage.start_supervisor();
    stage.haproxy.wait_serving(&stage.scene);
    stage.reload(4);
}

#[test]
fn what_another_user_has_put_in_the_place_of_the_directory_is_not_used() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to make another user's directory");
    }
    let Some(mut stage) = stage(&[], &[]) else { return };
    let directory = stage.scene.path("web.d");
    let theirs = stage.scene.path("theirs");
    fs::create_dir(&theirs).expect("a directory");
    std::os::unix::fs::chown(&theirs, Some(54321), None).expect("chown");
    fs::rename(&directory, stage.scene.path("was")).expect("rename");
    fs::rename(&theirs, &directory).expect("rename");
    stage.haproxy.supervisor.wait_line("cannot be made anew");
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(1);
    let names = fs::read_dir(&directory).expect("it is there");
    let mut names = names.map(|entry| entry.expect("an entry").file_name());
    // These are numbers for metrics alone.
    assert!(names.all(|name| name == "counters.json"), "nothing else of ours");
    fs::remove_dir_all(&directory).expect("it can be");
    stage.haproxy.supervisor.wait_line("were removed, and are there again");
    stage.reload(2);
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
