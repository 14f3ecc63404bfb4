//! Migration from a running haproxy: `adopt`, `run`, `adopt --retire`, under load.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use bindonce_load::{Load, Plan};
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, Haproxy, Listening, Process, Scene, assert_nothing_lost, config, eventually,
    listening, skip,
};

/// A plain haproxy, started as users start it, under load.
struct Plain {
    process: Process,
    address: SocketAddr,
    load: Load,
    scene: Scene,
}

impl Plain {
    /// None if the test cannot have its own network namespace, with the reason reported.
    fn start(program: &Path, mode: &[&str], bind: &str, expose: bool) -> Option<Self> {
        let scene = Scene::isolated(
            "needs root, to move connections between sockets of a network of its own",
        )?;
        let (address, peers) = (scene.address(), scene.address());
        let expose = if expose { " expose-fd listeners" } else { "" };
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
        let text = "global\n    nbthread 4\n".to_owned()
            + &config(address, 1).replace(
                &format!("bind {address}"),
                &format!("bind {address} {bind}\n    bind {}", scene.path("app.sock").display()),
            )
            + &format!(
                "peers others\n    peer {} {peers}\nglobal\n    stats socket {} level admin{expose}\n",
                host.trim(),
                scene.path("admin.sock").display()
            );
        let file = scene.write("haproxy.cfg", &text);
        let mut process = Process::start(scene.command(program).args(mode).arg("-f").arg(file));
        eventually("haproxy to listen", || {
            assert!(process.is_running(), "{}", process.story());
            (!listening(address).is_empty()).then_some(())
        });
        let mut plan = Plan::new(address);
        plan.clients = 10;
        plan.rate = Some(1000);
        let load = plan.start().expect("load");
        assert!(load.wait_for(20, DEADLINE), "no answers");
        Some(Self { process, address, load, scene })
    }

    fn adopt(&self, arguments: &[&str]) -> Value {
        let said = self.scene.run("adopt", &[arguments, &["--json"]].concat()).ok();
        serde_json::from_str(&said).expect("JSON")
    }

    /// The whole migration, from the plain haproxy to the second reload. Returns the output of
    /// `adopt` and of `adopt --retire`.
    fn walk(mut self, program: &Path, from: &[&str]) -> (Value, Value) {
        let scene = &self.scene;
        let broker = scene.broker();
        // The holder of the address is found within half a second, or not reported.
        let said = eventually("who has the address", || {
            let said = scene.run("bind", &[&self.address.to_string()]).fails(1);
            said.contains("held by pid ").then_some(said)
        });
        // Some haproxies are started by a script through the loader, whose name they then bear.
        let named = said.contains("haproxy)");
        assert_eq!(said.contains("hint: `bindonce adopt --pid "), named, "{said}");
        let adopted = self.adopt(from);
        let inode = adopted["adopted"][0]["inode"].as_u64().expect("an inode");
        // Peers and the stats socket, which `run` leaves to haproxy, stay where they are.
        assert_eq!(adopted["left"].as_array().map(Vec::len), Some(2), "{adopted:#}");
        let pid = self.process.pid().to_string();
        assert_eq!(adopted["retire"].to_string(), pid);
        let retire = ["--pid", pid.as_str(), "--retire"];
        for dry_run in [&[][..], &["--dry-run"][..]] {
            let early = self.scene.run("adopt", &[&retire[..], dry_run].concat()).fails(1);
            assert!(early.contains("nothing else serves") && early.contains("hint:"), "{early}");
        }

        let file = scene.path("haproxy.cfg");
        let haproxy = Haproxy::start(scene, program, &file);
        let before = inodes(self.address).len();
        let planned = self.adopt(&[&retire[..], &["--dry-run"][..]].concat());
        assert_eq!(inodes(self.address).len(), before, "{planned:#}");
        let retired = self.adopt(&retire);
        for same in ["retired", "addresses", "closed_beside", "migration"] {
            assert_eq!(planned[same], retired[same], "{planned:#}");
        }
        assert_eq!((&planned["dry_run"], &retired["dry_run"]), (&json!(true), &json!(false)));
        // One socket on the address is left: the adopted one.
        assert_eq!(inodes(self.address), [inode], "{retired:#}");
        self.process.wait_exit();
        for generation in [2, 3] {
            fs::write(
                &file,
                fs::read_to_string(&file).expect("it").replace(
                    &format!("x-generation {}", generation - 1),
                    &format!("x-generation {generation}"),
                ),
            )
            .expect("the file");
            haproxy.reload(scene).ok();
            assert_eq!(inodes(self.address), [inode]);
        }
        assert!(self.load.wait_for(20, DEADLINE), "no more answers");
        let report = self.load.stop();
        // A handshake that ends in the microseconds in which its socket closes is reset: the kernel
        // moves what waits there, not what it is about to add (inet_csk_reqsk_queue_add).
        let closing = retired["closed_beside"].as_u64().expect("a number");
        assert!(report.reset <= closing, "{report}");
        assert_eq!(
            (report.failed() - report.reset, report.local, report.stale),
            (0, 0, 0),
            "{report}"
        );
        println!("{report}");
        let sysctl = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
        if let Ok(value) = sysctl {
            assert_eq!(value.trim(), "0", "left as it was");
        }
        drop(haproxy);
        drop(broker);
        (adopted, retired)
    }
}

/// The sockets on an address, from the kernel's own list.
fn inodes(address: SocketAddr) -> Vec<u64> {
    listening(address).into_iter().map(|socket| socket.inode).collect()
}

fn by_the_stats_socket(program: &Path) {
    let Some(plain) = Plain::start(program, &["-db"], "shards by-thread", true) else { return };
    let socket = plain.scene.path("admin.sock").display().to_string();
    let (adopted, retired) = plain.walk(program, &["--stats-socket", &socket]);
    assert_eq!(adopted["adopted"][0]["siblings"].as_array().map(Vec::len), Some(3), "{adopted:#}");
    assert_eq!(adopted["adopted"][0]["exclusive"], false);
    assert_eq!((&retired["closed_beside"], &retired["migration"]), (&json!(3), &json!("moved")));
    assert_eq!(retired["others"], json!([]));
    assert_eq!(retired["ghosts_left"], Value::Null);
}

#[test]
fn by_the_stats_socket_from_the_haproxy_of_this_system() {
    let Some(program) = Haproxy::system() else { return };
    by_the_stats_socket(&program);
}

#[test]
fn by_the_stats_socket_from_3_0() {
    let Some(program) = Haproxy::fetched("3.0") else { return };
    by_the_stats_socket(&program);
}

#[test]
fn by_the_stats_socket_from_3_2() {
    let Some(program) = Haproxy::fetched("3.2") else { return };
    by_the_stats_socket(&program);
}

#[test]
fn by_pid_from_a_master_with_a_worker() {
    let Some(program) = Haproxy::system() else { return };
    let Some(plain) = Plain::start(&program, &["-W", "-db"], "", false) else { return };
    // haproxy does not hand out sockets that it does not expose.
    let socket = plain.scene.path("admin.sock").display().to_string();
    let said = plain.scene.run("adopt", &["--stats-socket", &socket]).fails(1);
    assert!(said.contains("expose-fd listeners"), "{said}");
    let pid = plain.process.pid().to_string();
    let (adopted, retired) = plain.walk(&program, &["--pid", &pid]);
    assert_eq!(adopted["adopted"].as_array().map(Vec::len), Some(2), "{adopted:#}");
    assert_eq!(retired["migration"], "not needed", "{retired:#}");
}

#[test]
fn a_dry_run_and_a_mistake_change_nothing() {
    let Some(program) = Haproxy::system() else { return };
    let Some(plain) = Plain::start(&program, &["-db"], "", true) else { return };
    let _broker = plain.scene.broker();
    let socket = plain.scene.path("admin.sock").display().to_string();
    let before = listening(plain.address);
    let said = plain.scene.run("adopt", &["--stats-socket", &socket, "--dry-run"]).ok();
    assert!(said.contains("would adopt") && said.contains("joinable"), "{said}");
    let pid = plain.process.pid().to_string();
    let said = plain.scene.run("adopt", &["--pid", &pid, "127.0.0.1:1"]).fails(1);
    assert!(said.contains("not there"), "{said}");
    let said = plain.scene.run("adopt", &["--pid", &pid, "--retire"]).fails(1);
    assert!(said.contains("adopt them first"), "{said}");
    let own = std::process::id().to_string();
    let said = plain.scene.run("adopt", &["--pid", &own, "--retire", "--dry-run"]).fails(1);
    assert!(said.contains("is not haproxy"), "{said}");
    // Higher than any pid (proc_sys_kernel(5)).
    let said = plain.scene.run("adopt", &["--pid", "4194305", "--retire"]).fails(1);
    assert!(said.contains("there is no process 4194305"), "{said}");
    assert_eq!(plain.scene.run("list", &[]).ok(), "no listener is held\n");
    // Without the number of waiting connections: clients connect meanwhile.
    let sockets = |seen: &[Listening]| seen.iter().map(|s| (s.inode, s.limit)).collect::<Vec<_>>();
    assert_eq!(sockets(&listening(plain.address)), sockets(&before));
    // By name, for one address; a second adoption gives the same socket.
    let named = format!("web={}", plain.address);
    for _ in 0..2 {
        let said = plain.scene.run("adopt", &["--stats-socket", &socket, &named]).ok();
        let at = plain.scene.socket();
        let given = format!("adopt --socket {} --pid {pid} --retire", at.display());
        assert!(said.contains(&given), "{said}");
        let listed = plain.scene.wire().call("list", &json!([]));
        assert_eq!(listed["listeners"].as_array().map(Vec::len), Some(1), "{listed}");
        assert_eq!(
            (&listed["listeners"][0]["name"], &listed["listeners"][0]["inode"]),
            (&json!("web"), &json!(before[0].inode))
        );
    }
    assert_nothing_lost(&plain.load.stop());
}

#[test]
fn what_waits_in_a_socket_that_closes_is_moved_and_answered() {
    let Some(program) = Haproxy::system() else { return };
    let Some(plain) = Plain::start(&program, &["-db"], "shards by-thread backlog 100", true) else {
        return;
    };
    let Plain { mut process, address, load, scene } = plain;
    assert_nothing_lost(&load.stop());
    process.terminate();
    // A haproxy at its connection limit accepts no more.
    let file = scene.path("haproxy.cfg");
    let text = fs::read_to_string(&file).expect("the file");
    fs::write(&file, text.replace("maxconn 500", "maxconn 3")).expect("the file");
    let mut process = Process::start(scene.command(&program).arg("-db").arg("-f").arg(&file));
    eventually("haproxy to listen", || (inodes(address).len() == 4).then_some(()));
    let half = |text: &str| {
        let mut stream = TcpStream::connect(address).expect("connecting");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(text.as_bytes()).expect("a request");
        stream
    };
    let queued = || listening(address).iter().map(|socket| socket.waiting).sum::<u32>();
    // One after the other: a thread of haproxy that looks for another connection counts it while it
    // looks, and a thread that finds the limit reached then waits for a connection to end.
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(half("GET / HTTP/1.1\r\n"));
        eventually("the connection to be accepted", || (queued() == 0).then_some(()));
    }
    let waiting: Vec<TcpStream> = (0..24).map(|_| half("GET / HTTP/1.0\r\n\r\n")).collect();
    assert!(queued() > 12, "they wait: {:?}", listening(address));

    let _broker = scene.broker();
    fs::write(&file, text).expect("the file");
    let pid = process.pid().to_string();
    scene.run("adopt", &["--pid", &pid]).ok();
    let _haproxy = Haproxy::start(&scene, &program, &file);
    scene.run("adopt", &["--pid", &pid, "--retire"]).ok();
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, not a reset");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(kept);
    process.wait_exit();
}

/// Another user's process named haproxy. It holds a listener, and reports who asks it about a
/// condition.
#[test]
fn a_process_of_another_user_is_asked_with_that_user_s_rights() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    if !nix::unistd::geteuid().is_root() {
        return skip("running something as another user needs root");
    }
    let Some(real) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    let place = scene.path("theirs");
    fs::create_dir(&place).expect("a directory");
    for (path, mode) in [(scene.path(""), 0o755), (place.clone(), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let address = scene.address();
    let program = place.join("haproxy");
    let asked = place.join("asked");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" -c \"*) id -u >{}; exec {} \"$@\";; esac\nsleep 1000 & wait\n",
        asked.display(),
        real.display()
    );
    fs::write(&program, script).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let file = place.join("haproxy.cfg");
    let text = format!(".if feature(X)\n.endif\nfrontend f\n    bind {address}\n");
    fs::write(&file, text).expect("a configuration");
    let listener = std::net::TcpListener::bind(address).expect("a listener");
    let mut command = scene.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.arg("-f").arg(&file).process_group(0);
    command.stdin(std::os::fd::OwnedFd::from(listener)).stdout(std::process::Stdio::null());
    let mut child = command.spawn().expect("their process");
    drop(command);
    let pid = child.id();
    eventually("it to be called haproxy", || {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "haproxy").then_some(())
    });
    let said = scene.run("adopt", &["--pid", &pid.to_string(), "--dry-run"]);
    nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("ending it");
    child.wait().expect("its end");
    let said = said.ok();
    assert!(said.contains(&address.to_string()), "{said}");
    assert_eq!(fs::read_to_string(&asked).expect("who asked").trim(), "65534");
}
