//! The callers of haproxy (docs/stand-in.md, "What to change"), in small. Each starts, reloads and
//! stops it in its own way, under clients that connect without pause. No connection fails, and no
//! replaced configuration answers one.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process, assert_nothing_lost, finish};
use crate::stand_in::Caller;

/// A program that keeps haproxy in the foreground.
struct Keeper {
    who: &'static str,
    words: &'static str,
    environment: &'static [(&'static str, &'static str)],
    reload: Reload,
    /// The signal that stops it, and its exit code then.
    stop: (Signal, i32),
}

enum Reload {
    /// A check that must succeed, then a signal.
    Checked(&'static str, Signal),
    Signal(Signal),
    /// `reload` on the master CLI, then `show proc` until it counts one more.
    Cli,
    /// Another haproxy.
    Again(&'static str),
}

const KEEPERS: [Keeper; 8] = [
    Keeper {
        who: "a systemd unit",
        words: "-Ws -f haproxy.cfg -p pid -S ./m.sock",
        environment: &[],
        reload: Reload::Checked("-Ws -f haproxy.cfg -c -q", Signal::SIGUSR2),
        stop: (Signal::SIGTERM, 0),
    },
    Keeper {
        who: "the official image",
        words: "-W -db -f haproxy.cfg",
        environment: &[],
        reload: Reload::Signal(Signal::SIGHUP),
        stop: (Signal::SIGUSR1, 0),
    },
    Keeper {
        who: "the vendor's ingress controller, under s6",
        words: "-W -db -m 512 -S ./m.sock,level,admin -f haproxy.cfg",
        environment: &[],
        reload: Reload::Cli,
        stop: (Signal::SIGUSR1, 0),
    },
    Keeper {
        who: "the vendor's API server, by s6-svc -2",
        words: "-W -db -S ./m.sock,level,admin -f haproxy.cfg",
        environment: &[("HAPROXY_MWORKER", "1"), ("HAPROXY_CFGFILES", "haproxy.cfg")],
        reload: Reload::Signal(Signal::SIGUSR2),
        stop: (Signal::SIGTERM, 0),
    },
    Keeper {
        who: "another ingress controller, whose configuration is a directory",
        words: "-W -S ./m.sock,mode,600 -f ./",
        environment: &[],
        reload: Reload::Cli,
        stop: (Signal::SIGINT, 130),
    },
    Keeper {
        who: "runit, by sv reload and sv stop",
        words: "-W -db -f haproxy.cfg",
        environment: &[],
        reload: Reload::Signal(Signal::SIGHUP),
        stop: (Signal::SIGTERM, 0),
    },
    Keeper {
        who: "a tool with a master",
        words: "-W -f haproxy.cfg -p pid",
        environment: &[],
        reload: Reload::Again("-W -f haproxy.cfg -p pid -x ./adm.sock -sf PID"),
        stop: (Signal::SIGUSR1, 0),
    },
    Keeper {
        who: "a tool without a master",
        words: "-db -f haproxy.cfg",
        environment: &[],
        reload: Reload::Again("-db -f haproxy.cfg -sf PID -x ./adm.sock"),
        stop: (Signal::SIGUSR1, 0),
    },
];

const STATS: &str = "    stats socket ./adm.sock level admin expose-fd listeners\n";

/// Replaces the paths of sockets with haproxy's notation.
fn here(caller: &Caller, text: &str) -> String {
    text.replace("./", &caller.scene.path("").display().to_string())
}

/// Each caller uses one version, and each version several callers.
fn versions() -> impl Iterator<Item = std::path::PathBuf> {
    Haproxy::all().collect::<Vec<_>>().into_iter().cycle()
}

#[test]
fn a_caller_that_keeps_haproxy_in_the_foreground_loses_nothing() {
    for (keeper, program) in KEEPERS.iter().zip(versions()) {
        keep(keeper, &program);
    }
}

fn keep(keeper: &Keeper, program: &std::path::Path) {
    let who = keeper.who;
    let caller = Caller::new(program);
    caller.configure(&here(&caller, STATS), 1);
    let mut command = caller.haproxy(&here(&caller, keeper.words));
    let mut haproxy = Process::start(command.envs(keeper.environment.iter().copied()));
    let ask = |line: &[u8]| {
        let mut client = UnixStream::connect(caller.scene.path("m.sock")).ok()?;
        client.write_all(line).ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let load = caller.load();
    for tag in 2..5 {
        caller.configure(&here(&caller, STATS), tag);
        match keeper.reload {
            Reload::Checked(check, signal) => {
                assert_eq!(finish(&mut caller.haproxy(check)).ok(), "", "{who}");
                haproxy.signal(signal);
            }
            Reload::Signal(signal) => haproxy.signal(signal),
            Reload::Cli => {
                let said = ask(b"reload\n").expect("an answer");
                assert!(said.starts_with("Success=1\n--\n"), "{who}: {said}");
                let count = format!(" {} [failed: 0] ", tag - 1);
                let processes = ask(b"show proc\n").expect("an answer");
                assert!(
                    processes.lines().nth(1).expect("a master").contains(&count),
                    "{who}: {processes}"
                );
            }
            Reload::Again(words) => {
                let words = here(&caller, words).replace("PID", &haproxy.pid().to_string());
                let done = finish(&mut caller.haproxy(&words));
                assert_eq!((done.code, &*done.err), (Some(0), ""), "{who}");
            }
        }
        caller.wait_tag(&load, tag);
    }
    assert_nothing_lost(&load.stop());
    let (signal, code) = keeper.stop;
    haproxy.signal(signal);
    assert_eq!(haproxy.wait_exit().code(), Some(code), "{who}: {}", haproxy.story());
    caller.wait_none();
}

/// The start and the reload: PID is the pid in the file, ALL the output of pidof(1). Some have
/// `daemon` in their configuration.
const BACKGROUND: [(&str, &str, &str, &str); 3] = [
    ("a tool with labels", "", "-f haproxy.cfg -p pid -D", "-f haproxy.cfg -p pid -D -sf PID"),
    (
        "an ingress controller",
        "",
        "-f haproxy.cfg -p pid -D",
        "-f haproxy.cfg -p pid -D -sf PID -x ./adm.sock",
    ),
    (
        "a router",
        "    daemon\n",
        "-f haproxy.cfg -p pid",
        "-f haproxy.cfg -p pid -x ./adm.sock -sf ALL",
    ),
];

#[test]
fn a_caller_that_leaves_haproxy_in_the_background_loses_nothing() {
    for ((who, more, start, again), program) in BACKGROUND.into_iter().zip(versions()) {
        let caller = Caller::new(&program);
        let global = here(&caller, STATS) + more;
        caller.configure(&global, 1);
        let run = |words: &str| {
            let done = finish(&mut caller.haproxy(words));
            assert_eq!((done.code, &*done.err), (Some(0), ""), "{who}: {words}");
        };
        run(start);
        let supervisor = caller.pid("pid").expect("the pid file");
        let load = caller.load();
        for tag in 2..5 {
            caller.configure(&global, tag);
            let all: Vec<_> = caller.scene.haproxies().iter().map(i32::to_string).collect();
            let again = here(&caller, again);
            run(&again.replace("PID", &supervisor.to_string()).replace("ALL", &all.join(" ")));
            caller.wait_tag(&load, tag);
            assert_eq!(caller.pid("pid"), Some(supervisor), "{who}");
        }
        assert_nothing_lost(&load.stop());
        // As `kill -USR1 $(pidof haproxy)`, repeated until no haproxy is left.
        caller.signal_all(Signal::SIGUSR1);
        caller.wait_none();
    }
}
