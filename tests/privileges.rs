//! A broker that root started and that gave up root.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::unistd::geteuid;
use serde_json::json;

use crate::harness::{Process, Scene, Wire, bindonce, skip};

/// A line of /proc/PID/status.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn it_keeps_only_what_its_listeners_need() {
    if !geteuid().is_root() {
        return skip("needs root, to give it up");
    }
    let Some(scene) = Scene::isolated("needs a network namespace of its own, for port 80") else {
        return;
    };
    let config = "listen = ['low=127.0.0.1:80', 'near=127.0.0.1:81,interface=lo']\nuser = '54321'\ngroup = '54322'";
    let file = scene.write("bindonce.toml", config);
    // The directory of the socket is created for the user.
    let socket = scene.path("run/broker.sock");
    let mut command = scene.command(bindonce());
    command.args(["serve", "--socket"]).arg(&socket).arg("--config").arg(file);
    let mut broker = Process::start(&mut command);
    broker.wait_line("broker serves");

    assert_eq!(status(broker.pid(), "Uid"), "54321\t54321\t54321\t54321");
    assert_eq!(status(broker.pid(), "Gid"), "54322\t54322\t54322\t54322");
    assert_eq!(status(broker.pid(), "Groups").trim(), "54322");
    assert_eq!(status(broker.pid(), "NoNewPrivs"), "1");
    // CAP_NET_BIND_SERVICE (10) and CAP_NET_RAW (13), in every set.
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(status(broker.pid(), set), "0000000000002400", "{set}");
    }
    let owner = fs::metadata(&socket).expect("the socket");
    assert_eq!((owner.uid(), owner.gid()), (54321, 54322));

    let mut wire = Wire::try_connect(&socket).expect("connecting");
    let (bound, _) = wire.bind(&["127.0.0.1:99", "127.0.0.1:82,transparent"]);
    assert_eq!(bound.len(), 2);
    let path = scene.path("run/app.sock");
    let listen = format!("unix@{},user=root", path.display());
    let refused = wire.error("bind", &json!([{ "listen": listen }]));
    assert_eq!(refused["code"], -32005, "{refused}");
    assert!(
        refused["data"]["hint"].as_str().is_some_and(|hint| hint.contains("chown")),
        "{refused}"
    );
    assert!(!path.exists());
}
