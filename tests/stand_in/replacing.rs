//! A haproxy that goes on in the background, or that is started to replace another: with bindonce or without.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bindonce_load::Plan;
use nix::sys::signal::Signal;

use super::{Caller, master, signal, without_pids};
use crate::harness::{
    DEADLINE, Haproxy, Process, assert_nothing_lost, bindonce, config, eventually, finish,
    listening,
};

/// Tools that start `haproxy -D` look at the exit code, and go on when its output ends.
#[test]
fn in_the_background_the_exit_code_tells_whether_it_serves() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let daemon = "    daemon\n";
        for (words, global) in [("-D -db", ""), ("", daemon), ("-W", daemon), ("-db -W -D", "")] {
            caller.configure(global, 1);
            let done = finish(&mut caller.haproxy(&format!("{words} -f haproxy.cfg -p pid")));
            assert_eq!((done.code, &*done.err), (Some(0), ""), "{words}{global}");
            let supervisor = caller.pid("pid").expect("the pid file");
            let mut plan = Plan::new(caller.address);
            plan.connections = Some(4);
            let load = plan.start().expect("load");
            assert!(load.wait_over(DEADLINE), "no answers");
            assert_nothing_lost(&load.stop());
            signal(supervisor, Signal::SIGTERM);
            caller.wait_none();
        }
        caller.scene.write("bad.cfg", "frontend web\n    bnid :80\n");
        caller.scene.write("empty.cfg", "");
        for words in ["-f bad.cfg", "-q -f bad.cfg", "-f empty.cfg", "-f none.cfg"] {
            let words = format!("-D -p bad.pid {words}");
            let real = finish(&mut caller.command(&program, &words)).fails(1);
            let ours = finish(&mut caller.haproxy(&words)).fails(1);
            // From 3.2 on the process that has started it adds how it ended.
            let (ours, real) = (without_pids(&ours), without_pids(&real));
            assert_eq!(ours, real[..ours.len()], "{words}");
            assert_eq!(ours.is_empty(), words.contains("-q"), "{words}");
            assert_eq!(caller.pid("bad.pid"), None);
        }
        for path in ["none/pid", "bin"] {
            let said =
                finish(&mut caller.haproxy(&format!("-D -f haproxy.cfg -p {path}"))).fails(1);
            assert!(said.contains(&format!("Cannot create pidfile {path}")), "{said}");
        }
        caller.wait_none();
    });
}

/// Controllers and routers: `-D -sf $(cat PID)`, `-x ADMIN -sf $(pidof haproxy)`, with `daemon` in the configuration or
/// without, from another directory, on other files and with another environment each time.
#[test]
fn another_haproxy_with_sf_is_a_reload_of_the_one_that_runs() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        caller.configure("", 1);
        let started = finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid"));
        assert_eq!((started.code, &*started.err), (Some(0), ""));
        let supervisor = caller.pid("pid").expect("the pid file");
        let load = caller.load();
        let pidof = || {
            let pids = caller.scene.haproxies().into_iter().map(|pid| format!(" {pid}"));
            pids.collect::<String>()
        };
        for (tag, words) in [
            (2, format!("-D -f haproxy.cfg -p pid -sf {supervisor}")),
            (3, format!("-f haproxy.cfg -p pid -x none -sf{}", pidof())),
            (4, format!("-W -db -f {} -sf {supervisor}", caller.scene.path("4.cfg").display())),
            (5, "-D -f haproxy.cfg -p pid -sf 4194303".to_owned()),
            // As `-sf $(cat pid)` where the file is gone.
            (6, "-D -f haproxy.cfg -p pid -sf".to_owned()),
        ] {
            if tag == 6 {
                std::fs::remove_file(caller.scene.path("pid")).expect("the pid file");
            }
            let text = config(caller.address, tag).replace("global\n", "global\n    daemon\n");
            caller.scene.write(if tag == 4 { "4.cfg" } else { "haproxy.cfg" }, &text);
            let done = finish(&mut caller.haproxy(&words));
            assert_eq!((done.code, &*done.err), (Some(0), ""), "{words}");
            caller.wait_tag(&load, tag);
            assert_eq!(caller.pid("pid"), Some(supervisor), "{words}");
        }
        caller.scene.write("bad.cfg", "frontend web\n    bnid :80\n");
        let words = format!("-D -f bad.cfg -p pid -sf {supervisor}");
        let said = finish(&mut caller.haproxy(&words)).fails(1);
        assert!(said.contains("bad.cfg:2] : unknown keyword 'bnid'"), "{said}");
        // A signal reads what served last, not what was refused.
        caller.configure("", 7);
        signal(supervisor, Signal::SIGUSR2);
        caller.wait_tag(&load, 7);
        assert_nothing_lost(&load.stop());
        // What an older one serves ends with it then.
        caller.configure("", 8);
        finish(&mut caller.haproxy(&format!("-D -f haproxy.cfg -p pid -st {supervisor}"))).ok();
        let load = caller.answers(8);
        eventually("the older one to end", || (caller.scene.haproxies().len() == 2).then_some(()));
        drop(load.stop());
        signal(supervisor, Signal::SIGTERM);
        caller.wait_none();
    });
}

/// A failover's scripts stop haproxy in order and start it again, whatever connection is still open.
#[test]
fn what_drains_after_a_stop_is_no_obstacle_to_the_next_start() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        finish(&mut caller.haproxy("-D -f haproxy.cfg -p pid")).ok();
        let mut client = TcpStream::connect(caller.address).expect("it listens");
        client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
        drop(caller.load().stop());
        let mut supervisor = caller.pid("pid").expect("the pid file");
        let service = caller.service();
        for (tag, option) in [(2, ""), (3, "-sf")] {
            signal(supervisor, Signal::SIGUSR1);
            eventually("it to stop", || {
                let ping = ["--name", &service, "--serving"];
                (caller.scene.run("ping", &ping).code != Some(0)).then_some(())
            });
            if option.is_empty() {
                // One that fails ends at once, and leaves what drains to the next one.
                caller.scene.write("broken.cfg", "nonsense\n");
                let said = finish(&mut caller.haproxy("-D -f broken.cfg -p pid")).fails(1);
                assert!(said.contains("nonsense"), "{said}");
            }
            caller.configure("", tag);
            let pid = if option.is_empty() { String::new() } else { supervisor.to_string() };
            let words = format!("-D -f haproxy.cfg -p pid {option} {pid}");
            let done = finish(&mut caller.haproxy(&words));
            assert_eq!((done.code, &*done.err), (Some(0), ""), "{words}");
            let next = caller.pid("pid").expect("the pid file");
            assert_ne!(next, supervisor);
            supervisor = next;
            drop(caller.answers(tag).stop());
        }
        client.write_all(b"\r\n").expect("the rest");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("x-generation: 1"), "{answer}");
        // What answered it has drained; the supervisor and the newest generation are left.
        eventually("it to end", || (caller.scene.haproxies().len() == 2).then_some(()));
        signal(supervisor, Signal::SIGTERM);
        caller.wait_none();
    });
}

/// Two that ask while a start is in progress, each for files of its own: exit code 0 says that its own served.
#[test]
fn of_two_that_wait_each_is_served_in_its_turn() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let slow = caller.gated("[234]");
    let haproxy = |words: &str| {
        let mut command = caller.haproxy(words);
        command.env("BINDONCE_HAPROXY", &slow);
        command
    };
    let mut service = Process::start(&mut haproxy("-W -f haproxy.cfg -p pid"));
    let load = caller.load();
    caller.configure("", 2);
    service.signal(Signal::SIGUSR2);
    service.wait_line("reload requested");
    let mut callers = Vec::new();
    for (waiting, tag) in [(1, 3), (2, 4)] {
        let file = format!("{tag}.cfg");
        caller.scene.write(&file, &config(caller.address, tag));
        let words = format!("-D -f {file} -p pid -sf {}", service.pid());
        callers.push(Process::start(&mut haproxy(&words)));
        caller.wait_waiting(waiting);
    }
    caller.open_gate();
    caller.wait_tag(&load, 2);
    for (tag, mut one) in (3..).zip(callers) {
        assert!(one.is_running(), "{}", one.story());
        caller.open_gate();
        assert!(one.wait_exit().success(), "{}", one.story());
        caller.wait_tag(&load, tag);
    }
    drop(load.stop());
    service.signal(Signal::SIGTERM);
    service.wait_exit();
}

/// Installing the link and reloading once is the migration. What is in progress keeps the older one, its master's CLI is ours.
#[test]
fn a_haproxy_without_bindonce_is_replaced_by_the_first_that_stands_in() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let (tcp, unix) = (caller.scene.address(), caller.scene.path("m.sock"));
        let cli = format!("-S {tcp} -S {}", unix.display());
        let words = format!("-W -db -f haproxy.cfg {cli}");
        let mut plain = Process::start(&mut caller.command(&program, &words));
        let load = caller.load();
        let mut client = TcpStream::connect(caller.address).expect("it listens");
        client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
        drop(caller.load().stop());
        let replace = |file: &str| {
            let words = format!("-W -D -f {file} -p pid {cli} -sf {}", plain.pid());
            finish(&mut caller.haproxy(&words))
        };
        let masters = || {
            eventually("both sockets to answer", || {
                let (tcp, unix) = (TcpStream::connect(tcp).ok()?, UnixStream::connect(&unix).ok()?);
                tcp.set_read_timeout(Some(DEADLINE / 10)).ok()?;
                unix.set_read_timeout(Some(DEADLINE / 10)).ok()?;
                Some([master(tcp)?, master(unix)?])
            })
        };
        // Once it has executed itself again: before, its sockets are free for a moment.
        masters();
        caller.scene.write("bad.cfg", "frontend web\n    bnid :80\n");
        replace("bad.cfg").fails(1);
        assert_eq!(masters(), [plain.pid().cast_signed(); 2]);
        // A copy that the broker kept would get its share of the connections after a reload of the older one.
        eventually("the broker to give its copies up", || {
            (caller.scene.run("list", &[]).ok() == "no listener is held\n").then_some(())
        });
        caller.configure("", 2);
        let done = replace("haproxy.cfg");
        assert_eq!((done.code, &*done.err), (Some(0), ""));
        caller.wait_tag(&load, 2);
        let supervisor = caller.pid("pid").expect("the pid file");
        assert_eq!(masters(), [supervisor; 2]);
        client.write_all(b"\r\n").expect("the rest");
        assert!(plain.wait_exit().success(), "{}", plain.story());
        let report = load.stop();
        assert_eq!((report.failed(), report.local), (0, 0), "{report}");
        signal(supervisor, Signal::SIGTERM);
        caller.wait_none();
    });
}

/// What the broker has of a replaced haproxy is the service's, as if a generation had bound it.
#[test]
fn a_listener_of_a_replaced_haproxy_is_released_when_it_leaves_the_configuration() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let other = caller.scene.address();
    let line = format!("    bind {other}\n    http-request");
    let text = config(caller.address, 1).replace("    http-request", &line);
    caller.scene.write("haproxy.cfg", &text);
    let mut plain = Process::start(&mut caller.command(&program, "-db -f haproxy.cfg"));
    drop(caller.load().stop());
    let replace = |pid: &str| {
        let words = format!("-D -f haproxy.cfg -p pid -sf {pid}");
        finish(&mut caller.haproxy(&words)).ok();
    };
    replace(&plain.pid().to_string());
    plain.wait_exit();
    assert_eq!(listening(other).len(), 1);
    let supervisor = caller.pid("pid").expect("the pid file");
    caller.configure("", 2);
    replace(&supervisor.to_string());
    eventually("the listener to be closed", || listening(other).is_empty().then_some(()));
    signal(supervisor, Signal::SIGTERM);
    caller.wait_none();
}

/// The older one has carried out its `-C` by now; its files may be gone.
#[test]
fn a_haproxy_whose_files_are_elsewhere_is_replaced() {
    let Some(program) = Haproxy::system() else { return };
    for is_gone in [false, true] {
        let caller = Caller::new(&program);
        std::fs::create_dir(caller.scene.path("conf")).expect("a directory");
        let file = caller.scene.write("conf/old.cfg", &config(caller.address, 1));
        let mut plain = Process::start(&mut caller.command(&program, "-db -C conf -f old.cfg"));
        let load = caller.load();
        if is_gone {
            std::fs::remove_file(file).expect("its file");
        }
        caller.configure("", 2);
        let words = format!("-D -f haproxy.cfg -p pid -sf {}", plain.pid());
        finish(&mut caller.haproxy(&words)).ok();
        caller.wait_tag(&load, 2);
        assert!(plain.wait_exit().success(), "{}", plain.story());
        assert_eq!(load.stop().failed(), 0);
        signal(caller.pid("pid").expect("the pid file"), Signal::SIGTERM);
        caller.wait_none();
    }
}

/// With `-st` what the older one serves ends too.
#[test]
fn a_haproxy_without_bindonce_that_is_replaced_at_once_ends() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let mut plain = Process::start(&mut caller.command(&program, "-W -db -f haproxy.cfg"));
    drop(caller.load().stop());
    let mut client = TcpStream::connect(caller.address).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\n").expect("half a request");
    drop(caller.load().stop());
    caller.configure("", 2);
    let words = format!("-D -f haproxy.cfg -p pid -st {}", plain.pid());
    finish(&mut caller.haproxy(&words)).ok();
    // The client still has its half of a request.
    plain.wait_exit();
    drop(caller.answers(2).stop());
    signal(caller.pid("pid").expect("the pid file"), Signal::SIGTERM);
    caller.wait_none();
}

/// `bindonce run -- haproxy`, with these words behind it.
fn run(caller: &Caller, program: &Path, words: &str) -> Command {
    caller.command(bindonce(), &format!("run -- {} {words}", program.display()))
}

/// On a busy host the answer of a supervisor may take longer than the time limit for it.
#[test]
fn a_supervisor_that_does_not_answer_yet_is_waited_for() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let run = |words: &str| run(&caller, &program, words);
    let mut service = Process::start(&mut run("-W -f haproxy.cfg -p pid"));
    let load = caller.load();
    for (tag, older) in [(2, service.pid()), (3, std::process::id())] {
        caller.configure("", tag);
        service.signal(Signal::SIGSTOP);
        let words = format!("-f haproxy.cfg -p pid -sf {older}");
        let mut reload = Process::start(&mut run(&words));
        // Longer than it waits for the pids of generations.
        reload.lasts(Duration::from_secs(4));
        service.signal(Signal::SIGCONT);
        assert!(reload.wait_exit().success(), "{words}: {}", reload.story());
        caller.wait_tag(&load, tag);
    }
    drop(load.stop());
    service.signal(Signal::SIGTERM);
    service.wait_exit();
}

/// `bindonce run -- haproxy ARGS` is the same thing.
#[test]
fn run_with_sf_is_a_reload_of_the_service_that_runs() {
    let Some(program) = Haproxy::system() else { return };
    let caller = Caller::new(&program);
    let run = |words: &str| run(&caller, &program, words);
    let mut service = Process::start(&mut run("-W -f haproxy.cfg -p pid"));
    let load = caller.load();
    for (tag, option) in [(2, "-sf"), (3, "-st"), (4, "-D -sf")] {
        caller.configure("", tag);
        let words = format!("-f haproxy.cfg -p pid {option} {}", service.pid());
        let done = finish(&mut run(&words));
        assert_eq!((done.code, &*done.err), (Some(0), ""), "{words}");
        caller.wait_tag(&load, tag);
    }
    drop(load.stop());
    service.signal(Signal::SIGTERM);
    service.wait_exit();
}
