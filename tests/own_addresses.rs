//! Addresses that haproxy binds itself and that two generations cannot share: at a reload the older
//! generation lets go of them, and no client of the service notices.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::Path;

use bindonce_load::{Load, Plan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    DEADLINE, Haproxy, Process, Scene, assert_nothing_lost, config, eventually, finish,
};

/// A haproxy under load whose stats socket is such an address. Fields are dropped in this order.
struct Stage {
    load: Load,
    haproxy: Haproxy,
    _broker: Process,
    scene: Scene,
    address: SocketAddr,
    stats: SocketAddr,
}

impl Stage {
    fn start(program: &Path) -> Self {
        let (scene, broker) = Scene::with_broker();
        let (address, stats) = (scene.address(), scene.address());
        let file = scene.write("haproxy.cfg", &with_stats(address, 1, &[stats]));
        let haproxy = Haproxy::start(&scene, program, &file);
        let mut plan = Plan::new(address);
        (plan.clients, plan.rate) = (4, Some(1000));
        let load = plan.start().expect("starting the load");
        assert!(load.wait_for(50, DEADLINE), "no answers");
        Self { load, haproxy, _broker: broker, scene, address, stats }
    }

    fn write(&self, tag: u64, stats: &[SocketAddr]) {
        self.scene.write("haproxy.cfg", &with_stats(self.address, tag, stats));
    }

    /// Checks that one generation serves and has its own address.
    #[track_caller]
    fn is_whole(&self) {
        eventually("one haproxy", || (self.scene.haproxies().len() == 1).then_some(()));
        eventually("its stats socket", || TcpStream::connect(self.stats).ok());
    }
}

fn with_stats(address: SocketAddr, tag: u64, stats: &[SocketAddr]) -> String {
    let line = |at: &SocketAddr| format!("    stats socket ipv4@{at} level admin\n");
    let lines: String = stats.iter().map(line).collect();
    config(address, tag).replace("global\n", &format!("global\n    noreuseport\n{lines}"))
}

/// Connects to an abstract name as haproxy binds it: with zeroes up to the full length.
fn connect_abstract(name: &str) -> std::io::Result<UnixStream> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(107, 0);
    UnixStream::connect_addr(&UnixAddr::from_abstract_name(padded)?)
}

#[test]
fn the_older_generation_lets_go_of_its_own_address() {
    for program in Haproxy::all() {
        let mut stage = Stage::start(&program);
        stage.haproxy.supervisor.wait_line("at a reload the older one lets go of it");
        for tag in 2..6 {
            stage.write(tag, &[stage.stats]);
            stage.haproxy.reload(&stage.scene).ok();
            assert!(stage.load.wait_for_token(&tag.to_string(), DEADLINE), "{tag}");
        }
        stage.is_whole();
        assert_nothing_lost(&stage.load.stop());
    }
}

/// The older generation let go of its address for a new one that fails: it keeps serving, and has
/// the address again.
#[test]
fn the_older_generation_takes_its_own_address_back() {
    for program in Haproxy::all() {
        let mut stage = Stage::start(&program);
        stage.haproxy.supervisor.wait_line("at a reload the older one lets go of it");
        let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = stranger.local_addr().expect("its address");
        stage.write(2, &[stage.stats, taken]);
        let before = stage.haproxy.serving(&stage.scene);
        let said = stage.haproxy.reload(&stage.scene).fails(1);
        assert!(said.contains("taken by another program"), "{said}");
        assert_eq!(stage.haproxy.serving(&stage.scene), before);
        stage.is_whole();
        drop(stranger);
        stage.haproxy.reload(&stage.scene).ok();
        assert!(stage.load.wait_for_token("2", DEADLINE));
        stage.is_whole();
        assert_nothing_lost(&stage.load.stop());
    }
}

/// The older generation is told to accept again and nothing shows that it does: then "still
/// serves" is not reported.
#[test]
fn an_older_generation_that_does_not_accept_again_is_told() {
    let Some(program) = Haproxy::system() else { return };
    let mut stage = Stage::start(&program);
    stage.haproxy.supervisor.wait_line("at a reload the older one lets go of it");
    let (_, pid) = stage.haproxy.wait_serving(&stage.scene);
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = stranger.local_addr().expect("its address");
    stage.write(2, &[stage.stats, taken]);
    let mut reload = Process::start(stage.scene.bindonce("reload").args(["--name", "web"]));
    stage.haproxy.supervisor.wait_line("paused for a moment");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("haproxy");
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    let story = reload.story();
    assert!(story.contains("was resumed (SIGTTIN), but did not list its listeners"), "{story}");
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("haproxy");
    stage.is_whole();
}

/// The supervisor is killed while the older generation is paused for a new one: it accepts again.
#[test]
fn a_supervisor_that_dies_meanwhile_leaves_nobody_paused() {
    let Some(program) = Haproxy::system() else { return };
    let mut stage = Stage::start(&program);
    stage.haproxy.supervisor.wait_line("at a reload the older one lets go of it");
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = stranger.local_addr().expect("its address");
    stage.write(2, &[stage.stats, taken]);
    let mut reload = Process::start(stage.scene.bindonce("reload").args(["--name", "web"]));
    stage.haproxy.supervisor.wait_line("paused for a moment");
    stage.haproxy.supervisor.kill();
    assert_eq!(reload.wait_exit().code(), Some(1), "{}", reload.story());
    stage.is_whole();
    // Waiting clients are answered, and others after them.
    assert!(stage.load.wait_for(500, DEADLINE), "nobody accepts");
    drop(stranger);
    let file = stage.scene.path("haproxy.cfg");
    stage.haproxy = Haproxy::start(&stage.scene, &program, &file);
    stage.haproxy.reload(&stage.scene).ok();
    assert!(stage.load.wait_for_token("2", DEADLINE));
    assert_nothing_lost(&stage.load.stop());
}

/// From 3.0 on this also holds for an abstract name.
#[test]
fn an_abstract_name_is_let_go_of_where_haproxy_can_take_it_back() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let name = format!("own-{}-{}", std::process::id(), scene.address().port());
        let line = format!("global\n    stats socket abns@{name} level admin\n");
        let text = config(scene.address(), 1).replace("global\n", &line);
        let file = scene.write("haproxy.cfg", &text);
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        let told = haproxy.supervisor.wait_line("no two generations can have it");
        if told.contains("the older one lets go of it") {
            haproxy.reload(&scene).ok();
            // The next generation fails, and the name is there again.
            let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
            let taken = stranger.local_addr().expect("its address");
            let both = format!("{line}    stats socket ipv4@{taken}\n");
            scene.write("haproxy.cfg", &text.replace(&line, &both));
            haproxy.reload(&scene).fails(1);
            eventually("its stats socket", || connect_abstract(&name).ok());
            drop(stranger);
            haproxy.reload(&scene).ok();
            eventually("its stats socket", || connect_abstract(&name).ok());
        } else {
            assert!(told.contains("haproxy before 3.0"), "{told}");
            let before = haproxy.serving(&scene);
            haproxy.reload(&scene).fails(1);
            assert_eq!(haproxy.serving(&scene), before);
        }
    }
}

/// A pause would close an abstract listener of the broker for good. No reload succeeds then, which
/// is reported at the first start and by each reload.
#[test]
fn where_it_cannot_let_go_that_is_told_at_the_first_start() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (address, stats) = (scene.address(), scene.address());
        let name = format!("given-{}-{}", std::process::id(), scene.address().port());
        let text = with_stats(address, 1, &[stats]) + &format!("    bind abns@{name}\n");
        let file = scene.write("haproxy.cfg", &text);
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        let told = haproxy.supervisor.wait_line("no reload that keeps it can succeed");
        for part in [&stats.to_string(), "haproxy.cfg:", "Remove `noreuseport` and `-dR`"] {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
        let before = haproxy.serving(&scene);
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains("Remove `noreuseport` and `-dR`"), "{said}");
        assert_eq!(haproxy.serving(&scene), before);
        // After following the hint it reloads: the next generation shares nothing of its own.
        let path = format!("stats socket {} level admin", scene.path("stats.sock").display());
        let text = text.replace(&format!("stats socket ipv4@{stats} level admin"), &path);
        scene.write("haproxy.cfg", &text);
        for _ in 0..2 {
            haproxy.reload(&scene).ok();
        }
    }
}

/// The answer to a request.
#[track_caller]
fn ask(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asking");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

/// An address that haproxy bound itself and that a `bind` line now names moves to the broker as it
/// is: no client is refused.
#[test]
fn an_address_moves_to_a_bind_line() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let (address, stats, path) = (scene.address(), scene.address(), scene.path("own.sock"));
        let with = |tag, own: &str, bind: &str| {
            let text = config(address, tag).replace("global\n", &format!("global\n{own}"));
            text.replace("    http-request", &format!("{bind}    http-request"))
        };
        let own = format!(
            "    stats socket ipv4@{stats} level admin\n    stats socket {} mode 640\n",
            path.display()
        );
        let mode = |path: &Path| fs::metadata(path).expect("a file").mode() & 0o777;
        let plain = scene.path("plain.sock");
        let _plain = UnixListener::bind(&plain).expect("a socket with the mode of the umask");
        let bind = format!("    bind {stats}\n    bind {}\n", path.display());
        let file = scene.write("haproxy.cfg", &with(1, &own, ""));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let mut plan = Plan::new(address);
        (plan.clients, plan.rate) = (4, Some(500));
        let load = plan.start().expect("starting the load");
        assert!(load.wait_for(50, DEADLINE), "no answers");
        // A failed reload: the older generation keeps its address.
        let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = stranger.local_addr().expect("its address");
        let stats_elsewhere = format!("    stats socket ipv4@{taken}\n");
        scene.write("haproxy.cfg", &with(2, &stats_elsewhere, &bind));
        haproxy.reload(&scene).fails(1);
        TcpStream::connect(stats).expect("its stats socket");
        UnixStream::connect(&path).expect("its stats socket");
        assert_eq!(mode(&path), 0o640);
        scene.write("haproxy.cfg", &with(2, "", &bind));
        let mut check = scene.bindonce("check");
        finish(check.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file)).ok();
        let said = haproxy.reload(&scene).ok();
        assert!(said.contains(&format!("had bound {stats} by itself")), "{said}");
        let answer = ask(TcpStream::connect(stats).expect("connecting"));
        assert!(answer.contains("x-generation: 2"), "{answer}");
        let answer = ask(UnixStream::connect(&path).expect("connecting"));
        assert!(answer.contains("x-generation: 2"), "{answer}");
        assert_eq!(mode(&path), mode(&plain), "the line says none");
        // And back: the broker's socket ends with the generation that has it.
        scene.write("haproxy.cfg", &with(3, &own, ""));
        haproxy.reload(&scene).ok();
        eventually("the broker's listeners to be closed", || {
            let listed = scene.wire().call("list", &serde_json::json!([]));
            (listed["listeners"].as_array()?.len() == 1).then_some(())
        });
        TcpStream::connect(stats).expect("its stats socket");
        UnixStream::connect(&path).expect("its stats socket");
        assert_nothing_lost(&load.stop());
    }
}

/// A stats socket that overlaps a `bind` line is an ordinary listener: haproxy could not bind it
/// beside the broker's.
#[test]
fn a_stats_socket_beside_a_wildcard() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let with = |tag| {
            let text = config(address, tag).replace(
                &format!("bind {address}"),
                &format!("bind {address}\n    bind 127.0.0.2:{}", address.port()),
            );
            let line = format!("    stats socket *:{} level admin\n", address.port());
            scene.write("haproxy.cfg", &text.replace("global\n", &format!("global\n{line}")))
        };
        let file = with(1);
        let mut check = scene.bindonce("check");
        finish(check.args(["--name", "web", "--"]).arg(&program).arg("-f").arg(&file)).ok();
        let haproxy = Haproxy::start(&scene, &program, &file);
        for tag in 2..4 {
            with(tag);
            haproxy.reload(&scene).ok();
            let answer = ask(TcpStream::connect(address).expect("connecting"));
            assert!(answer.contains(&format!("x-generation: {tag}")), "{answer}");
            let mut stats = TcpStream::connect(("127.0.0.3", address.port())).expect("connecting");
            stats.write_all(b"show info\n").expect("asking");
            let mut text = String::new();
            stats.read_to_string(&mut text).expect("an answer");
            assert!(text.contains("Name: HAProxy"), "{text}");
        }
    }
}

/// A UNIX datagram socket is haproxy's own and is reported once by its line, also with the prefix
/// of `unix-bind` before its path; sockets that haproxy only tries at its start are not reported.
#[test]
fn a_socket_for_datagrams_is_told_by_its_line() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let directory = scene.path("haproxy.cfg").parent().expect("a directory").to_owned();
        let (name, web) = (format!("datagrams-{}", std::process::id()), scene.path("web.sock"));
        let text = |bind: &str| {
            let prefix = format!("global\n    unix-bind prefix {}\n", directory.display());
            let rest =
                "frontend web\n    bind unix@/web.sock\n    http-request return status 200\n";
            let log = format!("log-forward logs\n    dgram-bind {bind}\n    log stdout local0\n");
            let limits = "    timeout connect 1s\n    timeout client 9s\n    timeout server 9s\n";
            format!("{prefix}defaults\n    mode http\n{limits}{rest}{log}")
        };
        let file = scene.write("haproxy.cfg", &text("unix@/logs.sock"));
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        let told = haproxy.supervisor.wait_line("has bound this path by itself");
        assert!(told.contains("unix@/logs.sock") && told.contains("haproxy.cfg:"), "{told}");
        haproxy.reload(&scene).ok();
        UnixStream::connect(&web).expect("its listener");
        scene.write("haproxy.cfg", &text(&format!("abns@{name}")));
        haproxy.reload(&scene).ok();
        let told = haproxy.supervisor.wait_line("no two generations can have it");
        assert!(told.contains(&name), "{told}");
        let reload = haproxy.reload(&scene);
        if told.contains("the older one lets go of it") {
            reload.ok();
        } else {
            let said = reload.fails(1);
            assert!(said.contains("on a path") && !said.contains("noreuseport"), "{said}");
        }
        let story = haproxy.supervisor.story();
        assert_eq!(story.matches("unix@/logs.sock").count(), 1, "{story}");
        assert!(!story.contains("no line that bindonce knows"), "{story}");
    }
}

/// The supervisor's connections to a generation take none of those that `stats maxconn` gives to
/// the user's admin sockets.
#[test]
fn the_users_admin_socket_has_all_the_connections_of_its_limit() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let stats = scene.path("stats.sock");
        let lines = format!(
            "global\n    stats socket {} level admin\n    stats maxconn 1\n",
            stats.display()
        );
        let text = config(scene.address(), 1).replace("global\n", &lines);
        let file = scene.write("haproxy.cfg", &text);
        let haproxy = Haproxy::start(&scene, &program, &file);
        for _ in 0..2 {
            let mut asking = UnixStream::connect(&stats).expect("connecting");
            asking.set_read_timeout(Some(DEADLINE)).expect("a deadline");
            asking.write_all(b"show info\n").expect("asking");
            let mut text = String::new();
            asking.read_to_string(&mut text).expect("an answer");
            assert!(text.contains("Name: HAProxy"), "{text}");
            haproxy.reload(&scene).ok();
        }
    }
}

/// haproxy says by the same signal that it gives up, whatever the reason: an address is advised only
/// where one was asked for.
#[test]
fn a_start_that_fails_for_another_reason_is_not_about_an_address() {
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let text = config(scene.address(), 1);
        let file = scene.write("haproxy.cfg", &text);
        let haproxy = Haproxy::start(&scene, &program, &file);
        let chroot = "global\n    chroot /nonexistent\n";
        scene.write("haproxy.cfg", &text.replace("global\n", chroot));
        let said = haproxy.reload(&scene).fails(1);
        assert!(said.contains("Cannot chroot") && !said.contains("is taken"), "{said}");
    }
}
