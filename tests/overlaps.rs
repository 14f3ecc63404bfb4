//! Wildcards beside each other and beside addresses that they cover: each connection reaches the
//! `bind` line to which plain haproxy would give it, through reloads, kills and upgrades, and no
//! other process can join.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::{DEADLINE, Haproxy, Process, Scene, bindonce, eventually, finish};

const PORT: u16 = 8080;

/// The addresses that clients connect to.
const CLIENTS: [&str; 4] = ["127.0.0.1", "127.0.0.2", "::1", "fd00::1"];

/// A scene with its own network namespace and an address beside loopback's.
pub(crate) fn scene() -> Option<Scene> {
    let scene =
        Scene::isolated("it takes a network namespace: wildcards would meet what runs here")?;
    finish(Command::new("ip").args(["-6", "address", "add", "fd00::1/128", "dev", "lo", "nodad"]))
        .ok();
    Some(scene)
}

pub(crate) fn haproxies() -> Vec<PathBuf> {
    let fetched = ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched);
    Haproxy::system().into_iter().chain(fetched).collect()
}

/// A configuration with a section for each of these `bind` words, which answers with the words.
pub(crate) fn config(binds: &[&str]) -> String {
    let mut text =
        "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n"
            .to_owned();
    for (number, bind) in binds.iter().enumerate() {
        let answer =
            format!("http-request return status 200 content-type text/plain string <{number}>");
        writeln!(text, "frontend f{number}\n bind {bind}\n {answer}").expect("a String");
    }
    text
}

/// The section that answers a connection, or its failure.
pub(crate) fn ask(ip: &str) -> String {
    let at = SocketAddr::new(ip.parse::<IpAddr>().expect(ip), PORT);
    let answer = TcpStream::connect_timeout(&at, DEADLINE).and_then(|mut stream| {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    match answer {
        Ok(answer) => answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned(),
        Err(error) => error.kind().to_string(),
    }
}

fn answers() -> Vec<String> {
    CLIENTS.map(ask).to_vec()
}

/// The answers of plain haproxy with this configuration.
fn alone(scene: &Scene, program: &Path, file: &Path) -> Vec<String> {
    let mut haproxy = Process::start(scene.command(program).args(["-db", "-f"]).arg(file));
    eventually("haproxy alone to listen", || {
        CLIENTS.iter().any(|ip| ask(ip).starts_with('<')).then_some(())
    });
    let answers = answers();
    haproxy.kill();
    answers
}

/// The addresses where another process of this user can bind and listen, whatever options it sets.
pub(crate) fn strangers() -> Vec<String> {
    let mut in_there = Vec::new();
    for ip in ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "fd00::1"] {
        for (port, address) in [(true, true), (true, false), (false, true)] {
            let at = SocketAddr::new(ip.parse().expect(ip), PORT);
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("socket");
            socket.set_reuse_port(port).expect("SO_REUSEPORT");
            socket.set_reuse_address(address).expect("SO_REUSEADDR");
            if socket.bind(&at.into()).is_ok() && socket.listen(1).is_ok() {
                in_there.push(ip.to_owned());
            }
        }
    }
    in_there.dedup();
    in_there
}

/// The lines of the configuration at each reload.
const STEPS: [&[&str]; 13] = [
    &["*:8080"],
    &["*:8080", "127.0.0.1:8080"],
    &["*:8080", "[::]:8080", "127.0.0.1:8080"],
    &["127.0.0.1:8080", "[::]:8080", "*:8080", "[::1]:8080"],
    &["[::]:8080", "*:8080"],
    &["*:8080", "[::1]:8080", "[::]:8080"],
    &["*:8080", "127.0.0.2:8080"],
    &["127.0.0.1:8080"],
    &["127.0.0.1:8080", MAPPED],
    &[MAPPED],
    &[MAPPED, "127.0.0.1:8080"],
    &[MAPPED, "127.0.0.1:8080", "*:8080"],
    &["[::ffff:0.0.0.0]:8080", "*:8080"],
];

/// `127.0.0.1` in the notation of an IPv6 socket.
pub(crate) const MAPPED: &str = "[::ffff:127.0.0.1]:8080";

pub(crate) fn broker(scene: &Scene, privileged: bool) -> Process {
    if privileged {
        return scene.broker();
    }
    let serve = scene.bindonce("serve");
    let mut command = scene.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    command.arg(serve.get_program()).args(serve.get_args());
    let mut broker = Process::start(&mut command);
    scene.wait_broker(&mut broker);
    broker
}

fn through_reloads(privileged: bool) {
    for program in haproxies() {
        let Some(scene) = scene() else { return };
        let _broker = broker(&scene, privileged);
        let file = scene.write("haproxy.cfg", &config(STEPS[0]));
        let haproxy = Haproxy::start(&scene, &program, &file);
        for (number, binds) in STEPS.iter().enumerate() {
            scene.write("haproxy.cfg", &config(binds));
            haproxy.reload(&scene).ok();
            settled(&scene, binds.len());
            // Plain haproxy is started anew each time, in another network namespace.
            let expected = std::thread::scope(|scope| {
                let alone = || {
                    let other = self::scene().expect("another network");
                    let file = other.write("haproxy.cfg", &config(binds));
                    alone(&other, &program, &file)
                };
                scope.spawn(alone).join().expect("its answers")
            });
            assert_eq!(answers(), expected, "step {number}, {binds:?}, {}", program.display());
            let free: &[&str] = match number {
                7..11 => &["127.0.0.2", "::1", "fd00::1"],
                0 | 1 | 6 | 11 | 12 => &["::1", "fd00::1"],
                _ => &[],
            };
            assert_eq!(strangers(), free, "step {number}, {binds:?}");
        }
    }
}

/// Waits until the broker holds no listener but those of the configuration.
#[track_caller]
pub(crate) fn settled(scene: &Scene, count: usize) {
    eventually("what the configuration names no more to be released", || {
        let listed = scene.wire().call("list", &json!([]));
        (listed["listeners"].as_array()?.len() == count).then_some(())
    });
}

#[test]
fn through_reloads_each_connection_reaches_the_line_that_haproxy_alone_gives_it() {
    through_reloads(true);
}

#[test]
fn a_broker_without_capabilities_over_the_network_does_the_same() {
    through_reloads(false);
}

#[test]
fn overlapping_listeners_outlive_a_kill_an_upgrade_and_a_disconnect() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    let mut broker = scene.broker();
    let binds = ["*:8080", "[::]:8080", "127.0.0.1:8080", "[::1]:8080"];
    let expected = ["<2>", "<0>", "<3>", "<1>"];
    let file = scene.write("haproxy.cfg", &config(&binds));
    let mut haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(answers(), expected);
    assert!(strangers().is_empty());

    scene.run("upgrade", &[]).ok();
    haproxy.reload(&scene).ok();
    assert_eq!(answers(), expected, "after an upgrade");

    broker.kill();
    let mut broker = scene.broker();
    settled(&scene, 4);
    haproxy.reload(&scene).ok();
    assert_eq!(answers(), expected, "after a kill");
    assert!(strangers().is_empty());

    // The broker makes each listen again after a client shuts it down.
    for bind in ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:8080", "[::1]:8080"] {
        let (_, fds) = scene.wire().bind(&binds.map(|bind| bind.trim_start_matches('*')));
        let place = ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:8080", "[::1]:8080"];
        let index = place.iter().position(|place| *place == bind).expect(bind);
        let shared = SockRef::from(&fds[index]);
        shared.shutdown(Shutdown::Both).expect("it leaves LISTEN");
        eventually("it to listen again", || shared.is_listener().ok()?.then_some(()));
        // Another process can join it for microseconds, until the broker's turn is over; then the
        // broker answers.
        scene.run("ping", &[]).ok();
        assert!(strangers().is_empty(), "{bind}");
    }

    // No process has them, and the broker is gone in between: they are bound anew.
    haproxy.supervisor.signal(Signal::SIGTERM);
    haproxy.supervisor.wait_exit();
    broker.kill();
    let _broker = scene.broker();
    settled(&scene, 4);
    let _haproxy = Haproxy::start(&scene, &program, &file);
    assert_eq!(answers(), expected, "bound anew");
    assert!(strangers().is_empty());
}

#[test]
fn a_check_takes_no_connection_from_what_serves() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    // The service serves `*`, and would serve the others only after a reload.
    let checked = scene.write("checked.cfg", &config(&["127.0.0.1:8080", "[::]:8080", "*:8080"]));
    let check = |arguments: &[&str]| {
        let mut command = scene.command(bindonce());
        command.arg("check").args(arguments).arg("--").arg(&program).arg("-f").arg(&checked);
        Process::start(&mut command)
    };
    assert!(check(&[]).wait_exit().success());
    let _broker = scene.broker();
    let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
    let _haproxy = Haproxy::start(&scene, &program, &file);
    let mut checking = check(&["--socket", &scene.socket().display().to_string()]);
    loop {
        assert_eq!(ask("127.0.0.1"), "<0>");
        if !checking.is_running() {
            break;
        }
    }
    assert!(checking.wait_exit().success(), "{}", checking.story());
    settled(&scene, 1);
}

#[test]
fn what_is_for_ipv6_alone_by_default_is_so_under_bindonce() {
    let (Some(program), Some(scene)) = (Haproxy::system(), scene()) else { return };
    fs::write("/proc/sys/net/ipv6/bindv6only", "1").expect("the sysctl");
    let _broker = scene.broker();
    for binds in [&["[::]:8080"][..], &["*:8080", "[::]:8080"], &["[::]:8080 v4v6"]] {
        let file = scene.write("haproxy.cfg", &config(binds));
        let expected = alone(&scene, &program, &file);
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        assert_eq!(answers(), expected, "{binds:?}");
        haproxy.supervisor.signal(Signal::SIGTERM);
        haproxy.supervisor.wait_exit();
        // The previous configuration had another listener at the same address.
        assert!(!haproxy.supervisor.story().contains("not released"), "{binds:?}");
        let held = scene.wire().call("list", &json!([]));
        let names = held["listeners"].as_array().expect("listeners").iter();
        let names: Vec<&str> = names.map(|one| one["name"].as_str().expect("a name")).collect();
        scene.run("release", &names).ok();
    }
}

#[test]
fn one_address_on_two_lines_is_refused_or_shared_and_never_split() {
    let Some(scene) = scene() else { return };
    for program in haproxies() {
        let _broker = scene.broker();
        let file = scene.write("haproxy.cfg", &config(&["*:8080", "*:8080"]));
        let mut command = scene.bindonce("run");
        let said = finish(command.arg("--").arg(&program).arg("-f").arg(&file)).fails(1);
        assert!(said.contains("split connections between them at random"), "{said}");
        // In one section with the same words, it does not matter which of them accepts.
        let same = format!("*:8080\n bind *:8080\n bind 127.0.0.1:8080\n bind {MAPPED}");
        let file = scene.write("haproxy.cfg", &config(&[&same]));
        let haproxy = Haproxy::start(&scene, &program, &file);
        for _ in 0..3 {
            assert_eq!(answers()[..2], ["<0>", "<0>"]);
            haproxy.reload(&scene).ok();
        }
    }
}

/// Two services that accept from one socket are two configurations for its clients.
#[test]
fn a_listener_of_one_service_is_refused_to_another_until_that_one_has_stopped() {
    let Some(scene) = scene() else { return };
    for program in haproxies() {
        let _broker = scene.broker();
        let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
        let web = Haproxy::start(&scene, &program, &file);
        let edge = |binds: &[&str], verb: &str| {
            let file = scene.write("edge.cfg", &config(&[&["127.0.0.1:8081"], binds].concat()));
            let mut command = scene.bindonce(verb);
            command.args(["--name", "edge", "--"]).arg(&program).arg("-f").arg(file);
            command
        };
        for binds in [&["*:8080"][..], &["*:8080", "127.0.0.1:8080"], &["127.0.0.1:8080"]] {
            let said = finish(&mut edge(binds, "run")).fails(1);
            assert!(said.contains("0.0.0.0:8080"), "{said}");
            assert_eq!(ask("127.0.0.1"), "<0>");
        }
        let said = finish(&mut edge(&["*:8080"], "run")).fails(1);
        for part in ["is used by web generation ", "service \"edge\" may not", "hint: give each"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let said = finish(&mut edge(&["*:8080"], "check")).fails(0);
        assert!(said.contains("is used by service \"web\""), "{said}");
        drop(web);
        let mut edge = Process::start(&mut edge(&["*:8080"], "run"));
        eventually("edge serves", || (ask("127.0.0.1") == "<1>").then_some(()));
        edge.terminate();
    }
}

/// The check accepts what a reload accepts: a more specific address beside the service's listeners
/// is its own.
#[test]
fn check_judges_an_overlap_with_the_service_as_a_reload_does() {
    for program in haproxies() {
        let Some(scene) = scene() else { return };
        let _broker = scene.broker();
        let file = scene.write("haproxy.cfg", &config(&["*:8080"]));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let check = |binds: &[&str], name: &str| {
            scene.write("haproxy.cfg", &config(binds));
            let command = ["check", "--name", name, "--"];
            finish(
                scene.bindonce(command[0]).args(&command[1..]).arg(&program).arg("-f").arg(&file),
            )
        };
        let refused = check(&["127.0.0.1:8080"], "other").fails(1);
        assert!(refused.contains("127.0.0.1:8080"), "{refused}");
        for binds in [&["127.0.0.1:8080"][..], &["*:8080", "127.0.0.1:8080"]] {
            check(binds, "web").ok();
            assert_eq!(ask("127.0.0.1"), "<0>", "nothing was bound beside it");
            haproxy.reload(&scene).ok();
            scene.write("haproxy.cfg", &config(&["*:8080"]));
            haproxy.reload(&scene).ok();
            assert_eq!(ask("127.0.0.1"), "<0>", "what has left is closed when the reload returns");
        }
    }
}
