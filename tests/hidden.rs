//! Listeners hidden from new connections during a start or a handover, since a wildcard serves
//! them. A new listener is shown when its haproxy is ready; a leaving one is shown again only if
//! the handover fails. No client is reset in between, and no served listener stays hidden.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Fault, Guest, Haproxy, Process, Scene, Wire, allow, eventually, finish, with_faults,
};
use crate::overlaps::{MAPPED, ask, broker, config, haproxies, scene, settled, strangers};

/// The number of clients in [`failures_during`].
const CLIENTS: usize = 4;

/// The failures of clients that connect to 127.0.0.1 all the time while `work` runs.
fn failures_during(work: impl FnOnce()) -> Vec<String> {
    failures_at_intervals(Duration::ZERO, work)
}

/// The same with a pause between two requests of a client.
fn failures_at_intervals(pause: Duration, work: impl FnOnce()) -> Vec<String> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = || {
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                failed.extend(Some(ask("127.0.0.1")).filter(|answer| !answer.starts_with('<')));
                std::thread::sleep(pause);
            }
            failed
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        work();
        over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("its failures")).collect()
    })
}

/// How many clients may be reset in reloads of which `leaving` hide a listener that leaves. Plain
/// haproxy occasionally resets one between the kernel's queue and its close. And the older haproxy
/// has 50 ms to accept the clients that wait in a listener that leaves: where other work keeps it
/// from running for that long, those are reset, at most one connection of each client.
fn resets(leaving: usize) -> usize {
    let is_idle = allow(Duration::ZERO) < Duration::from_millis(50);
    if is_idle { 1 } else { CLIENTS * leaving }
}

#[test]
fn a_client_of_an_address_that_leaves_is_answered_by_the_wildcard_that_covers_it() {
    for program in haproxies() {
        let Some(scene) = scene() else { return };
        let _broker = broker(&scene, true);
        // The wildcard stays, or arrives as the other listener leaves.
        let both: &[&str] = &["*:8080", "127.0.0.1:8080"];
        let steps = [&["*:8080"], both, &["*:8080"], &["127.0.0.1:8080"], &["*:8080"], both];
        let file = scene.write("haproxy.cfg", &config(both));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let failed = failures_during(|| {
            for binds in steps {
                scene.write("haproxy.cfg", &config(binds));
                haproxy.reload(&scene).ok();
            }
        });
        assert!(failed.len() <= resets(4), "{failed:?}, {}", program.display());
        settled(&scene, 2);
        assert_eq!(strangers(), ["::1", "fd00::1"]);
    }
}

/// The IPv4 socket wins over the IPv6 socket at the same address.
#[test]
fn an_address_in_the_words_of_both_families_is_two_lines_of_which_one_covers_the_other() {
    for program in haproxies() {
        let Some(scene) = scene() else { return };
        let mut first = broker(&scene, true);
        let both: &[&str] = &[MAPPED, "127.0.0.1:8080"];
        let file = scene.write("haproxy.cfg", &config(both));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let failed = failures_at_intervals(Duration::from_millis(2), || {
            let three: &[&str] = &["[::]:8080", MAPPED, "127.0.0.1:8080"];
            let steps = [both, &[MAPPED], both, &["127.0.0.1:8080"], three, both];
            for (number, binds) in steps.into_iter().enumerate() {
                scene.write("haproxy.cfg", &config(binds));
                // Where a line leaves, and where one arrives.
                if matches!(number, 1 | 4) {
                    let checked = ["check", "--name", "web", "--"];
                    let mut check = scene.bindonce(checked[0]);
                    finish(check.args(&checked[1..]).arg(&program).arg("-f").arg(&file)).ok();
                }
                haproxy.reload(&scene).ok();
            }
        });
        assert!(failed.len() <= resets(3), "{failed:?}, {}", program.display());
        assert_eq!(ask("127.0.0.1"), "<1>");
        let said = scene.bindonce("doctor").output().expect("doctor").stdout;
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("127.0.0.1]:8080"), "{said}");
        first.kill();
        let _broker = broker(&scene, true);
        haproxy.reload(&scene).ok();
        settled(&scene, 2);
        assert_eq!(ask("127.0.0.1"), "<1>");
        assert_eq!(strangers(), ["127.0.0.2", "::1", "fd00::1"]);
    }
}

/// A haproxy on these lines whose first generation ignores the signal to pause, under a supervisor
/// that waits long for that. With the program to start it, and its configuration.
fn deaf(scene: &Scene, program: &Path, binds: &[&str]) -> (Haproxy, PathBuf, PathBuf) {
    let faults = [Fault::Deaf(Signal::SIGTTOU, 0)];
    let program = with_faults(scene, Guest::Haproxy, program, &[(1, &faults)]);
    let file = scene.write("haproxy.cfg", &config(binds));
    let haproxy = Haproxy::start_with(scene, &["--retire-timeout", "60s"], &program, &file);
    (haproxy, program, file)
}

/// A reload to these lines that does not get past its pause, since the older generation is
/// [`deaf`] and still accepts. Returns it with the pid of the new generation, which marks its
/// answers.
fn held_up(scene: &Scene, haproxy: &mut Haproxy, binds: &[&str]) -> (Process, i32) {
    let (_, older) = haproxy.wait_serving(scene);
    assert!(ask("127.0.0.1").starts_with('<'));
    scene.write("haproxy.cfg", &config(binds).replace('>', ">newer"));
    let reload = reload(scene);
    // The older generation was told to pause at least 100 ms before that.
    haproxy.supervisor.wait_line("the last signal is not obeyed yet");
    let newer = scene.haproxies().into_iter().find(|pid| *pid != older).expect("the new one");
    (reload, newer)
}

#[test]
fn an_address_that_leaves_is_there_again_when_the_new_generation_dies_in_the_handover() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    let _broker = broker(&scene, true);
    let (mut haproxy, ..) = deaf(&scene, &program, &["*:8080", "127.0.0.1:8080"]);
    let (mut reload, newer) = held_up(&scene, &mut haproxy, &["*:8080"]);
    kill(Pid::from_raw(newer), Signal::SIGKILL).expect("it is there");
    haproxy.supervisor.wait_line("the generation that was to take over died");
    assert!(!reload.wait_exit().success());
    assert_eq!(ask("127.0.0.1"), "<1>");
    assert_eq!(ask("127.0.0.2"), "<0>");
}

#[test]
fn an_address_that_leaves_may_come_back_after_a_kill_of_the_supervisor_in_the_handover() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    let _broker = broker(&scene, true);
    let (mut haproxy, program, file) = deaf(&scene, &program, &["*:8080", "127.0.0.1:8080"]);
    let (reload, newer) = held_up(&scene, &mut haproxy, &["*:8080"]);
    haproxy.supervisor.kill();
    drop(reload);
    // Its watchdog finishes the handover.
    eventually("the new one to serve", || (ask("127.0.0.2") == "<0>newer").then_some(()));
    assert!(scene.haproxies().contains(&newer));
    scene.write("haproxy.cfg", &config(&["*:8080", "127.0.0.1:8080"]));
    let mut next = Haproxy::begin(&scene, &[], &program, &file);
    eventually("the newest configuration to serve", || {
        (next.reload(&scene).code == Some(0)).then_some(())
    });
    next.wait_serving(&scene);
    assert_eq!(ask("127.0.0.1"), "<1>");
}

/// A haproxy whose starts after the first wait: `begun` exists then, and the start continues when
/// `waits` is read.
struct Waiting {
    program: PathBuf,
    begun: PathBuf,
    waits: PathBuf,
}

impl Waiting {
    fn new(scene: &Scene, program: &Path) -> Self {
        let (begun, waits) = (scene.path("begun"), scene.path("waits"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *-sf*) touch {}; echo >{};; esac\nexec {} \"$@\"\n",
            begun.display(),
            waits.display(),
            program.display()
        );
        let wrapper = scene.write("haproxy", &script);
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("its mode");
        finish(Command::new("mkfifo").arg(&waits)).ok();
        Self { program: wrapper, begun, waits }
    }

    fn wait_begun(&self) {
        eventually("the new haproxy to be started", || self.begun.exists().then_some(()));
    }

    fn go_on(&self) {
        fs::remove_file(&self.begun).expect("it was there");
        fs::read(&self.waits).expect("it goes on");
    }
}

fn reload(scene: &Scene) -> Process {
    Process::start(scene.bindonce("reload").args(["--name", "web"]))
}

/// A supervisor with or without CAP_NET_RAW.
fn run(scene: &Scene, privileged: bool, program: &Path, file: &Path) -> Haproxy {
    if privileged {
        return Haproxy::start(scene, program, file);
    }
    let run = scene.bindonce("run");
    let mut command = scene.command("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]);
    command.arg(run.get_program()).args(run.get_args()).args(["--name", "web", "--"]);
    let supervisor = Process::start(command.arg(program).arg("-f").arg(file));
    let mut haproxy = Haproxy { supervisor, service: "web".to_owned() };
    haproxy.wait_serving(scene);
    haproxy
}

#[test]
fn a_new_address_takes_no_client_of_the_wildcard_that_serves_until_its_haproxy_is_ready() {
    for privileged in [true, false] {
        let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
        let _broker = broker(&scene, true);
        let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
        let waiting = Waiting::new(&scene, &program);
        let _haproxy = run(&scene, privileged, &waiting.program, &file);
        for (more, failed) in [("no-such-keyword\n", true), ("", false)] {
            let text = config(&["*:8080", "127.0.0.1:8080"]);
            scene.write("haproxy.cfg", &format!("{text}{more}"));
            let mut reload = reload(&scene);
            waiting.wait_begun();
            assert_eq!(ask("127.0.0.1"), "<0>", "the one that serves has it");
            waiting.go_on();
            assert_eq!(reload.wait_exit().success(), !failed, "{}", reload.story());
            assert_eq!(ask("127.0.0.1"), if failed { "<0>" } else { "<1>" });
        }
    }
}

#[test]
fn a_reload_that_fails_resets_no_client_of_the_wildcard_beside_its_new_address() {
    for program in haproxies() {
        for new in ["127.0.0.1:8080", "*:8080 interface lo"] {
            let Some(scene) = scene() else { return };
            let _broker = broker(&scene, true);
            let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
            let haproxy = Haproxy::start(&scene, &program, &file);
            let failed = failures_during(|| {
                for _ in 0..6 {
                    let text = config(&["*:8080", new]);
                    scene.write("haproxy.cfg", &format!("{text}no-such-keyword\n"));
                    haproxy.reload(&scene).fails(1);
                    settled(&scene, 1);
                }
            });
            assert!(failed.is_empty(), "{new}: {failed:?}, {}", program.display());
            scene.write("haproxy.cfg", &config(&["*:8080", new]));
            haproxy.reload(&scene).ok();
            assert_eq!(ask("127.0.0.1"), "<1>", "{new}");
            // The scene's network namespace has only `lo`.
            assert_eq!(strangers(), ["::1", "fd00::1"]);
        }
    }
}

#[test]
fn a_new_address_is_found_also_where_the_broker_was_killed_in_the_start() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    let mut broker = broker(&scene, true);
    let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
    let waiting = Waiting::new(&scene, &program);
    let _haproxy = Haproxy::start(&scene, &waiting.program, &file);
    scene.write("haproxy.cfg", &config(&["*:8080", "127.0.0.1:8080"]));
    let mut reload = reload(&scene);
    waiting.wait_begun();
    broker.kill();
    let _broker = scene.broker();
    assert_eq!(ask("127.0.0.1"), "<0>");
    waiting.go_on();
    reload.wait_exit();
    eventually("the new one to serve", || (ask("127.0.0.1") == "<1>").then_some(()));
    settled(&scene, 2);
    assert_eq!(ask("127.0.0.1"), "<1>");
}

#[test]
fn a_new_address_is_gone_where_the_supervisor_was_killed_in_the_start() {
    for broker_too in [false, true] {
        let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
        let mut broker = broker(&scene, true);
        let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
        let waiting = Waiting::new(&scene, &program);
        let mut haproxy = Haproxy::start(&scene, &waiting.program, &file);
        scene.write("haproxy.cfg", &config(&["*:8080", "127.0.0.1:8080"]));
        let reload = reload(&scene);
        waiting.wait_begun();
        let failed = failures_during(|| {
            if broker_too {
                broker.kill();
            }
            haproxy.supervisor.kill();
            if broker_too {
                broker = scene.broker();
            }
            settled(&scene, 1);
        });
        assert!(failed.is_empty(), "{failed:?}");
        drop(reload);
        let next = Haproxy::begin(&scene, &[], &program, &file);
        eventually("the newest configuration to serve", || {
            (next.reload(&scene).code == Some(0)).then_some(())
        });
        assert_eq!(ask("127.0.0.1"), "<1>");
    }
}

#[test]
fn a_new_address_is_found_where_the_watchdog_has_finished_the_handover() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    let _broker = broker(&scene, true);
    let (mut haproxy, program, file) = deaf(&scene, &program, &["*:8080"]);
    let (reload, _) = held_up(&scene, &mut haproxy, &["*:8080", "127.0.0.1:8080"]);
    haproxy.supervisor.kill();
    drop(reload);
    eventually("the new one to serve", || (ask("127.0.0.1") == "<1>newer").then_some(()));
    let mut next = Haproxy::begin(&scene, &[], &program, &file);
    next.wait_serving(&scene);
    assert_eq!(ask("127.0.0.1"), "<1>newer");
}

/// The listener that `bind` returns for one element.
fn bind(wire: &mut Wire, element: &Value) -> TcpListener {
    wire.call("bind", &json!([element]));
    TcpListener::from(wire.take(1).remove(0))
}

/// Joins as a generation of a service in this state.
fn join(wire: &mut Wire, generation: u64, state: &str) {
    wire.call("join", &json!([{"service": "web", "generation": generation, "state": state}]));
}

/// The index of the listener that a client of 127.0.0.1 reaches.
fn reached(listeners: [&TcpListener; 2]) -> usize {
    let _client = TcpStream::connect(("127.0.0.1", 8080)).expect("connect");
    let accepts = |listener: &&TcpListener| listener.accept().is_ok();
    let found = listeners.iter().position(accepts);
    found.expect("one of them has it")
}

#[test]
fn what_a_generation_claims_tentatively_is_found_when_it_serves_or_asks_again() {
    for text in ["127.0.0.1:8080", "*:8080,interface=lo"] {
        for by in ["serving", "ready", "again", "for good", "as another"] {
            let Some(scene) = scene() else { return };
            let _broker = broker(&scene, true);
            let (mut older, mut newer) = (scene.wire(), scene.wire());
            // Where the broker keeps the order, the newer generation waits for the older one to
            // stop.
            let ordered = by == "ready";
            let place = |state: &str| json!([{"service": "web", "state": state, "handover": true}]);
            match ordered {
                true => drop(older.call("join", &place("serving"))),
                false => join(&mut older, 1, "serving"),
            }
            let any = bind(&mut older, &json!({"listen": "*:8080"}));
            match ordered {
                true => drop(newer.call("join", &place("starting"))),
                false => join(&mut newer, 2, "starting"),
            }
            let tentative = json!({"listen": text, "tentative": true});
            let new = bind(&mut newer, &tentative);
            assert_eq!(reached([&any, &new]), 0, "{text}");
            let problems = scene.wire().call("list", &json!([]))["problems"].clone();
            assert!(problems.is_null(), "it is meant to be so: {problems}");
            match by {
                "serving" => join(&mut newer, 2, "serving"),
                "ready" => assert_eq!(newer.call("join", &place("serving"))["state"], "starting"),
                "again" => drop(bind(&mut newer, &tentative)),
                "for good" => drop(bind(&mut newer, &json!({"listen": text}))),
                _ => {
                    let mut next = scene.wire();
                    join(&mut next, 3, "starting");
                    drop(bind(&mut next, &tentative));
                }
            }
            assert_eq!(reached([&any, &new]), 1, "{text} {by}");
            assert_eq!(strangers(), ["::1", "fd00::1"]);
        }
    }
}

#[test]
fn what_is_claimed_for_good_or_by_no_generation_that_is_to_succeed_one_is_found_at_once() {
    for (older, state, tentative) in [
        (true, Some("starting"), false),
        (true, Some("serving"), true),
        (false, Some("starting"), true),
        (false, None, true),
    ] {
        let Some(scene) = scene() else { return };
        let _broker = broker(&scene, true);
        let (mut other, mut wire) = (scene.wire(), scene.wire());
        if older {
            join(&mut other, 2, "serving");
        }
        state.into_iter().for_each(|state| join(&mut wire, 1, state));
        let any = bind(&mut wire, &json!({"listen": "*:8080"}));
        let both = json!([
            {"listen": "*:8080"},
            {"listen": "127.0.0.1:8080", "tentative": tentative}
        ]);
        wire.call("bind", &both);
        let mut given: Vec<OwnedFd> = wire.take(2);
        let new = TcpListener::from(given.remove(1));
        assert_eq!(reached([&any, &new]), 1, "{older} {state:?} {tentative}");
    }
}

/// The older generation keeps draining with one connection.
#[test]
fn an_address_that_leaves_stays_hidden_where_the_watchdog_has_finished_the_handover() {
    for program in haproxies() {
        let Some(scene) = scene() else { return };
        let _broker = broker(&scene, true);
        let (mut haproxy, program, file) = deaf(&scene, &program, &["*:8080", "127.0.0.1:8080"]);
        let mut client = TcpStream::connect(("127.0.0.1", 8080)).expect("it serves");
        client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
        let (reload, newer) = held_up(&scene, &mut haproxy, &["*:8080"]);
        haproxy.supervisor.kill();
        drop(reload);
        eventually("the new one to serve", || (ask("127.0.0.2") == "<0>newer").then_some(()));
        assert!(scene.haproxies().contains(&newer));
        assert_eq!(ask("127.0.0.1"), "<0>newer", "the wildcard answers");
        let listed = scene.run("list", &[]).ok();
        let part = "127.0.0.1:8080 listens, but no new connection reaches it: it is hidden by an";
        assert!(listed.contains(part), "{listed}");
        let said = scene.run("doctor", &[]).fails(3);
        assert!(said.contains("`bindonce release 127.0.0.1:8080`"), "{said}");
        let mut next = None;
        let failed = failures_during(|| {
            let next = next.insert(Haproxy::begin(&scene, &[], &program, &file));
            next.wait_serving(&scene);
            settled(&scene, 1);
        });
        assert!(failed.is_empty(), "{failed:?}");
        drop(client);
    }
}
