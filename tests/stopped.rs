//! A supervisor that does not run for a while (SIGSTOP, a frozen container): its deadlines do not
//! count the time in which it could not look. No reload fails because of it, and nothing is ended.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTTOU};

use crate::harness::{Fault, Guest, Haproxy, Process, Scene, Stage, config, eventually, serves};

/// Longer than the limits given here.
const STOPPED: Duration = Duration::from_secs(3);

#[test]
fn a_stop_while_haproxy_is_asked_about_the_configuration_fails_no_reload() {
    let Some(real) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (hold, asked) = (scene.path("hold"), scene.path("asked"));
    // The wrapper answers only when allowed, except as a generation, which runs at once.
    let program = scene.write(
        "haproxy",
        &format!(
            "#!/bin/sh\ncase \" $* \" in *' -db '*) ;; *) if [ -e {hold} ]; then : > {asked}; fi\n\
             while [ -e {hold} ]; do sleep 0.02; done ;; esac\nexec {real} \"$@\"\n",
            hold = hold.display(),
            asked = asked.display(),
            real = real.display(),
        ),
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    let address = scene.address();
    let write = |tag, condition: &str| {
        let text = config(address, tag);
        scene.write("haproxy.cfg", &format!(".if {condition}\n.notice yes\n.endif\n{text}"))
    };
    let file = write(1, "feature(OPENSSL)");
    let limit = ["--ready-timeout", "2s"];
    let haproxy = Haproxy::start_with(&scene, &limit, &program, &file);
    write(2, "feature(LUA)");
    fs::write(&hold, "").expect("a file");
    let mut reload = Process::start(scene.bindonce("reload").args(["--name", "web"]));
    eventually("haproxy to be asked", || asked.exists().then_some(()));
    haproxy.supervisor.signal(SIGSTOP);
    // The test is about the time that passes.
    sleep(STOPPED);
    fs::remove_file(&hold).expect("a file");
    haproxy.supervisor.signal(SIGCONT);
    assert_eq!(reload.wait_exit().code(), Some(0), "{}", reload.story());
    serves(address, 2);
}

#[test]
fn a_stop_at_any_moment_of_a_reload_fails_none_and_ends_nothing() {
    for moment in ["a client asked for it", "started generation=2", "ready: it has bound"] {
        let limits = ["--ready-timeout", "2s", "--retire-timeout", "2s"];
        let Some(mut stage) = Stage::of(Guest::Haproxy, &[], &limits) else { return };
        stage.configure(2);
        let mut reload = stage.reload_beside();
        if moment == "a client asked for it" {
            // Not in the log.
            let events = stage.scene.path("web.d/events.jsonl");
            eventually("the reload to begin", || {
                fs::read_to_string(&events).ok()?.contains(moment).then_some(())
            });
        } else {
            stage.haproxy.supervisor.wait_line(moment);
        }
        stage.haproxy.supervisor.signal(SIGSTOP);
        sleep(STOPPED);
        stage.haproxy.supervisor.signal(SIGCONT);
        assert_eq!(reload.wait_exit().code(), Some(0), "{moment}: {}", reload.story());
        let said = reload.story();
        assert!(!said.contains("had to be ended"), "{moment}: {said}");
        stage.only(2);
        stage.reload(3);
    }
}

/// As with `stop`, a debugger or a frozen cgroup: the supervisor neither continues nor ends.
#[test]
fn the_watchdog_of_a_supervisor_that_stays_stopped_lets_the_new_haproxy_in() {
    // The older generation ignores SIGTTOU, so it accepts while the new one waits.
    let deaf = [Fault::Deaf(SIGTTOU, 0)];
    let (faults, limits) = ([(1, &deaf[..])], ["--retire-timeout", "1s"]);
    let Some(mut stage) = Stage::start(Haproxy::system(), &faults, &limits) else { return };
    stage.configure(2);
    let mut reload = stage.reload_beside();
    stage.haproxy.supervisor.wait_line("ready: it has bound");
    stage.haproxy.supervisor.signal(SIGSTOP);
    eventually("the new one to answer", || {
        let mut stream = TcpStream::connect(stage.address).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("x-generation: 2\r\n").then_some(())
    });
    stage.only(2);
    stage.haproxy.supervisor.signal(SIGCONT);
    reload.wait_exit();
    stage.reload(3);
    stage.refused_nobody();
}
