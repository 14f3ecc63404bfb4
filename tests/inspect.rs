//! `bind`, `list`, `status`, `release`: what a person and a script see.

use std::net::TcpStream;

use serde_json::Value;

use crate::harness::{Scene, listening};

#[test]
fn list_shows_the_kernels_queue() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    scene.run("bind", &[&format!("web={address},backlog=50")]).ok();
    let _waiting: Vec<_> =
        (0..3).map(|_| TcpStream::connect(address).expect("connecting")).collect();
    let listed: Value = serde_json::from_str(&scene.run("list", &["--json"]).ok()).expect("JSON");
    let entries = listed.get("listeners").unwrap_or(&listed);
    let web = &entries[0];
    assert_eq!(web["name"], "web", "{listed:#}");
    assert_eq!(web["address"], address.to_string());
    assert_eq!(web["listening"], true);
    assert_eq!(web["queue"], 3, "{listed:#}");
    assert_eq!(web["backlog"], 50);
    assert_eq!(web["inode"], listening(address)[0].inode);
    let table = scene.run("list", &[]).ok();
    assert!(table.contains("web") && table.contains(&address.to_string()), "{table}");
}

#[test]
fn bind_is_idempotent_and_release_closes() {
    let scene = Scene::new();
    let _broker = scene.broker();
    let address = scene.address();
    for _ in 0..2 {
        scene.run("bind", &[&address.to_string()]).ok();
        assert_eq!(listening(address).len(), 1);
    }
    scene.run("release", &[&address.to_string()]).ok();
    assert!(listening(address).is_empty());
    let said = scene.run("release", &[&address.to_string()]).fails(1);
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn status_is_json_for_scripts() {
    let scene = Scene::new();
    let broker = scene.broker();
    let status: Value = serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    assert_eq!(status["broker"]["pid"], broker.pid(), "{status:#}");
    assert_eq!(status["broker"]["listeners"], 0);
    assert_eq!(status["services"], serde_json::json!([]));
    assert!(!scene.run("status", &[]).ok().is_empty());
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let scene = Scene::new();
    scene.run("list", &["--no-such-flag"]).fails(2);
    scene.run("exec", &[]).fails(2);
}
