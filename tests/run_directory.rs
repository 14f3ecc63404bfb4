//! The directory of a service that cannot be written, is removed, or becomes another user's:
//! clients notice nothing, a dead haproxy is started again, and messages name a remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal::SIGKILL;

use crate::harness::{Haproxy, Scene, Stage, config, eventually, finish, own_mounts, skip};

/// A service whose directory is its own file system; none where that needs root.
fn on_a_small_disk() -> Option<Stage> {
    let scene = Scene::new();
    let place = scene.path("web.d");
    fs::create_dir(&place).expect("a directory");
    let options = Some("size=128k,mode=0700");
    let mounted = own_mounts()
        .and_then(|()| mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), options));
    if let Err(error) = mounted {
        skip(&format!("no file system of its own: {error}"));
        return None;
    }
    Stage::start_on(scene, Haproxy::system(), &[], &[])
}

/// Ends everything and unmounts the file system, so that the directory can be removed.
fn take_away(stage: Stage) {
    let place = stage.scene.path("web.d");
    let Stage { mut haproxy, broker, scene, .. } = stage;
    haproxy.supervisor.terminate();
    drop((haproxy, broker));
    umount2(&place, MntFlags::MNT_DETACH).expect("taking it away");
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
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    // A dead haproxy is started again all the same, also by a supervisor that took it over.
    stage.answered_throughout(Duration::from_secs(1));
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

/// A service on a full disk, which has lost the copy on which its generation was started; and the
/// file that fills the disk.
fn full_without_a_copy() -> Option<(Stage, fs::File)> {
    let stage = on_a_small_disk()?;
    let mut file = fs::File::create(stage.scene.path("web.d/ballast")).expect("a file");
    let mut fill = || {
        while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written > 0) {}
    };
    fill();
    fs::remove_file(stage.scene.path("web.d/generation-1/000-haproxy.cfg")).expect("the copy");
    fill();
    Some((stage, file))
}

/// No restart runs on half of a copy.
#[test]
fn a_copy_that_a_full_run_directory_cannot_take_is_started_from_elsewhere() {
    let Some((stage, file)) = full_without_a_copy() else { return };
    for generation in [1, 2] {
        stage.signal(generation, SIGKILL);
        stage.wait_generations(&[(generation + 1, "serving")]);
        stage.only(1);
    }
    fs::remove_file(stage.scene.path("web.d/ballast")).expect("making room");
    drop(file);
    stage.reload(2);
    take_away(stage);
}

/// As logind removes it with the last session of its user (`RemoveIPC=`).
#[test]
fn a_directory_in_memory_that_others_have_removed_is_replaced() {
    let Some((stage, file)) = full_without_a_copy() else { return };
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    let name = format!("bindonce-{}-", stage.haproxy.supervisor.pid());
    let places = [stage.scene.path(""), "/dev/shm".into(), "/run".into()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let mut made = entries.filter(|it| it.file_name().to_string_lossy().starts_with(&name));
    let made = made.next().expect("the directory in memory").path();
    fs::remove_dir_all(&made).expect("removing it");
    stage.signal(2, SIGKILL);
    stage.wait_generations(&[(3, "serving")]);
    stage.only(1);
    assert!(!made.exists(), "its name may be another user's by now");
    fs::remove_file(stage.scene.path("web.d/ballast")).expect("making room");
    drop(file);
    take_away(stage);
}

/// As an older version left it when the disk was full.
#[test]
fn a_copy_that_was_cut_off_is_written_again() {
    let Some(stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let copy = stage.scene.path("web.d/generation-1/000-haproxy.cfg");
    let text = fs::read(&copy).expect("the copy");
    fs::write(&copy, "").expect("cutting it off");
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.only(1);
    assert_eq!(fs::read(&copy).expect("the copy"), text);
}

#[test]
fn a_read_only_run_directory_fails_a_reload_and_no_restart() {
    let Some(mut stage) = on_a_small_disk() else { return };
    let place = stage.scene.path("web.d");
    // Bound over itself: files open for writing keep a file system writable.
    let bind =
        |flags| mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>);
    bind(MsFlags::empty()).expect("mounting it over itself");
    bind(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).expect("making it read-only");
    let said = stage.refused(2);
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains("generation 1 still serves"), "{said}");
    stage.wait_generations(&[(1, "serving")]);
    stage.only(1);
    stage.answered_throughout(Duration::from_secs(1));
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(3, "serving")]);
    stage.only(1);
    umount2(&place, MntFlags::MNT_DETACH).expect("making it writable");
    stage.reload(3);
    take_away(stage);
}

/// The message of a first start in a directory that takes no files; and a directory with room for
/// only the lock and the control socket serves.
#[test]
fn a_first_start_without_room_says_what_to_do_or_serves() {
    let Some(program) = Haproxy::system() else { return };
    let Some(stage) = on_a_small_disk() else { return };
    take_away(stage);
    let scene = Scene::new();
    let place = scene.path("web.d");
    fs::create_dir(&place).expect("a directory");
    let file = scene.write("h.cfg", &config(scene.address(), 1));
    let _broker = scene.broker();
    let on = |flags, options: &str| {
        mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some(options)).expect("a file system");
    };
    let off = || umount2(&place, MntFlags::MNT_DETACH).expect("unmounted");
    let read_only = (MsFlags::MS_RDONLY, "mode=0700", "Read-only file system");
    let no_room = "No space left on device";
    // Room for nothing, for the lock, and for all but the control socket.
    let full = [1, 2, 4].map(|files| format!("mode=0700,nr_inodes={files}"));
    let full = full.iter().map(|options| (MsFlags::empty(), options.as_str(), no_room));
    for (flags, options, reason) in full.chain([read_only]) {
        on(flags, options);
        let mut run = scene.bindonce("run");
        run.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file);
        let said = finish(&mut run).fails(1);
        let error = said.lines().find(|line| line.starts_with("bindonce: ")).expect(&said);
        assert_eq!(error.matches(reason).count(), 1, "{said}");
        assert!(error.contains(place.to_str().expect("its path")), "{said}");
        assert!(said.contains("hint: make room there, or mount it writable"), "{said}");
        off();
    }
    on(MsFlags::empty(), "mode=0700,nr_inodes=5");
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.supervisor.wait_line("is full, read-only or gone; using ");
    let (first, pid) = haproxy.wait_serving(&scene);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), SIGKILL).expect("haproxy");
    eventually("another one", || {
        haproxy.serving(&scene).filter(|(generation, _)| *generation > first)
    });
    haproxy.supervisor.terminate();
    off();
}

/// Removes a directory that its supervisor makes anew as soon as something is missing there.
fn remove(directory: &Path) {
    let gone = directory.with_file_name("gone");
    fs::rename(directory, &gone).expect("the directory");
    fs::remove_dir_all(&gone).expect("what it was");
}

#[test]
fn the_directory_of_a_service_that_was_removed_is_made_anew() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let (directory, again) = (stage.scene.path("web.d"), "were removed, and are there again");
    let metrics = directory.join("metrics.sock");
    remove(&directory);
    stage.haproxy.supervisor.wait_line(again);
    let mode = fs::symlink_metadata(&directory).expect("the directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // What the watchdog keeps for the next supervisor is asked for there.
    assert!(directory.join("kept.sock").exists());
    assert!(stage.scene.run("status", &[]).ok().contains("web"));
    eventually("metrics", || metrics.exists().then_some(()));
    stage.signal(1, SIGKILL);
    stage.wait_generations(&[(2, "serving")]);
    stage.reload(2);
    // Before the directory could be recreated, or with only part of it gone.
    remove(&directory);
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
    // The next supervisor finds everything.
    stage.kill_supervisor();
    stage.start_supervisor();
    stage.haproxy.wait_serving(&stage.scene);
    stage.reload(4);
}

/// Without a free descriptor the directory can be neither watched nor repaired; both are tried
/// again.
#[test]
fn a_directory_that_cannot_be_watched_for_a_while_is_repaired_afterwards() {
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
    let pid = stage.haproxy.supervisor.pid().to_string();
    let limit = |limit: &str| {
        let limit = format!("--nofile={limit}:4096");
        finish(stage.scene.command("prlimit").args(["--pid", &pid, &limit])).ok();
    };
    limit("3");
    fs::remove_file(stage.scene.path("web.d/control.sock")).expect("the control socket");
    stage.haproxy.supervisor.wait_line("cannot be made anew");
    let line = stage.haproxy.supervisor.wait_line("cannot be watched");
    assert!(line.contains("Too many open files") && line.contains("LimitNOFILE="), "{line}");
    limit("4096");
    stage.haproxy.supervisor.wait_line("were removed, and are there again");
    stage.reload(2);
}

#[test]
fn what_another_user_has_put_in_the_place_of_the_directory_is_not_used() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root, to make another user's directory");
    }
    let Some(mut stage) = Stage::start(Haproxy::system(), &[], &[]) else { return };
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
    // This file has counters for metrics alone.
    assert!(names.all(|name| name == "counters.json"), "nothing else of ours");
    fs::remove_dir_all(&directory).expect("it can be");
    stage.haproxy.supervisor.wait_line("were removed, and are there again");
    stage.reload(2);
}
