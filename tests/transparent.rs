//! `transparent` on a bind line without the required rights: plain haproxy serves (IP_FREEBIND),
//! and so does bindonce, over reloads and a kill of the broker.

use std::net::TcpStream;

use crate::harness::{Haproxy, Process, Scene, bindonce, config, finish, serves, skip};

/// `bindonce VERB` without the capabilities that IP_TRANSPARENT takes.
fn without_rights(scene: &Scene, verb: &str) -> std::process::Command {
    let mut command = scene.command("setpriv");
    command.args(["--bounding-set=-net_raw,-net_admin", "--inh-caps=-all", "--"]);
    command.arg(bindonce()).arg(verb).arg("--socket").arg(scene.socket());
    command
}

#[test]
fn without_the_right_to_it_a_listener_is_free_alone() {
    for program in Haproxy::all() {
        let scene = Scene::new();
        if !scene.is_isolated() {
            return skip("needs root, to give rights up");
        }
        let start = || {
            let mut broker = Process::start(&mut without_rights(&scene, "serve"));
            scene.wait_broker(&mut broker);
            broker
        };
        let mut broker = start();
        let address = scene.address();
        let write = |tag, option: &str| {
            let binds = format!(
                "bind {address}{option}\n    bind 192.0.2.7:{port} transparent\n    bind [2001:db8::7]:{port} transparent",
                port = address.port()
            );
            let text = config(address, tag).replace(&format!("bind {address}"), &binds);
            scene.write("haproxy.cfg", &text)
        };
        let file = write(1, " transparent");
        let mut command = without_rights(&scene, "run");
        command.args(["--name", "web", "--"]).arg(&program).arg("-db").arg("-f").arg(&file);
        let mut haproxy =
            Haproxy { supervisor: Process::start(&mut command), service: "web".to_owned() };
        haproxy.wait_serving(&scene);
        serves(address, 1);
        broker.wait_line("`transparent` needs CAP_NET_RAW");
        for (tag, option) in [(2, " transparent"), (3, ""), (4, " transparent")] {
            write(tag, option);
            haproxy.reload(&scene).ok();
            serves(address, tag);
        }
        broker.kill();
        let _broker = start();
        write(5, " transparent");
        haproxy.reload(&scene).ok();
        serves(address, 5);
        let listed = scene.run("list", &[]).ok();
        assert_eq!(listed.matches("transparent").count(), 3, "{listed}");
        // The address does not exist here, until it is added.
        let ip = |words: &[&str]| finish(scene.command("ip").args(words)).ok();
        ip(&["address", "add", "192.0.2.7/32", "dev", "lo"]);
        TcpStream::connect(("192.0.2.7", address.port())).expect("it listens");
    }
}
