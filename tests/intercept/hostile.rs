//! Programs that want what they may not have, and kernels that refuse what we want.

use serde_json::json;

use super::{only, reload, run};
use crate::harness::{Process, Scene, eventually, root, skip};

#[test]
fn where_the_kernel_refuses_a_program_has_its_sockets_by_listen_or_an_error() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let script = "import os, socket, time\n\
        web = socket.socket(fileno=int(os.environ['web']))\n\
        tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        tell.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        print('inode is', os.fstat(web.fileno()).st_ino, flush=True)\n\
        time.sleep(1000)\n";
    let inner = |option: &str| {
        let listen = format!("web={address}");
        let mut words = scene.bindonce("run");
        words.args(["--name", "web", option, "--listen", &listen, "--"]);
        words.args(["python3", "-c", script]);
        let words = std::iter::once(words.get_program()).chain(words.get_args());
        words.map(|word| word.to_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    // What asks about the calls of both.
    let outer = |option: &str| {
        let mut command = scene.bindonce("run");
        command.args(["--name", "outer", "--ready-delay", "1ms", "--intercept", "/none", "--"]);
        Process::start(command.args(inner(option)))
    };
    let mut supervisor = outer("--intercept-if-possible");
    let inode = eventually("it to be started without, or the outer one to be refused", || {
        let story = supervisor.story();
        if !supervisor.is_running() && story.contains("cannot be intercepted") {
            skip("bind() cannot be intercepted: seccomp(2) is refused");
            return Some(None);
        }
        let without = story.contains("started with the sockets of --listen alone");
        let has =
            story.lines().find_map(|line| line.split_once("inode is "))?.1.parse::<u64>().ok()?;
        without.then_some(Some(has))
    });
    let Some(inode) = inode else { return };
    assert!(reload(&scene).contains("generation 2 serves"));
    assert_eq!(only(address), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    let mut supervisor = outer("--intercept");
    supervisor.wait_line("something around this program");
    supervisor.terminate();
}

#[test]
fn a_hostile_program_harms_only_itself() {
    let (scene, _broker) = Scene::with_broker();
    let (named, other) = (scene.address(), scene.address());
    let ports = [named.port().to_string(), other.port().to_string()];
    let script = root().join("tests/harness/hostile.py");
    let program = ["python3", script.to_str().expect("a path"), &ports[0], &ports[1]];
    let only_named = named.to_string();
    let Some(mut supervisor) = run(&scene, &[&only_named], &program) else { return };
    let inode = only(named);
    // A busy machine takes its time for each.
    for worst in ["rewrites", "floods", "thousand"] {
        supervisor.wait_line(&format!("{worst} is over"));
    }
    let line = supervisor.wait_line("did its worst");
    println!("{line}");
    if line.contains("i386 none") {
        skip("a bind() of an i386 program: this kernel runs none");
    } else if cfg!(target_arch = "x86_64") {
        // The same socket, not one of its own.
        assert!(line.contains(&format!("i386 {inode}")), "{line}, not {inode}");
    }
    if line.contains("stalled none") {
        skip("memory that stalls: userfaultfd(2) is refused");
    } else {
        // Also the one whose memory is there: its calls are looked at no more.
        assert!(line.contains("stalled [-1, -1, -1, -1]"), "{line}");
    }
    // Nothing is kept of the thousand and more that have bound.
    let open = std::fs::read_dir(format!("/proc/{}/fd", supervisor.pid())).expect("descriptors");
    let open = open.count();
    assert!(open < 100, "{open} descriptors");
    // Nothing was claimed but what is named, whatever was in its memory when.
    let held = scene.wire().call("list", &json!([]));
    let held = held["listeners"].as_array().expect("listeners");
    assert_eq!(held.len(), 1, "{held:?}");
    reload(&scene);
    assert_eq!(only(named), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

/// No filter sees it: it is told, with what to do, and what was bound by calls is not.
#[test]
fn what_is_bound_by_io_uring_is_told() {
    let (scene, _broker) = Scene::with_broker();
    let (ring, web) = (scene.address(), scene.address());
    let ports = [ring.port().to_string(), web.port().to_string()];
    let script = root().join("tests/harness/uring.py");
    let program = ["python3", script.to_str().expect("a path"), &ports[0], &ports[1]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let told = eventually("it to be told, or refused by the kernel", || {
        let story = supervisor.story();
        let mut lines = story.lines();
        lines
            .find(|line| line.contains("uring none") || line.contains("as by io_uring"))
            .map(str::to_owned)
    });
    if told.contains("uring none") {
        return skip(&format!("bind and listen by io_uring: {told}"));
    }
    assert!(told.contains(&ring.to_string()), "{told}");
    let held = scene.run("list", &[]).ok();
    assert!(held.contains(&ports[1]) && !held.contains(&ports[0]), "{held}");
    let events = scene.run("events", &["--name", "web"]).ok();
    assert!(events.contains("io_uring") && events.matches("foreign-bind").count() == 2, "{events}");
    // So do status and reload, of this address alone.
    let told = |text: &str| {
        let line = text.lines().find(|line| line.contains("io_uring")).unwrap_or_default();
        assert!(line.contains(&ring.to_string()) && !line.contains(&ports[1]), "{text}");
    };
    told(&scene.run("status", &[]).ok());
    let reloaded = scene.run("reload", &["--name", "web"]).ok();
    told(&reloaded);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
