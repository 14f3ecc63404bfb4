//! After every start, haproxy's real listeners are compared with the claimed ones. Here haproxy
//! sees a variable that bindonce does not, and takes another branch.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Haproxy, Scene, config, eventually, listening, serves, skip};

/// A haproxy that sets a variable for itself.
fn other_minded(scene: &Scene, program: &Path) -> PathBuf {
    other_minded_if(scene, program, "true")
}

/// The same, if this shell command succeeds.
fn other_minded_if(scene: &Scene, program: &Path, is_so: &str) -> PathBuf {
    let program = program.display();
    let text =
        format!("#!/bin/sh\nif {is_so}; then BRANCH=b; export BRANCH; fi\nexec {program} \"$@\"\n");
    let path = scene.write("haproxy", &text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

/// The configuration with more lines, whose conditions haproxy evaluates differently.
fn with(address: SocketAddr, lines: &str, tag: u64) -> String {
    config(address, tag).replace("    http-request", &format!("{lines}    http-request"))
}

/// Lines whose address haproxy binds itself, and lines whose address it passes over; `@` stands for
/// an address.
const OWN: [&str; 2] = [
    ".if streq(\"$BRANCH\",b)\n    bind @\n.endif\n",
    ".if defined(BRANCH)\n    bind \"${NONE-@}\"\n.endif\n",
];
const PASSED_OVER: &str = ".if !streq(\"$BRANCH\",b)\n    bind @\n.endif\n";

fn compared(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let program = other_minded(&scene, &program);
    let abstract_name = format!("abns@compared-{}", std::process::id());
    let path = scene.path("other.sock").display().to_string();
    let places = [other.to_string(), path, abstract_name];
    // A service does not start with it.
    for (lines, place) in [(OWN[0], &places[1]), (PASSED_OVER, &places[0])] {
        let file = scene.write("haproxy.cfg", &with(address, &lines.replace('@', place), 1));
        let mut haproxy = Haproxy::begin(&scene, &[], &program, &file);
        assert_eq!(haproxy.supervisor.wait_exit().code(), Some(1));
        let story = haproxy.supervisor.story();
        assert!(story.contains(place), "{story}");
    }
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    for place in &places {
        // haproxy renames the path that it has bound, so it cannot be the broker's.
        for lines in OWN.iter().filter(|_| place.starts_with('/')) {
            scene.write("haproxy.cfg", &with(address, &lines.replace('@', place), 2));
            let said = haproxy.reload(&scene).fails(1);
            assert!(said.contains("by itself, of the bind line"), "{place}: {said}");
            assert!(said.contains(place), "{place}: {said}");
            assert!(said.contains("haproxy.cfg:11"), "{place}: {said}");
            assert!(said.contains("generation 3 still serves"), "{place}: {said}");
            serves(address, 1);
        }
        scene.write("haproxy.cfg", &with(address, &PASSED_OVER.replace('@', place), 2));
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains("haproxy does not listen on"), "{place}: {said}");
        assert!(said.contains("haproxy.cfg:11"), "{place}: {said}");
        serves(address, 1);
    }
    assert_eq!(listening(other), [], "nothing of it stays bound");
    eventually("what failed to be gone", || (scene.haproxies().len() == 1).then_some(()));
    // A configuration that both read the same takes over.
    let text = with(address, &format!("    bind {}\n", places.join(",")), 3);
    scene.write("haproxy.cfg", &text);
    haproxy.reload(&scene).ok();
    serves(address, 3);
    // Older generations that cannot be paused may have stopped for good; the reload reports the
    // difference all the same.
    let extra = PASSED_OVER.replace('@', &scene.address().to_string());
    scene.write(
        "haproxy.cfg",
        &text.replace("    http-request", &format!("{extra}    http-request")),
    );
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains("haproxy does not listen on"), "{said}");
}

#[test]
fn what_haproxy_listens_on_is_compared_with_what_was_claimed() {
    compared(Haproxy::system());
}

#[test]
fn what_haproxy_3_0_listens_on_is_compared() {
    compared(Haproxy::fetched("3.0"));
}

#[test]
fn what_haproxy_3_2_listens_on_is_compared() {
    compared(Haproxy::fetched("3.2"));
}

#[test]
fn many_listeners_are_compared_too() {
    let Some(program) = Haproxy::system() else { return };
    let Some(scene) = Scene::isolated("no network of its own") else { return };
    let _broker = scene.broker();
    let address = scene.address();
    let program = other_minded(&scene, &program);
    let range = "    bind 127.0.0.1:20000-20099\n";
    let file = scene.write("haproxy.cfg", &with(address, range, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let lines = PASSED_OVER.replace('@', "127.0.0.1:21000-21001");
    scene.write("haproxy.cfg", &with(address, &format!("{range}{lines}"), 2));
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains("does not listen on 127.0.0.1:21000"), "{said}");
    assert!(said.contains("and 1 more"), "{said}");
    serves(address, 1);
}

/// Without an admin socket, haproxy's epoll sets show its listeners, a worker's too.
#[test]
fn without_an_admin_socket_it_is_compared_too() {
    let plain = ("", &["--no-admin"][..]);
    // Where no older generation could resume, haproxy is asked for 10 seconds, whatever its
    // version.
    let nested = ("    master-worker\n", &["--no-admin", "--nested-master"][..]);
    let masters = Haproxy::with_masters().take(1).map(|program| (program, nested));
    for (program, (global, options)) in Haproxy::all().map(|one| (one, plain)).chain(masters) {
        let (scene, _broker) = Scene::with_broker();
        let (address, other) = (scene.address(), scene.address());
        let program = other_minded(&scene, &program);
        let write = |lines: &str, tag| {
            let text = with(address, lines, tag);
            scene.write("haproxy.cfg", &text.replace("global\n", &format!("global\n{global}")))
        };
        let extra = PASSED_OVER.replace('@', &other.to_string());
        let mut none = Haproxy::begin(&scene, options, &program, &write(&extra, 1));
        assert_eq!(none.supervisor.wait_exit().code(), Some(1), "{}", none.supervisor.story());
        let file = write("", 1);
        let haproxy = Haproxy::start_with(&scene, options, &program, &file);
        write(&extra, 2);
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains(&format!("haproxy does not listen on {other}")), "{said}");
        if global.is_empty() {
            serves(address, 1);
        }
        write("", 3);
        haproxy.reload(&scene).ok();
        serves(address, 3);
    }
}

/// haproxy is not held when it is ready. It is compared while the older generation is paused.
#[test]
fn where_haproxy_is_not_held_what_it_has_bound_is_compared_too() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (address, other) = (scene.address(), scene.address());
        let program = other_minded(&scene, &program);
        let write = |lines: &str, tag| {
            let text = with(address, lines, tag);
            let global = "global\n    insecure-setuid-wanted\n";
            scene.write("haproxy.cfg", &text.replace("global\n", global))
        };
        let haproxy = Haproxy::start(&scene, &program, &write("", 1));
        write(&OWN[0].replace('@', &other.to_string()), 2);
        let said = haproxy.reload(&scene).fails(1);
        let told = format!("has bound {other} by itself, of the bind line");
        assert!(said.contains(&told), "{said}");
        assert!(said.contains("generation 1 still serves"), "{said}");
        serves(address, 1);
        write("", 3);
        haproxy.reload(&scene).ok();
        serves(address, 3);
    }
}

/// A nested master executes itself again while its worker makes an epoll set: for
/// a moment neither has one.
#[test]
fn where_no_epoll_set_is_there_yet_it_is_looked_for_again() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    // The script reports readiness (-sf) before it executes haproxy.
    let early = "for pid; do true; done; kill -USR1 $pid; sleep 0.3";
    let program = other_minded_if(&scene, &program, early);
    let extra = PASSED_OVER.replace('@', &other.to_string());
    let file = scene.write("haproxy.cfg", &with(address, &extra, 1));
    let mut haproxy = Haproxy::begin(&scene, &["--no-admin"], &program, &file);
    let ended = haproxy.supervisor.wait_exit();
    assert_eq!(ended.code(), Some(1), "{}", haproxy.supervisor.story());
    let story = haproxy.supervisor.story();
    assert!(story.contains(&format!("haproxy does not listen on {other}")), "{story}");
}

/// Neither an admin socket nor an epoll set shows the listeners.
#[test]
fn where_it_is_not_to_be_seen_that_is_told() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let text = with(address, "", 1).replace("global\n", "global\n    noepoll\n");
    let file = scene.write("haproxy.cfg", &text);
    let mut haproxy = Haproxy::start_with(&scene, &["--no-admin"], &program, &file);
    haproxy.supervisor.wait_line("which addresses haproxy listens on cannot be seen");
    serves(address, 1);
}

/// A listener that no connection reaches shows nothing. The older generation is paused all the
/// same, and keeps serving.
#[test]
fn beside_a_listener_that_shows_nothing_it_is_compared_before_the_older_one_stops() {
    for program in Haproxy::all() {
        let Some(scene) = Scene::isolated("no network of its own") else { return };
        let _broker = scene.broker();
        let address = scene.address();
        let program = other_minded(&scene, &program);
        let unseen = "    bind 10.99.99.99:9003 transparent\n";
        let file = scene.write("haproxy.cfg", &with(address, unseen, 1));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let lines = format!("{unseen}{}", PASSED_OVER.replace('@', "127.0.0.1:21000"));
        scene.write("haproxy.cfg", &with(address, &lines, 2));
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains("does not listen on 127.0.0.1:21000"), "{said}");
        assert!(said.contains("generation 1 still serves"), "{said}");
        serves(address, 1);
    }
}

/// No line was claimed, and haproxy is started all the same: it gets the socket when it binds.
#[test]
fn a_configuration_whose_every_line_is_read_otherwise_serves_too() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let program = other_minded(&scene, &program);
        let admin = scene.path("admin.sock");
        let text = |tag| {
            let socket = format!("global\n    stats socket {}\n", admin.display());
            config(address, tag).replace("global\n", &socket)
        };
        let mut haproxy = Haproxy::start(&scene, &program, &scene.write("haproxy.cfg", &text(1)));
        if haproxy.supervisor.story().contains("cannot be seen here") {
            return skip("bind() of haproxy cannot be seen: seccomp(2) is refused");
        }
        for (line, tag) in OWN.iter().zip(2..) {
            let line = line.replace('@', &address.to_string());
            let otherwise = text(tag).replace(&format!("    bind {address}\n"), &line);
            scene.write("haproxy.cfg", &otherwise);
            let said = haproxy.reload(&scene).ok();
            assert!(said.contains("which bindonce reads otherwise"), "{said}");
            serves(address, tag);
        }
        // A configuration without any line is refused.
        scene.write("haproxy.cfg", &text(4).replace(&format!("    bind {address}\n"), ""));
        assert!(haproxy.reload(&scene).fails(1).contains("--allow-empty"));
        serves(address, 3);
    }
}

/// haproxy binds an address that it was not given, and gets the broker's socket, under an upgraded
/// supervisor too.
fn read_otherwise(program: Option<PathBuf>) {
    let Some(program) = program else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let program = other_minded(&scene, &program);
    let name = format!("abns@otherwise-{}-{}", std::process::id(), other.port());
    let lines: String = OWN
        .iter()
        .zip([&other.to_string(), &name])
        .map(|(line, at)| line.replace('@', at))
        .collect();
    let write = |lines: &str, tag| scene.write("haproxy.cfg", &with(address, lines, tag));
    let mut haproxy = Haproxy::start(&scene, &program, &write(&lines, 1));
    if haproxy.supervisor.story().contains("cannot be seen here") {
        return skip("bind() of haproxy cannot be seen: seccomp(2) is refused");
    }
    let inode = || {
        let all = listening(other);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].inode
    };
    let first = inode();
    let mut plan = bindonce_load::Plan::new(other);
    plan.rate = Some(1000);
    let load = plan.start().expect("load");
    assert!(load.wait_for_token("1", DEADLINE), "answers");
    for tag in [2, 3] {
        scene.run("upgrade", &[]).ok();
        write(&lines, tag);
        let said = haproxy.reload(&scene).ok();
        for (place, line) in [(&other.to_string(), 11), (&name, 14)] {
            let line = format!("haproxy.cfg:{line}, which bindonce reads otherwise");
            assert!(
                said.contains(&format!("has bound {place} by itself, of the bind line")),
                "{said}"
            );
            assert!(said.contains(&line), "{said}");
        }
        assert!(said.contains("told to stop before it accepted"), "{said}");
        assert!(load.wait_for_token(&tag.to_string(), DEADLINE), "answers");
        assert_eq!(inode(), first);
    }
    // Where both read the same, the older generation is paused again, from the second reload on.
    for (tag, stops_first) in [(4, true), (5, false)] {
        write(&format!("    bind {other}\n"), tag);
        let said = haproxy.reload(&scene).ok();
        assert_eq!(said.contains("told to stop before it accepted"), stops_first, "{said}");
        assert!(load.wait_for_token(&tag.to_string(), DEADLINE), "answers");
    }
    assert_eq!(inode(), first);
    let report = load.stop();
    assert_eq!((report.failed(), report.stale), (0, 0), "{report}");
    let held = scene.run("list", &[]).ok();
    assert!(held.contains(&other.to_string()) && !held.contains(&name), "{held}");
}

#[test]
fn a_line_that_haproxy_reads_otherwise_has_the_brokers_socket() {
    read_otherwise(Haproxy::system());
}

#[test]
fn a_line_that_haproxy_3_2_reads_otherwise_has_the_brokers_socket() {
    read_otherwise(Haproxy::fetched("3.2"));
}

/// No other generation would serve, so haproxy continues, and the listeners that it misses are
/// reported.
#[test]
fn what_is_started_anew_is_compared_and_serves() {
    let Some(program) = Haproxy::system() else { return };
    for (arguments, bind) in
        [(&[][..], ""), (&["--no-admin"], ""), (&[], "    bind abns@compared-again-NAME\n")]
    {
        let (scene, _broker) = Scene::with_broker();
        let (address, other) = (scene.address(), scene.address());
        let flag = scene.path("flag");
        let test = format!("[ -e {} ]", flag.display());
        let program = other_minded_if(&scene, &program, &test);
        let bind = bind.replace("NAME", &format!("{}-{}", std::process::id(), other.port()));
        let lines = format!("{bind}{}", PASSED_OVER.replace('@', &other.to_string()));
        let file = scene.write("haproxy.cfg", &with(address, &lines, 1));
        let mut haproxy = Haproxy::start_with(&scene, arguments, &program, &file);
        let (_, pid) = haproxy.wait_serving(&scene);
        std::fs::write(flag, "").expect("the flag");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("haproxy");
        let told = haproxy.supervisor.wait_line("haproxy does not listen on");
        assert!(told.contains(&other.to_string()), "{told}");
        eventually("another generation serves", || {
            haproxy.serving(&scene).filter(|(generation, _)| *generation == 2)
        });
        serves(address, 1);
    }
}
