//! The walks of docs/migrating.md, command for command as the page shows them, under load: from a
//! plain haproxy, from multibinder and from systemd's sockets. No connection fails, and one socket
//! serves from beginning to end.
//!
//! Only paths and addresses are filled in, and the answers of `systemctl`: systemd-socket-activate
//! passes the sockets as systemd does, and exits. tests/systemd.rs runs the walks under a real
//! systemd.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use bindonce_load::Plan;
use serde_json::json;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, assert_nothing_lost, bindonce, config, eventually, finish,
    listening, root, skip,
};

/// Binds as multibinder does, with SO_REUSEADDR alone, and holds the socket; renders the template
/// and starts haproxy on the descriptor, as its wrapper does.
const MULTIBINDER: &str = r#"
import os, signal, socket, subprocess, sys
haproxy, address, port, template, pid = sys.argv[1:]
held = socket.socket()
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
held.bind((address, int(port)))
held.listen(10240)
rendered = template.removesuffix(".erb")
text = open(template).read()
begin, end = text.index("<%="), text.index("%>") + 2
open(rendered, "w").write(text[:begin] + f"fd@{held.fileno()}" + text[end:])
child = subprocess.Popen([haproxy, "-db", "-f", rendered], pass_fds=[held.fileno()])
open(pid, "w").write(str(child.pid))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
child.wait()
signal.pause()
"#;

/// The commands of a shell block under a heading, with replacements filled in.
fn commands(heading: &str, block: usize, fill_in: &[(&str, &str)]) -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/migrating.md")).expect("the page");
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let block = section.split("```sh\n").nth(block + 1).expect("a block of shell");
    let (block, _) = block.split_once("```").expect("its end");
    let put_in = |line: &str| {
        fill_in.iter().fold(line.to_owned(), |line, (this, that)| line.replace(this, that))
    };
    block.lines().map(put_in).collect()
}

/// A shell in a reader's environment.
fn shell(scene: &Scene, script: &str) -> Command {
    let bin = scene.path("bin");
    if !bin.exists() {
        fs::create_dir(&bin).expect("a directory");
        std::os::unix::fs::symlink(bindonce(), bin.join("bindonce")).expect("a link");
    }
    let mut command = scene.command("sh");
    command.args(["-ec", script]).env("BINDONCE_SOCKET", scene.socket());
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
    command
}

/// Runs the walk; returns the supervisor at its end.
fn walks(scene: &Scene, heading: &str, fill_in: &[(&str, &str)]) -> Process {
    let mut supervisor = None;
    for line in commands(heading, 0, fill_in) {
        if !line.starts_with("bindonce run") {
            finish(&mut shell(scene, &line)).ok();
            continue;
        }
        let started = Process::start(&mut shell(scene, &format!("exec {line}")));
        let started = supervisor.insert(started);
        eventually("the new haproxy to serve", || {
            assert!(started.is_running(), "{}", started.story());
            let ping = scene.run("ping", &["--name", "haproxy", "--serving"]);
            (ping.code == Some(0)).then_some(())
        });
    }
    supervisor.expect("a walk leads to `bindonce run`")
}

/// Runs the walk under load, and a reload after it. No client notices, and the address has one
/// socket throughout.
fn under_load(scene: &Scene, address: SocketAddr, walk: impl FnOnce() -> Process) {
    let inodes = || listening(address).into_iter().map(|socket| socket.inode).collect::<Vec<_>>();
    eventually("a listener", || (!inodes().is_empty()).then_some(()));
    let before = inodes();
    assert_eq!(before.len(), 1, "one socket");
    let mut plan = Plan::new(address);
    plan.clients = 10;
    plan.rate = Some(1000);
    let load = plan.start().expect("load");
    assert!(load.wait_for(20, DEADLINE), "no answers");
    let mut supervisor = walk();
    scene.run("reload", &[]).ok();
    assert!(load.wait_for(20, DEADLINE), "no more answers");
    let report = load.stop();
    assert_nothing_lost(&report);
    println!("{report}");
    assert_eq!(inodes(), before, "another socket");
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

fn stage() -> Option<(Scene, PathBuf, SocketAddr)> {
    let program = Haproxy::system()?;
    let scene = Scene::isolated("needs root, to take sockets from another process")?;
    let address = scene.address();
    Some((scene, program, address))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn from_a_plain_haproxy() {
    let Some((scene, program, address)) = stage() else { return };
    let (file, pid, stats) =
        (scene.path("haproxy.cfg"), scene.path("haproxy.pid"), scene.path("admin.sock"));
    let stats_line =
        format!("global\n    stats socket {} level admin expose-fd listeners\n", stats.display());
    scene.write("haproxy.cfg", &(config(address, 1) + &stats_line));
    let mut old = Process::start(scene.command(&program).arg("-db").arg("-f").arg(&file));
    scene.write("haproxy.pid", &old.pid().to_string());
    let _broker = scene.broker();
    under_load(&scene, address, || {
        let fill_in = [
            ("/run/haproxy/admin.sock", &*text(&stats)),
            ("/etc/haproxy/haproxy.cfg", &*text(&file)),
            ("/run/haproxy.pid", &*text(&pid)),
        ];
        let supervisor = walks(&scene, "From a plain haproxy", &fill_in);
        old.wait_exit();
        supervisor
    });
}

/// A haproxy on a socket of multibinder; returns the process that stands in for multibinder and its
/// wrapper.
fn multibinder(scene: &Scene, program: &Path, address: SocketAddr) -> Process {
    let tag = format!("<%= bind_tcp('{}', {}) %>", address.ip(), address.port());
    let template = config(address, 1).replace(&address.to_string(), &tag);
    let template = scene.write("haproxy.cfg.erb", &template);
    let mut command = scene.command("python3");
    command.args(["-c", MULTIBINDER]).arg(program);
    command.args([address.ip().to_string(), address.port().to_string()]);
    let holder = Process::start(command.arg(template).arg(scene.path("haproxy.pid")));
    let pid = || fs::read_to_string(scene.path("haproxy.pid")).ok().filter(|pid| !pid.is_empty());
    eventually("its haproxy", pid);
    holder
}

#[test]
fn from_multibinder() {
    let Some((scene, program, address)) = stage() else { return };
    let mut holder = multibinder(&scene, &program, address);
    let _broker = scene.broker();
    under_load(&scene, address, || {
        let fill_in = [
            ("/etc/haproxy/haproxy.cfg.erb", &*text(&scene.path("haproxy.cfg.erb"))),
            ("/run/haproxy.pid", &*text(&scene.path("haproxy.pid"))),
        ];
        let supervisor = walks(&scene, "From multibinder", &fill_in);
        // Nothing of multibinder is in use any more.
        holder.terminate();
        supervisor
    });
}

#[test]
fn other_clients_of_multibinder_find_their_sockets_at_the_broker() {
    let Some((scene, program, address)) = stage() else { return };
    let mut holder = multibinder(&scene, &program, address);
    let inode = eventually("a listener", || listening(address).first().map(|socket| socket.inode));
    let _broker = scene.broker();
    let (pid, claim) = (holder.pid().to_string(), format!("web={address}"));
    let fill_in = [("$(pidof -x multibinder)", &*pid), ("web=0.0.0.0:80", &*claim)];
    for line in commands("From multibinder", 1, &fill_in) {
        finish(&mut shell(&scene, &line)).ok();
    }
    let (ip, port) = (address.ip().to_string(), address.port());
    let request = json!([{"address": ip, "port": port, "backlog": 10240}]);
    let bound = scene.wire().call("bind", &request);
    assert_eq!(bound["listeners"][0]["inode"], inode, "{bound}");
    let haproxy = fs::read_to_string(scene.path("haproxy.pid")).expect("a pid");
    finish(scene.command("kill").arg(haproxy)).ok();
    holder.terminate();
}

#[test]
fn from_systemds_sockets() {
    let Some((scene, program, address)) = stage() else { return };
    let activate = Path::new("/usr/bin/systemd-socket-activate");
    if !activate.exists() {
        return skip("no systemd-socket-activate is installed");
    }
    let file = scene
        .write("haproxy.cfg", &config(address, 1).replace(&format!("bind {address}"), "bind fd@3"));
    let mut command = scene.command(activate);
    command.args(["--listen", &address.to_string()]).arg(&program).arg("-db").arg("-f").arg(&file);
    let mut old = Process::start(&mut command);
    let _broker = scene.broker();
    under_load(&scene, address, || {
        let fill_in = [
            ("/etc/haproxy/haproxy.cfg", &*text(&file)),
            ("bind 0.0.0.0:80", &*format!("bind {address}")),
            ("$(systemctl show -P MainPID haproxy.service)", &*old.pid().to_string()),
            // Only haproxy still has the socket.
            ("systemctl", "true"),
        ];
        let supervisor = walks(&scene, "From systemd's sockets", &fill_in);
        old.wait_exit();
        supervisor
    });
}
