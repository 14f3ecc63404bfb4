//! Options of a `bind` line that change or go while its listener stays: when the reload returns,
//! the socket has the options that it would have under plain haproxy. A failed reload changes no
//! socket.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use socket2::SockRef;

use crate::harness::{Haproxy, Scene, config, listening};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("the path").permissions().mode() & 0o7777
}

#[test]
fn options_change_with_a_reload_that_serves_and_with_no_other() {
    let umask = bindonce_sys::process::umask().expect("the umask");
    for program in Haproxy::all() {
        let scene = Scene::new();
        let _broker = scene.broker();
        let (address, path) = (scene.address(), scene.path("app.sock"));
        let write = |tcp: &str, unix: &str, more: &str| {
            let binds = format!("bind {address} {tcp}\n    bind unix@{} {unix}", path.display());
            let text = config(address, 1).replace(&format!("bind {address}"), &binds);
            scene.write("haproxy.cfg", &format!("{text}{more}"))
        };
        let has = |backlog: u32, of_path: u32| {
            assert_eq!(listening(address)[0].limit, backlog, "{program:?}");
            assert_eq!(mode(&path), of_path, "{program:?}");
        };
        let file = write("backlog 100", "mode 600", "");
        let haproxy = Haproxy::start(&scene, &program, &file);
        has(100, 0o600);
        write("backlog 7", "mode 666", "frontend broken\n    bind nosuch\n    nosuch\n");
        haproxy.reload(&scene).fails(1);
        has(100, 0o600);
        write("backlog 7", "mode 666", "backend broken\n    nosuch\n");
        haproxy.reload(&scene).fails(1);
        has(100, 0o600);
        write("backlog 7", "mode 660", "");
        haproxy.reload(&scene).ok();
        has(7, 0o660);
        write("", "", "");
        haproxy.reload(&scene).ok();
        has(bindonce_sys::limits::somaxconn(), 0o777 & !umask);
        write("backlog 9", "mode 600", "");
        haproxy.reload(&scene).ok();
        has(9, 0o600);
    }
}

/// The service did not create this listener: for an option that its line does not set, the socket
/// keeps its value.
#[test]
fn what_the_broker_was_told_of_a_listener_stays() {
    let Some(program) = Haproxy::system() else { return };
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    scene.run("bind", &[&format!("{address},backlog=50")]).ok();
    let file = scene.write("haproxy.cfg", &config(address, 1));
    let haproxy = Haproxy::start(&scene, &program, &file);
    for (line, backlog) in [("", 50), (" backlog 70", 70), ("", 70)] {
        let text = config(address, 1);
        scene.write(
            "haproxy.cfg",
            &text.replace(&format!("{address}"), &format!("{address}{line}")),
        );
        haproxy.reload(&scene).ok();
        assert_eq!(listening(address)[0].limit, backlog, "{line}");
    }
}

/// haproxy sets these on the shared socket while it starts. A configuration that fails after that,
/// in the handover, must leave the serving generation its own.
#[test]
fn what_a_failed_start_has_set_on_the_socket_is_put_back() {
    let set = "defer-accept tcp-ut 5s mss 1400";
    for program in Haproxy::all() {
        let (scene, _broker) = Scene::with_broker();
        let address = scene.address();
        let write = |words: &str, global: &str| {
            let bind = format!("bind {address}");
            let text = config(address, 1).replace(&bind, &format!("{bind} {words}"));
            scene.write("haproxy.cfg", &text.replace("global\n", &format!("global\n{global}")))
        };
        let changed = || scene.wire().call("list", &json!([]))["listeners"][0]["changed"].clone();
        let file = write("", "");
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        for (serving, failing) in [("", set), (set, "")] {
            write(serving, "");
            haproxy.reload(&scene).ok();
            let before = changed();
            let defers = before.to_string().contains("TCP_DEFER_ACCEPT");
            assert_eq!(defers, !serving.is_empty(), "{program:?} {before}");
            write(failing, "    chroot /nonexistent\n");
            let said = haproxy.reload(&scene).fails(1);
            assert!(said.contains("Cannot chroot"), "{said}");
            haproxy.supervisor.wait_lines(&["TCP_MAXSEG", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT"]);
            assert_eq!(changed(), before, "{program:?}");
        }
        // haproxy leaves the smallest MSS where its line has none any more.
        write("", "");
        haproxy.reload(&scene).ok();
        let client = TcpStream::connect(address).expect("connecting");
        let mss = SockRef::from(&client).tcp_mss().expect("TCP_MAXSEG");
        assert!(mss > 1400, "{program:?}: {mss}");
    }
}
