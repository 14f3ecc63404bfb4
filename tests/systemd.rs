//! Broker and supervisor under a real systemd, as PID 1 of its own namespaces: the promises of the
//! unit files, and the walks of docs/migrating.md (a few rounds of tests/measure/systemd.py).

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{bindonce, root, skip};

/// Checks `systemd-analyze security` for the shipped units, and for haproxy's packaged unit, where
/// it exists.
#[test]
fn the_units_are_confined() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skip("no systemd-analyze");
    }
    let shipped = |unit: &str| root().join("deploy/systemd").join(unit);
    let packaged = Path::new("/lib/systemd/system/haproxy.service").to_owned();
    for (unit, most) in [
        (shipped("bindonce.service"), 2.0),
        (shipped("bindonce-haproxy.service"), 3.2),
        (packaged, 10.0),
    ] {
        if !unit.exists() {
            skip(&format!("no {}", unit.display()));
            continue;
        }
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager"]).arg(&unit);
        let output = command.output().expect("systemd-analyze");
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find(|line| line.contains("Overall exposure level"));
        let said = said.unwrap_or_else(|| panic!("{text}{output:?}")).trim();
        eprintln!("{said}");
        let level = said.rsplit(": ").next().and_then(|rest| rest.split(' ').next());
        let level: f64 = level.expect("a level").parse().expect("a number");
        assert!(level <= most, "{said}");
    }
}

#[test]
fn listeners_outlive_a_killed_broker_in_the_descriptor_store() {
    let output = under_systemd(&["--rounds", "3", "--listeners", "5"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let result: Value = serde_json::from_str(&text).expect("a result");
    if let Some(why) = result["skipped"].as_str() {
        return skip(why);
    }
    assert!(output.status.success(), "{text}");
    for list in ["lost", "changed", "unreachable", "duplicates"] {
        assert_eq!(result[list], Value::Array(Vec::new()), "{list}: {text}");
    }
    for kept in ["restart_kept", "watchdog_kept", "released_left", "stopped"] {
        assert_eq!(result[kept], true, "{kept}: {text}");
    }
    assert!(result["restarts"].as_u64() >= Some(3), "{text}");
    // Every listener, the manifest and the control socket.
    assert_eq!(result["stored"], result["listeners"].as_u64().expect("a count") + 2, "{text}");
    for (unit, most) in [("exposure", 2.0), ("exposure_haproxy", 3.2)] {
        assert!(result[unit].as_f64().is_some_and(|exposure| exposure <= most), "{unit}: {text}");
    }
    match &result["supervisor"] {
        Value::Null => skip("no haproxy to supervise"),
        seen => {
            the_supervisors_unit_keeps_its_promises(seen);
            the_ways_in_lose_nothing(&result["walked"]);
            a_socket_unit_keeps_its_socket(&result["walked"]["stands_in"]);
            what_a_killed_supervisor_leaves_is_the_units_to_say(&result["walked"]["killed"]);
        }
    }
}

/// The commands of docs/migrating.md for a haproxy.service and for one with a socket unit.
fn the_ways_in_lose_nothing(walked: &Value) {
    // The old unit, and the one that serves in its place or had the socket.
    for (walk, states) in
        [("service", ["inactive", "active"]), ("sockets", ["inactive", "inactive"])]
    {
        let seen = &walked[walk];
        assert_eq!(seen["commands_failed"], json!([]), "{walked:#}");
        assert_eq!(
            (&seen["failed"], &seen["same_socket"]),
            (&json!([]), &json!(true)),
            "{walked:#}"
        );
        assert!(seen["answers"].as_u64() > Some(40), "{walked:#}");
        assert_eq!(
            (&seen["states"], &seen["enabled"]),
            (&json!(states), &json!("disabled")),
            "{walked:#}"
        );
    }
}

/// A socket unit whose service is bindonce under haproxy's name: reloads, an upgrade, and a restart
/// of the unit.
fn a_socket_unit_keeps_its_socket(seen: &Value) {
    assert_eq!((&seen["failed"], &seen["after_restart"]), (&json!([]), &json!("one")), "{seen}");
    assert!(seen["answers"].as_u64() > Some(40), "{seen}");
    for kept in ["same_socket", "same_process"] {
        assert_eq!(seen[kept], true, "{kept}: {seen}");
    }
    assert_eq!(seen["states"], json!(["active", "active"]), "{seen}");
}

/// The unit and the rules of docs/library.md: three starts, one of them broken, with clients all
/// the time.
#[test]
fn the_template_unit_starts_the_new_beside_the_old() {
    let server = bindonce().with_file_name("examples").join("hyper_server");
    let Some(server) = server.to_str().filter(|path| Path::new(path).exists()) else {
        return skip(
            "no examples: cargo build --package bindonce --all-features --examples makes them",
        );
    };
    // The other walks run with the smallest numbers.
    let few = ["--rounds", "1", "--listeners", "2", "--haproxy", ""];
    let output = under_systemd(&[&few[..], &["--server", server]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let result: Value = serde_json::from_str(&text).expect("a result");
    if let Some(why) = result["skipped"].as_str() {
        return skip(why);
    }
    assert!(output.status.success(), "{text}");
    let seen = &result["template"];
    let ended = json!(["inactive", "success", "0"]);
    assert_eq!(seen["started"], json!([0, "active", "success", "0"]), "{seen:#}");
    assert_eq!(seen["first"], true, "it answers: {seen:#}");
    // `systemctl start` succeeded, the new server answers, and the old one still serves the clients
    // that it accepted.
    assert_eq!(seen["second"], json!([0, true, true]), "{seen:#}");
    assert_eq!((&seen["finished"], &seen["ended"]), (&json!(true), &ended), "{seen:#}");
    // The start failed, its unit is failed, and the previous server keeps serving.
    assert_eq!(seen["broken"], json!([true, "failed", true, "active"]), "{seen:#}");
    assert_eq!(seen["third"], json!([0, true]), "{seen:#}");
    assert_eq!((&seen["failed"], &seen["stopped"]), (&json!([]), &ended), "{seen:#}");
    assert!(seen["answers"].as_u64() > Some(40), "{seen:#}");
}

/// Runs the script, which starts its own systemd.
fn under_systemd(options: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/measure/systemd.py")).arg("--binary").arg(bindonce());
    command.args(options).output().expect("python3")
}

/// The statement of docs/stand-in.md about `KillMode=`: kill -9 of the supervisor while one
/// generation serves and another drains.
fn what_a_killed_supervisor_leaves_is_the_units_to_say(seen: &Value) {
    for mode in ["mixed", "process"] {
        assert_eq!(
            (&seen[mode]["state"], &seen[mode]["in_time"]),
            (&json!("active"), &json!(true)),
            "{seen:#}"
        );
    }
    let (mixed, process) = (&seen["mixed"], &seen["process"]);
    assert_eq!(
        (&mixed["same_worker"], &mixed["draining"]),
        (&json!(false), &json!([0, false])),
        "{seen:#}"
    );
    assert_eq!(
        (&process["same_worker"], &process["draining"]),
        (&json!(true), &json!([1, true])),
        "{seen:#}"
    );
    assert_eq!(
        (&process["failed"], &process["drained"]),
        (&json!([]), &json!("HTTP/1.1 200 OK")),
        "{seen:#}"
    );
    assert_eq!((&mixed["count"], &process["count"]), (&json!("0"), &json!("1")), "{seen:#}");
}

/// Start, a good and a broken reload, the watchdog, a stop that drains.
fn the_supervisors_unit_keeps_its_promises(seen: &Value) {
    assert_eq!(seen["started"], json!([0, "active", "one"]), "{seen}");
    assert_eq!(seen["reloaded"], json!([0, "active", "two"]), "{seen}");
    // The reload failed, the unit is active, and the last good configuration keeps serving.
    assert_eq!(seen["broken"], json!([true, "active", "two"]), "{seen}");
    for (status, generation) in [
        ("status", "generation 1"),
        ("status_after", "generation 2"),
        ("status_broken", "generation 2"),
    ] {
        assert!(seen[status].as_str().is_some_and(|text| text.contains(generation)), "{seen}");
    }
    // Active, never restarted, the same process.
    assert_eq!(seen["watchdog"], json!(["active", 0, true]), "{seen}");
    // A request that was begun before the stop was answered.
    assert_eq!(seen["drained"], "two", "{seen}");
    assert_eq!(seen["stopped"], json!(["inactive", "success", "0"]), "{seen}");
    assert_eq!(seen["verify"], json!([]), "systemd-analyze verify: {seen}");
}
