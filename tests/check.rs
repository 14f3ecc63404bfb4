//! `bindonce check`: haproxy's own messages about the user's files, and nothing left behind,
//! however it ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{
    Haproxy, Process, Scene, bindonce, config, eventually, finish, listening, skip,
};

const DEFAULTS: &str = "defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 1s\n";

/// Lines that some haproxy complains about, naming the address or quoting the line.
fn faults() -> Vec<String> {
    let words: String = (0..70).map(|n| format!(" name x{n}")).collect();
    let lines = [
        "bind 127.0.0.1:8080 ssl",
        "bind 127.0.0.1:8080 id 7\n    bind 127.0.0.1:8081 id 7",
        "bind 127.0.0.1:8080,127.0.0.1:8081 foo",
        "bind 127.0.0.1:8080-8085 foo\n    bind 127.0.0.1:8090-8095,127.0.0.1:8099 ssl",
        "bind 127.0.0.1:8080 \"\" ssl",
        "bind 127.0.0.1:8080 name \"a long name that goes on for much longer than the eighty bytes of a quote\" \"\" ssl",
        "bind 127.0.0.1:8080 proto h3",
        "bind 127.0.0.1:8080 thread 63-64\n    bind 127.0.0.1:8081 thread 9/1",
        "bind 127.0.0.1:8080 ssl crt /nosuch.pem\n    bind abns@x ssl ca-file /nosuch.pem",
        "bind 127.0.0.1:8080 process 1/1-64 nosuch",
        "bind 127.0.0.1:8081 user nosuch\n    use_backend nosuch",
        "bind \"127.0.0.1:${NOT_SET-8080}\" foo",
        "bind 127.0.0.1:8080 interface",
    ];
    let mut all: Vec<_> = lines.map(str::to_owned).to_vec();
    all.push(format!("bind 127.0.0.1:8080,127.0.0.1:8081{words}"));
    all
}

/// The output without pids.
fn without_pids(said: &str) -> String {
    let mut out = String::new();
    for line in said.lines() {
        match line.split_once('(').zip(line.split_once(") : ")) {
            Some(((level, _), (_, rest))) if line.starts_with('[') => {
                out += &format!("{} {rest}\n", level.trim_end());
            }
            _ => out += &format!("{line}\n"),
        }
    }
    out
}

#[test]
fn the_words_are_those_of_haproxy_on_the_users_file() {
    let fetched = ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched);
    let haproxies: Vec<PathBuf> = Haproxy::system().into_iter().chain(fetched).collect();
    for program in &haproxies {
        // The ports above need the test's own network namespace.
        let Some(scene) = Scene::isolated("no network of its own") else { return };
        let _broker = scene.broker();
        for lines in faults() {
            let file = scene.write("f.cfg", &format!("{DEFAULTS}frontend f\n    {lines}\n"));
            let mut plain = scene.command(program);
            let plain = plain.arg("-c").arg("-f").arg(&file).output().expect("haproxy");
            let mut ours = scene.bindonce("check");
            let ours = ours.arg("--").arg(program).arg("-f").arg(&file).output().expect("check");
            let text = |bytes: &[u8]| without_pids(&String::from_utf8_lossy(bytes));
            assert_eq!(text(&ours.stderr), text(&plain.stderr), "{program:?} {lines}");
            assert_eq!(text(&ours.stdout), text(&plain.stdout), "{program:?} {lines}");
            assert_eq!(ours.status.success(), plain.status.success(), "{program:?} {lines}");
        }
    }
}

/// A haproxy that does not end, as some do with `-c`, from a script that also starts something
/// else; its pid is in `pid`.
fn endless(scene: &Scene) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let pid = scene.path("pid");
    let text = format!(
        "#!/bin/sh\necho still here >&2\nsleep 600 &\necho $$ >{0}.new\nmv {0}.new {0}\nexec sleep 600\n",
        pid.display()
    );
    let path = scene.write("endless", &text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

fn wait_started(scene: &Scene) -> i32 {
    eventually("the haproxy that does not end to start", || {
        std::fs::read_to_string(scene.path("pid")).ok()?.trim().parse().ok()
    })
}

fn is_gone(pid: i32) -> Option<()> {
    (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
}

/// `bindonce VERB` where no broker is named and none is at the default path, whatever runs on this
/// host.
fn without_broker(scene: &Scene, verb: &str) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let script = "mount -t tmpfs none /run && exec \"$0\" \"$@\"";
        let mut command = scene.command("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(bindonce());
        command
    } else {
        scene.command(bindonce())
    };
    command.env("XDG_RUNTIME_DIR", scene.path("none")).arg(verb);
    command
}

/// One address with and without a device: two sockets for haproxy, and for a reload.
#[test]
fn an_address_of_one_device_beside_the_same_of_all_is_accepted() {
    let Some(haproxy) = Haproxy::system() else { return };
    for broker in [false, true] {
        let scene = Scene::new();
        let _broker = broker.then(|| scene.broker());
        let address = scene.address();
        let text = format!(
            "{DEFAULTS}frontend f\n    bind {address} interface lo\nfrontend g\n    bind {address}\n"
        );
        let file = scene.write("f.cfg", &text);
        let mut check =
            if broker { scene.bindonce("check") } else { without_broker(&scene, "check") };
        finish(check.arg("--").arg(&haproxy).arg("-f").arg(&file)).ok();
        assert!(listening(address).is_empty(), "the check has left a socket");
    }
}

#[test]
fn nothing_stays_bound_when_a_signal_ends_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGKILL] {
        for broker in [false, true] {
            let scene = Scene::new();
            let _broker = broker.then(|| scene.broker());
            let address = scene.address();
            let path = scene.path("app.sock");
            let text =
                format!("frontend f\n    bind {address}\n    bind unix@{}\n", path.display());
            let file = scene.write("f.cfg", &text);
            let mut command =
                if broker { scene.bindonce("check") } else { without_broker(&scene, "check") };
            command.arg("--").arg(endless(&scene)).arg("-f").arg(&file);
            let mut check = Process::start(&mut command);
            let haproxy = wait_started(&scene);
            assert!(!listening(address).is_empty(), "the check has bound nothing");
            check.signal(signal);
            eventually("the check to end", || (!check.is_running()).then_some(()));
            eventually("its haproxy to be gone", || is_gone(haproxy));
            eventually("its socket to be closed", || listening(address).is_empty().then_some(()));
            eventually("its path to be gone", || (!path.exists()).then_some(()));
        }
    }
}

#[test]
fn a_haproxy_that_does_not_end_has_a_deadline() {
    let (scene, _broker) = Scene::with_broker();
    let address = scene.address();
    let file = scene.write("f.cfg", &format!("frontend f\n    bind {address}\n"));
    let mut command = scene.bindonce("check");
    // Long enough for a script to begin on a busy machine.
    command.args(["--timeout", "3s", "--"]).arg(endless(&scene)).arg("-f").arg(&file);
    let said = finish(&mut command).fails(1);
    for part in ["still here", "within 3s", "--timeout", "not checked"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let haproxy = wait_started(&scene);
    eventually("its haproxy to be gone", || is_gone(haproxy));
    eventually("its socket to be closed", || listening(address).is_empty().then_some(()));
}

#[test]
fn a_configuration_that_cannot_be_read_has_the_same_deadline() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let file = scene.path("pipe.cfg");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut command = scene.bindonce("check");
    command.args(["--timeout", "300ms", "--"]).arg(program).arg("-f").arg(&file);
    let said = finish(&mut command).fails(1);
    assert!(said.contains("not read within 300ms: a file of it"), "{said}");
}

/// A reload changes these options in place. The check says that it will, and changes nothing.
#[test]
fn what_a_reload_would_change_is_accepted_and_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, path) = (scene.address(), scene.path("app.sock"));
    let text = |backlog, mode| {
        let path = path.display();
        format!(
            "{DEFAULTS}frontend f\n    bind {address} backlog {backlog}\n    bind {path} mode {mode}\n"
        )
    };
    let file = scene.write("haproxy.cfg", &text(11, 660));
    let haproxy = Haproxy::start(&scene, &program, &file);
    scene.write("haproxy.cfg", &text(12, 600));
    let has = |backlog, mode: u32| {
        assert_eq!(listening(address)[0].limit, backlog);
        assert_eq!(path.metadata().expect("a path").permissions().mode() & 0o777, mode);
    };
    let mut check = scene.bindonce("check");
    check.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file);
    finish(&mut check).ok();
    has(11, 0o660);
    haproxy.reload(&scene).ok();
    has(12, 0o600);
}

/// The check refuses what a reload refuses because of the broker's listeners.
#[test]
fn what_a_reload_would_refuse_is_refused() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let (address, other) = (scene.address(), scene.address());
    let mut somebody = scene.wire();
    somebody.call("bind", &serde_json::json!([{ "listen": other.to_string() }]));
    let frontend = |binds: &str| format!("{DEFAULTS}frontend f\n{binds}");
    let (port, theirs) = (address.port(), other.port());
    let file = scene.write("haproxy.cfg", &frontend(&format!("    bind [::]:{port} v6only\n")));
    let haproxy = Haproxy::start(&scene, &program, &file);
    let socket = scene.path("stats.sock");
    for (text, why) in [
        (frontend(&format!("    bind [::]:{port}\n")), "a new socket is needed"),
        (format!("global\n    stats socket {}\n", socket.display()), "nothing for clients"),
        (
            frontend(&format!("    bind *:{theirs}\n    bind 127.255.255.254:{theirs}\n")),
            "overlaps",
        ),
    ] {
        scene.write("haproxy.cfg", &text);
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains(why), "{said}");
        let mut check = scene.bindonce("check");
        check.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file);
        let said = finish(&mut check).fails(1);
        assert!(said.contains(why), "{said}");
    }
}

/// On Debian an ordinary user has no sbin in PATH.
#[test]
fn haproxy_is_found_where_packages_put_it() {
    let Some(_) = Haproxy::system().filter(|path| path.starts_with("/usr/sbin")) else {
        return skip("haproxy is not in /usr/sbin");
    };
    let (scene, _broker) = Scene::with_broker();
    let file = scene.write("haproxy.cfg", &config(scene.address(), 1));
    let mut command = scene.bindonce("check");
    command.env("PATH", "/usr/bin:/bin").args(["--", "haproxy", "-f"]).arg(&file);
    finish(&mut command).ok();
    let mut command = scene.bindonce("check");
    command.env("PATH", "/usr/bin:/bin").args(["--", "haproxy-none", "-f"]).arg(&file);
    let said = finish(&mut command).fails(1);
    assert!(said.contains("it is not in PATH"), "{said}");
}
