//! Messages about obstacles: they name the owner, and following their advice helps.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;

use crate::harness::{Haproxy, Process, Scene, bindonce, config, eventually, finish, serves};
use crate::stand_in::Caller;

#[test]
fn an_address_of_another_host_gets_advice_that_haproxy_knows() {
    let why = "another host's address is one that a network namespace of its own has not";
    let Some(scene) = Scene::isolated(why) else { return };
    let _broker = scene.broker();
    let said = scene.run("bind", &["10.9.9.9:8080"]).fails(1);
    for part in ["`transparent`", "--listen NAME=10.9.9.9:8080,freebind", "ip_nonlocal_bind"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    // Following the hint with haproxy works.
    let Some(program) = Haproxy::system() else { return };
    let text = "defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 1s\n\
                frontend f\n    bind 10.9.9.9:8080\n";
    let file = scene.write("f.cfg", text);
    Haproxy::start_with(&scene, &["--listen", "vip=10.9.9.9:8080,freebind"], &program, &file);
}

#[test]
fn a_missing_broker_is_named_once() {
    let scene = Scene::new();
    let file = scene.write("f.cfg", &config(scene.address(), 1));
    let mut run = scene.bindonce("run");
    let said = finish(run.args(["--name", "web", "--", "haproxy", "-f"]).arg(&file)).fails(1);
    let path = scene.socket().display().to_string();
    let error = said.lines().find(|line| line.starts_with("bindonce: ")).expect(&said);
    assert_eq!(error.matches(&path).count(), 1, "{said}");
    assert!(!error.contains("connect to the broker"), "{said}");
    // A missing supervisor is not reported as a missing broker either.
    let _broker = scene.broker();
    for (verb, arguments) in
        [("reload", ["--name", "web"]), ("retire", ["--name", "web"]), ("ping", ["--name", "web"])]
    {
        let said = scene.run(verb, &arguments).fails(1);
        assert!(said.contains("service \"web\" has no supervisor"), "{said}");
        assert!(said.contains("`bindonce run --name web -- haproxy -f FILE`"), "{said}");
        assert!(!said.contains("broker") && !said.contains("bindonce serve"), "{said}");
    }
}

#[test]
fn too_many_open_files_names_whose_limit_it_is() {
    let Some(program) = Haproxy::system() else { return };
    let why = "its hundred ports are free in a network namespace of its own";
    let Some(scene) = Scene::isolated(why) else { return };
    let _broker = scene.broker();
    let address = scene.address();
    let file = scene.write("f.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let pid = haproxy.supervisor.pid();
    let mut limit = scene.command("prlimit");
    finish(limit.args(["--pid", &pid.to_string(), "--nofile=60:4096"])).ok();
    let text = config(address, 2) + "frontend more\n    bind 127.0.0.1:20000-20099\n";
    scene.write("f.cfg", &text);
    let said = haproxy.reload(&scene).fails(1);
    for part in [&format!("pid {pid} (bindonce)"), "soft limit of 60", "bindonce retire"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn too_many_open_files_of_the_broker_names_the_broker() {
    let (scene, mut broker) = Scene::with_broker();
    let pid = broker.pid();
    let mut limit = scene.command("prlimit");
    finish(limit.args(["--pid", &pid.to_string(), "--nofile=40:40"])).ok();
    let said =
        finish(scene.bindonce("bind").args((0..60).map(|number| format!("abns@many-{number}"))))
            .fails(1);
    let whose = format!("the broker (pid {pid}: 40 open files)");
    for part in [whose.as_str(), "LimitNOFILE=", "`bindonce retire` ends the oldest"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    // The broker cannot accept clients then either, and says so in its log.
    let clients: Vec<_> = (0..60)
        .filter_map(|_| std::os::unix::net::UnixStream::connect(scene.socket()).ok())
        .collect();
    let who = format!("pid {pid} (bindonce) has reached its soft limit of 40 open files");
    let line = broker.wait_line("cannot accept connections until a descriptor is free");
    assert!(line.contains(&who) && line.contains("bindonce retire"), "{line}");
    drop(clients);
}

#[test]
fn the_end_of_a_supervisor_says_what_stays_bound() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("f.cfg", &config(address, 1));
    // Also for a listener that existed before the service.
    for before in [false, true] {
        if before {
            scene.run("bind", &[&address.to_string()]).ok();
        }
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        haproxy.supervisor.signal(Signal::SIGTERM);
        let line = haproxy.supervisor.wait_line("bindonce release");
        haproxy.supervisor.wait_exit();
        let name = line.rsplit(' ').next().expect("a name");
        // Follow the advice.
        scene.run("release", &[name]).ok();
        assert_eq!(scene.run("list", &[]).ok(), "no listener is held\n");
    }
}

/// Without the name the command would meet the service `haproxy`.
#[test]
fn the_hint_of_a_failed_reload_names_the_service() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, haproxy) = Haproxy::start_at(&scene, &[], &program);
    scene.write("haproxy.cfg", &(config(address, 2) + "    no-such-keyword\n"));
    let said = haproxy.reload(&scene).fails(1);
    assert!(said.contains("then run `bindonce reload --name web` again"), "{said}");
}

#[test]
fn the_cli_of_a_master_is_told_from_a_stats_socket() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let path = scene.path("master.sock");
    let file = scene.write("f.cfg", &config(scene.address(), 1));
    let mut command = scene.command(&program);
    command.args(["-W", "-db", "-S"]).arg(&path).arg("-f").arg(&file);
    let mut master = Process::start(&mut command);
    let pid = master.pid().to_string();
    // A master executes itself once more at its start. Until then its socket is missing, or no
    // process listens on it.
    let said = eventually("the master's CLI", || {
        let mut adopt = scene.bindonce("adopt");
        let said = finish(adopt.args(["--dry-run", "--stats-socket"]).arg(&path)).fails(1);
        said.contains("CLI of a haproxy master").then_some(said)
    });
    assert!(said.contains("--pid"), "{said}");
    // Follow the advice.
    if nix::unistd::geteuid().is_root() {
        eventually("its worker", || {
            let said = finish(scene.bindonce("adopt").args(["--dry-run", "--pid", &pid]));
            (said.code == Some(0)).then_some(())
        });
    }
    master.signal(Signal::SIGTERM);
    master.wait_exit();
}

#[test]
fn a_script_that_starts_haproxy_works_as_the_advice_says() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("f.cfg", &config(scene.address(), 1));
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", program.display());
    let script = scene.write("start-it", &script);
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    let said = finish(scene.bindonce("run").arg("--").arg(&script)).fails(2);
    let advice = format!("`--kind haproxy -- {} -f FILE`", script.display());
    assert!(said.contains("exec haproxy \"$@\"") && said.contains(&advice), "{said}");
    // Follow the advice.
    let mut haproxy = Haproxy::start_with(&scene, &["--kind", "haproxy"], &script, &file);
    haproxy.reload(&scene).ok();
    haproxy.wait_serving(&scene);
}

/// A script that waits for haproxy receives the signals meant for haproxy.
#[test]
fn a_script_that_waits_for_haproxy_is_replaced_too() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    let file = scene.write("f.cfg", &config(address, 1));
    let script =
        scene.write("start-it", &format!("#!/bin/sh\n{} \"$@\"\nexit $?\n", program.display()));
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    let haproxy = Haproxy::start_with(&scene, &["--kind", "haproxy"], &script, &file);
    for tag in 2..4 {
        scene.write("f.cfg", &config(address, tag));
        haproxy.reload(&scene).ok();
        serves(address, tag);
    }
}

#[test]
fn a_program_that_listens_elsewhere_is_told_so() {
    let (scene, _broker) = Scene::with_broker();
    let (given, taken) = (scene.address(), scene.address());
    let text = format!(
        "import os, socket, time\nos.closerange(3, 64)\ns = socket.socket()\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('{}', {}))\ns.listen()\ntime.sleep(600)\n",
        taken.ip(),
        taken.port()
    );
    let script = scene.write("elsewhere.py", &text);
    let mut command = scene.bindonce("run");
    command.args(["--name", "py", "--ready-delay", "500ms", "--listen"]);
    command.arg(format!("web={given}")).args(["--", "python3"]).arg(&script);
    let mut run = Process::start(&mut command);
    let line = run.wait_line("by itself, where bindonce protects nothing");
    assert!(line.contains(&taken.to_string()) && line.contains("--listen"), "{line}");
    assert!(!line.contains("told"), "{line}");
    // Draining has no limit here; a second signal ends it.
    run.signal(Signal::SIGTERM);
    run.wait_line("shutdown requested");
    run.signal(Signal::SIGTERM);
    run.wait_exit();
}

/// haproxy's own lines are passed on as they arrive, and the final message does not repeat them.
#[test]
fn the_error_of_a_first_start_is_printed_once() {
    Haproxy::all().for_each(|program| {
        let caller = Caller::new(&program);
        let (scene, name) = (&caller.scene, program.display());
        scene.write("bad.cfg", "frontend web\n    bnid :80\n");
        for words in [
            &*format!("run -- {name} -f bad.cfg"),
            &format!("run -- {name} -W -f bad.cfg"),
            &format!("check -- {name} -f bad.cfg"),
            "haproxy -f bad.cfg",
            "haproxy -W -f bad.cfg",
            "haproxy -D -f bad.cfg",
            "haproxy -W -D -f bad.cfg",
            "haproxy -c -f bad.cfg",
        ] {
            let said = finish(&mut caller.command(bindonce(), words)).fails(1);
            assert_eq!(said.matches("unknown keyword 'bnid'").count(), 1, "{words}: {said}");
            if words.starts_with("run") {
                let end = said.lines().rfind(|line| line.contains("ended with")).expect(&said);
                assert!(end.ends_with("; its own message is above"), "{words}: {said}");
            }
        }
        caller.wait_none();
    });
}

/// Also when haproxy is ended for not doing something: the final message names the option.
#[test]
fn a_first_start_that_takes_too_long_is_told_so_at_the_end() {
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("f.cfg", &config(scene.address(), 1));
    let slow = scene.write("slow", "#!/bin/sh\necho \"I am slow\" >&2\nexec sleep 60\n");
    std::fs::set_permissions(&slow, Permissions::from_mode(0o755)).expect("its mode");
    let mut run = scene.bindonce("run");
    run.args(["--kind", "haproxy", "--ready-timeout", "3s", "--"]).arg(&slow).arg("-f").arg(&file);
    let said = finish(&mut run).fails(1);
    let (_, end) = said.split_once("bindonce: ").expect(&said);
    assert!(end.contains("raise --ready-timeout"), "{said}");
    assert_eq!(said.matches("I am slow").count(), 1, "{said}");
}

/// A user who ran bindonce as an ordinary user, and now runs it as root, has two brokers.
#[test]
fn an_address_of_another_broker_is_found_there() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("f.cfg", &config(address, 1));
    let other = scene.path("other.sock").display().to_string();
    let mut broker = Process::start(scene.command(bindonce()).args(["serve", "--socket", &other]));
    broker.wait_line("broker serves");
    let bind = |socket: &str| {
        finish(scene.command(bindonce()).args(["bind", "--socket", socket, &address.to_string()]))
    };
    bind(&other).ok();
    // The holder is named if it is found within half a second, which a busy machine may not allow.
    let named = format!("`ps -o user,args -p {}`", broker.pid());
    eventually("the other broker to be named", || {
        let mut run = scene.bindonce("run");
        let said = finish(run.arg("--").arg(&program).arg("-f").arg(&file)).fails(1);
        said.contains(&named).then_some(())
    });
    // Follow the advice.
    let mut release = scene.command(bindonce());
    finish(release.args(["release", "--socket", &other, &address.to_string()])).ok();
    Haproxy::start(&scene, &program, &file);
    broker.terminate();
}
