//! Unusual addresses that plain haproxy accepts: under bindonce haproxy listens on them too, and
//! still does after a reload.

use std::ffi::OsStr;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

use crate::harness::{Haproxy, Scene, eventually, finish};

fn answer(mut stream: impl std::io::Read + std::io::Write) -> String {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

fn haproxies() -> Vec<PathBuf> {
    let fetched = ["3.0", "3.2"].into_iter().filter_map(Haproxy::fetched);
    Haproxy::system().into_iter().chain(fetched).collect()
}

/// Why a test needs its own network namespace.
const ITS_OWN: &str = "its names and interfaces are those of a network namespace of its own";

fn config(binds: &[String]) -> String {
    format!(
        "defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 1s\n\
         frontend f\n{}    http-request return status 200 content-type text/plain string one\n",
        binds.iter().map(|bind| format!("    bind {bind}\n")).collect::<String>()
    )
}

#[test]
fn unix_names_that_haproxy_takes_are_served() {
    for program in haproxies() {
        let (scene, _broker) = Scene::with_broker();
        let at = |name: &str| scene.path(name).display().to_string();
        std::fs::create_dir_all(scene.path("deep/er")).expect("directories");
        symlink(scene.path("deep/er"), scene.path("link")).expect("link");
        let abstract_name = format!("{}{}", std::process::id(), "x".repeat(90));
        let binds = [
            format!("unix@{}", at("deep/../up.sock")),
            // The link leads to a deeper directory, not to the test's own.
            format!("unix@{}", at("link/../behind.sock")),
            format!("unix@{}", at("link/linked.sock")),
            format!("{} mode 4755", at("mode.sock")),
            format!("unix@{}", at("bytes-\\xe9.sock")),
            format!("abns@{abstract_name}"),
        ];
        let file = scene.write("f.cfg", &config(&binds));
        let haproxy = Haproxy::start(&scene, &program, &file);
        let ask = || {
            let bytes = scene.path("").join(OsStr::from_bytes(b"bytes-\xe9.sock"));
            let named = ["up.sock", "deep/behind.sock", "deep/er/linked.sock", "mode.sock"];
            let named = named.map(|name| scene.path(name));
            for path in named.iter().map(PathBuf::as_path).chain([bytes.as_path()]) {
                let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                assert!(answer(stream).ends_with("one"), "{path:?}");
            }
            let mode = Path::new(&named[3]).metadata().expect("stat").mode();
            assert_eq!(mode & 0o7777, 0o4755);
            let mut name = abstract_name.clone().into_bytes();
            name.resize(107, 0);
            let address = SocketAddr::from_abstract_name(&name).expect("address");
            let stream = UnixStream::connect_addr(&address).expect("the abstract name");
            assert!(answer(stream).ends_with("one"));
        };
        ask();
        haproxy.reload(&scene).ok();
        ask();
    }
}

#[test]
fn the_empty_abstract_name_is_a_name() {
    for program in haproxies() {
        // The name is shared within a network namespace.
        let Some(scene) = Scene::isolated(ITS_OWN) else { return };
        let _broker = scene.broker();
        let file = scene.write("f.cfg", &config(&["abns@".to_owned()]));
        let haproxy = Haproxy::start(&scene, &program, &file);
        haproxy.reload(&scene).ok();
        let address = SocketAddr::from_abstract_name([0; 107]).expect("address");
        let stream = UnixStream::connect_addr(&address).expect("the empty name");
        assert!(answer(stream).ends_with("one"));
        assert!(scene.run("list", &[]).ok().contains("abns@"), "not of the broker");
    }
}

/// Plain haproxy warns (`cannot bind receiver to device 'nosuch0'`) and listens.
#[test]
fn an_interface_that_does_not_exist_is_bound_on_every_interface() {
    for program in haproxies() {
        let Some(scene) = Scene::isolated(ITS_OWN) else { return };
        let _broker = scene.broker();
        let (address, another) = (scene.address(), scene.address());
        let write = |lines: &[String]| scene.write("f.cfg", &config(lines));
        let nowhere = |at| format!("{at} interface nosuch0");
        let file = write(&[nowhere(address)]);
        let explained = finish(scene.bindonce("render").arg("--explain").arg(&file)).ok();
        assert!(explained.contains("interface nosuch0 does not exist"), "{explained}");
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        haproxy.supervisor.wait_line("the interface nosuch0 does not exist");
        let device = format!("{address},interface=lo");
        for (line, is_there) in [
            (nowhere(address), false),
            (format!("{address} interface lo"), true),
            (nowhere(address), false),
            (address.to_string(), false),
            (nowhere(address), false),
            (format!("{address} interface abcdefghijklmnopqrstuvwxyz"), false),
            (format!("{address} interface \"a 'b\""), false),
            (format!("{address} interface lo"), true),
        ] {
            write(std::slice::from_ref(&line));
            haproxy.reload(&scene).ok();
            assert!(answer(TcpStream::connect(address).expect("connect")).ends_with("one"));
            let listed = scene.run("list", &[]).ok();
            assert!(listed.contains(&address.to_string()), "{line}: {listed}");
            assert_eq!(listed.contains(&device), is_there, "{line}: {listed}");
        }
        write(&[nowhere(address), nowhere(another)]);
        haproxy.reload(&scene).ok();
        assert!(answer(TcpStream::connect(another).expect("connect")).ends_with("one"));
        // Listeners that the broker still holds after the end of the service are no obstacle
        // either.
        write(&[format!("{address} interface lo"), nowhere(another)]);
        haproxy.reload(&scene).ok();
        drop(haproxy);
        write(&[nowhere(address), nowhere(another)]);
        let _haproxy = Haproxy::start(&scene, &program, &file);
        // A client of an address that no generation serves any more is reset when the listener is
        // released.
        eventually("what the configuration names no more to be released", || {
            (!scene.run("list", &[]).ok().contains(&device)).then_some(())
        });
        assert!(answer(TcpStream::connect(address).expect("connect")).ends_with("one"));
    }
}

/// Both are haproxy's own sockets, which share the address with each other and with no socket of
/// the broker.
#[test]
fn two_interfaces_that_do_not_exist_at_one_address_are_haproxys_and_named_where_it_serves() {
    let (Some(program), Some(scene)) = (Haproxy::system(), Scene::isolated(ITS_OWN)) else {
        return;
    };
    let _broker = scene.broker();
    let address = scene.address();
    let two = [format!("{address} interface nosuch0"), format!("{address} interface nosuch1")];
    let file = scene.write("f.cfg", &config(&two));
    let haproxy = Haproxy::start(&scene, &program, &file);
    haproxy.reload(&scene).ok();
    assert!(answer(TcpStream::connect(address).expect("connect")).ends_with("one"));
    drop(haproxy);
    scene.write("f.cfg", &config(&[format!("{address} interface lo")]));
    let haproxy = Haproxy::start(&scene, &program, &file);
    scene.write("f.cfg", &config(&two));
    let said = haproxy.reload(&scene).fails(1);
    let hint = format!("hint: the interface nosuch0 of {address} ");
    assert!(said.contains(&hint) && !said.contains("stats socket"), "{said}");
    assert!(answer(TcpStream::connect(address).expect("connect")).ends_with("one"));
}

#[test]
fn what_haproxy_refuses_is_refused() {
    let Some(program) = Haproxy::system() else { return };
    let (scene, _broker) = Scene::with_broker();
    for (bind, reason) in [
        (format!("unix@/{}", "y".repeat(97)), "at most 97 bytes"),
        (format!("unix@{}", scene.path("none/../a.sock").display()), "No such file or directory"),
        (format!("unix@{}", scene.path("none/a.sock").display()), "does not exist"),
        ("abns@a\\xe9".to_owned(), "choose another name"),
        (format!("abns@{}", "x".repeat(108)), "107"),
    ] {
        let file = scene.write("f.cfg", &config(std::slice::from_ref(&bind)));
        let said =
            finish(scene.bindonce("check").arg("--").arg(&program).arg("-f").arg(&file)).fails(1);
        assert!(said.contains(reason) && said.contains("f.cfg:7"), "{bind}: {said}");
    }
}
