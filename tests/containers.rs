//! deploy/container under a real container engine, and deploy/kubernetes against Kubernetes' own
//! schemas (a few rounds of tests/measure/container.py, and tests/manifests.py).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Scene, bindonce, finish, root, skip};

/// The output of a script; none if it was skipped, with the reason reported.
fn printed(script: &str, arguments: &[&str]) -> Option<Value> {
    let mut command = Command::new("python3");
    command.arg(root().join(script)).arg("--binary").arg(bindonce()).args(arguments);
    let output = command.output().expect("python3");
    let (text, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let result: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{said}"));
    if let Some(why) = result["skipped"].as_str() {
        skip(why);
        return None;
    }
    assert!(output.status.success(), "{text}{said}");
    Some(result)
}

/// The entry point of the image, with programs that print how they are called.
#[test]
fn a_word_that_is_a_program_of_the_image_is_that_program() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("bin")).expect("a directory");
    for name in ["bindonce", "haproxy"] {
        let script = format!("#!/bin/sh\necho {name} \"$@\"\n");
        let script = scene.write(&format!("bin/{name}"), &script);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(script, mode).expect("its mode");
    }
    let path = format!("{}:/usr/bin:/bin", scene.path("bin").display());
    for (words, expected) in [
        ("-f a.cfg", "haproxy -W -db -f a.cfg\n"),
        ("haproxy -v", "haproxy -W -db -v\n"),
        ("echo x", "x\n"),
        ("/bin/echo x", "x\n"),
        ("status --json", "bindonce status --json\n"),
        ("exec x", "bindonce exec x\n"),
    ] {
        let mut command = scene.command("sh");
        command.arg(root().join("deploy/container/docker-entrypoint.sh"));
        command.args(words.split(' ')).env("PATH", &path);
        assert_eq!(finish(&mut command).ok(), expected, "{words}");
    }
}

/// The load generator of this build, beside the binary.
fn load() -> std::path::PathBuf {
    bindonce().parent().unwrap_or(Path::new(".")).join("bindonce-load")
}

#[test]
fn containers_are_replaced_under_load_and_nobody_is_refused() {
    if !load().exists() {
        return skip("no bindonce-load beside the binary under test");
    }
    let load = load();
    let load = load.to_str().expect("a path of UTF-8");
    let rounds = ["--haproxy", "2", "--broker", "1", "--kills", "1", "--rate", "300"];
    let all = [&["--load", load, "--rights", "two", "--timeout", "410"], &rounds[..]].concat();
    let Some(seen) = printed("tests/measure/container.py", &all) else { return };

    let load = &seen["load"];
    for lost in ["failed", "refused", "reset", "timed_out", "truncated", "bad_status", "stale"] {
        assert_eq!(load[lost], 0, "{lost}: {seen:#}");
    }
    assert!(load["ok"].as_u64() > Some(300), "{seen:#}");
    // One generation for each haproxy container, none for the broker's; one socket throughout.
    assert_eq!((&seen["generations"], &seen["same_socket"]), (&json!(2), &json!(true)), "{seen:#}");
    let killed = &seen["killed"];
    assert_eq!((&killed["refused"], &killed["same_socket"]), (&json!(0), &json!(true)), "{seen:#}");
    assert_eq!(seen["users"]["broker"], "65532:65532 true", "{seen:#}");
    assert_eq!(seen["users"]["haproxy"], "65532:65532 true", "{seen:#}");
    for (what, value) in [("shell_in_broker", false), ("reloaded", true), ("held_by_seccomp", true)]
    {
        assert_eq!(seen[what], value, "{what}: {seen:#}");
    }
    // The official image's user and command, a request in progress at `docker stop` answered, and
    // an orderly end.
    let in_place = json!({
        "user": "haproxy", "command": ["haproxy", "-W", "-db"], "answered": "three", "exit": 0
    });
    assert_eq!(seen["in_place"], in_place, "{seen:#}");
    for service in ["broker", "haproxy"] {
        assert_eq!(seen["doctor"][service][0], "healthy: nothing found", "{seen:#}");
    }
    // A volume that changes like a ConfigMap: two good reloads, and one failed reload.
    let watched = &seen["watched"];
    assert_eq!(watched["seconds"].as_array().map(Vec::len), Some(2), "{seen:#}");
    assert_eq!(watched["broken_is_told"], true, "{seen:#}");
    assert!(watched["ok"].as_u64() > Some(100), "{seen:#}");
    for lost in ["failed", "refused", "stale"] {
        assert_eq!(watched[lost], 0, "{lost}: {seen:#}");
    }
    // Without the capability, generations run without epoll from then on; with it, no ghost is
    // left.
    let (plain, tracing) = (&seen["rights"]["65532"], &seen["rights"]["65532+SYS_PTRACE"]);
    assert_eq!((&plain["ghosts_removed"], &plain["without_epoll"]), (&json!(0), &json!(true)));
    assert!(tracing["ghosts_removed"].as_u64() > Some(0), "{seen:#}");
    assert_eq!(tracing["without_epoll"], false, "{seen:#}");
    let ports = &seen["low_ports"];
    assert_eq!(ports["root that becomes 65532"], "bound", "{seen:#}");
    assert!(ports["65532"].as_str().is_some_and(|said| said.contains("Permission denied")));
}

#[test]
fn manifests_fit_kubernetes_and_this_binary() {
    let Some(seen) = printed("tests/manifests.py", &[]) else { return };

    assert_eq!(seen["wrong"], json!([]), "{seen:#}");
    // Three objects against the oldest version and the newest; two containers, five probes and a
    // hook.
    assert_eq!(seen["checked"].as_array().map(Vec::len), Some(6), "{seen:#}");
    assert_eq!(seen["commands"], 8, "{seen:#}");
}

/// Debian's package of haproxy fails to install where a user `haproxy` has a number below 100, and
/// the image's has 99. An engine in tests has no network, so its base has haproxy already and that
/// part of the build does not run.
#[test]
fn the_image_installs_haproxy_before_its_user_gets_a_number_that_the_package_refuses() {
    let file = root().join("deploy/container/Containerfile");
    let file = std::fs::read_to_string(file).expect("the Containerfile");
    let place = |word: &str| file.find(word).unwrap_or_else(|| panic!("{word:?} is in no line"));
    let installed = place("apt-get install");
    for numbered in ["groupadd", "useradd", "groupmod", "usermod"] {
        assert!(installed < place(numbered), "{numbered} stands before the package");
    }
}
