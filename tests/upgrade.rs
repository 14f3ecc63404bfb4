//! The broker becomes another binary in place: same pid, same sockets, same connections.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Process, Scene, bindonce, eventually, finish, listening};

fn broker(wire: &mut crate::harness::Wire) -> Value {
    wire.call("status", &json!([]))["broker"].clone()
}

#[test]
fn an_upgrade_keeps_sockets_connections_and_half_a_request() {
    let (scene, process) = Scene::with_broker();
    let address = scene.address();
    let path = scene.path("app.sock").display().to_string();
    let mut holder = scene.wire();
    let (listeners, _held) = holder.bind(&[&format!("web={address}"), &path, "abns@upgrade-test"]);
    let joined = json!([{"service": "edge", "generation": 7, "pid": 1, "state": "serving"}]);
    holder.call("join", &joined);
    let list = |wire: &mut crate::harness::Wire| wire.call("list", &json!([]));
    let before = list(&mut holder);
    // Half of the request before the upgrade, half after it.
    let mut slow = scene.wire();
    slow.send(br#"{"jsonrpc":"2.0","id":7,"method":"bi"#);

    for round in 1..=3 {
        let told = scene.run("upgrade", &[]).ok();
        assert!(told.contains(&format!("pid {}", process.pid())), "{told}");
        let now = broker(&mut holder);
        assert_eq!((&now["upgrades"], &now["pid"]), (&json!(round), &json!(process.pid())));
        assert_eq!(list(&mut holder), before);
    }
    process.signal(Signal::SIGUSR1);
    eventually("the upgrade by a signal", || (broker(&mut holder)["upgrades"] == 4).then_some(()));

    slow.send(format!(r#"nd","params":[{{"listen":"{address}"}}]}}"#).as_bytes());
    let reply = slow.reply();
    assert_eq!(reply["id"], 7, "{reply}");
    assert_eq!(reply["result"]["listeners"][0]["inode"], listeners[0]["inode"]);
    assert_eq!(listening(address).len(), 1);
    // The lease is still there, and its end is still noticed.
    drop(slow);
    let busy = scene.wire().error("release", &json!(["web"]));
    assert_eq!(busy["code"], -32007, "{busy}");
    drop(holder);
    eventually("the lease to end", || {
        let reply = scene.wire().request("release", &json!(["web", path, "abns@upgrade-test"]));
        reply["result"].is_object().then_some(())
    });
    assert!(!fs::exists(&path).expect("the path"), "its file is known after an upgrade");
}

/// The upgrade is requested while the claim has had some of its turns: the image that began the
/// claim answers it.
#[test]
fn an_upgrade_waits_for_a_large_claim_and_keeps_its_leases() {
    let Some(scene) =
        Scene::isolated("needs a network namespace of its own, for thousands of ports")
    else {
        return;
    };
    let process = scene.broker();
    let [mut claiming, mut same, mut upgrading] = [(); 3].map(|()| scene.wire());
    claiming.bind(&["first=127.0.0.1:8999"]);
    // Everything is queued when the broker continues.
    process.signal(Signal::SIGSTOP);
    let bind = |listen: &str| format!(r#"{{"method":"bind","params":[{{"listen":"{listen}"}}]}}"#);
    claiming.send(bind("127.0.0.1:9000-10999").as_bytes());
    same.send(bind("127.0.0.1:10999").as_bytes());
    upgrading.send(br#"{"method":"upgrade"}"#);
    process.signal(Signal::SIGCONT);
    let granted = claiming.reply()["result"]["listeners"].as_array().expect("listeners").clone();
    let _held = claiming.take(granted.len());
    assert_eq!(granted.len(), 2000);
    let (same, upgraded) = (same.reply(), upgrading.reply());
    assert_eq!(same["result"]["listeners"][0]["inode"], granted[1999]["inode"]);
    assert_eq!(upgraded["result"]["upgraded"], true, "{upgraded}");
    let mut wire = scene.wire();
    assert_eq!(broker(&mut wire)["upgrades"], 1);
    let busy = wire.error("release", &json!(["127.0.0.1:9000"]));
    assert_eq!(busy["code"], -32007, "{busy}");
    drop(claiming);
    wire.call("release", &json!(["127.0.0.1:9000-10998"]));
}

#[test]
fn a_binary_that_cannot_go_on_changes_nothing_and_the_caller_is_told() {
    let scene = Scene::new();
    let binary = scene.path("bindonce");
    let install = |source: &std::path::Path| {
        // Written beside the binary and renamed, as a package manager does: the running file is not
        // written to.
        let new = scene.path("bindonce.new");
        fs::copy(source, &new).expect("copying");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(&new, &binary).expect("installing");
    };
    install(bindonce());
    let config = scene.write("broker.toml", "listen = []\n");
    let mut command = scene.command(&binary);
    command.arg("serve").arg("--socket").arg(scene.socket()).arg("--config").arg(&config);
    let mut process = Process::start(&mut command);
    scene.wait_broker(&mut process);
    let address = scene.address();
    let mut wire = scene.wire();
    let (listeners, _held) = wire.bind(&[&address.to_string()]);

    let refused = |part: &str| {
        let story = finish(&mut scene.bindonce("upgrade")).fails(1);
        assert!(story.contains("nothing has changed") && story.contains(part), "{story}");
    };
    fs::remove_file(&binary).expect("removing");
    refused("cannot be started");
    // A script, which cannot replace the process.
    install(&scene.write("script", "#!/bin/sh\nexit 0\n"));
    refused("exit code");
    install(Path::new("/bin/false"));
    refused("exit code 1");
    install(&scene.write("garbage", "\x7fELF"));
    refused("cannot be started");
    // It exits with 0 but has read nothing.
    fs::remove_file(&binary).expect("removing");
    symlink("/bin/true", &binary).expect("a link");
    refused("gave a wrong answer: it is not a bindonce binary");
    fs::remove_file(&binary).expect("removing");
    fs::create_dir(&binary).expect("a directory");
    refused("it is no file");
    fs::remove_dir(&binary).expect("removing");
    // The new binary is good, but the configuration is not: the broker would not start.
    install(bindonce());
    fs::write(&config, "lisen = []\n").expect("writing");
    refused("exit code");
    assert_eq!(broker(&mut wire)["upgrades"], 0);
    let (again, _) = wire.bind(&[&address.to_string()]);
    assert_eq!(again[0]["inode"], listeners[0]["inode"]);

    fs::write(&config, "listen = []\n").expect("writing");
    scene.run("upgrade", &[]).ok();
    assert_eq!(broker(&mut wire)["upgrades"], 1);
}

/// Another file replaces the binary between its proof and the exec.
#[test]
fn what_has_proved_itself_is_what_is_executed() {
    let scene = Scene::new();
    let (binary, evil) = (scene.path("bindonce"), scene.path("evil"));
    let install = |source: &Path, at: &Path| {
        fs::copy(source, at).expect("copying");
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    install(bindonce(), &binary);
    install(Path::new("/bin/false"), &evil);
    let mut command = scene.command(&binary);
    command.arg("serve").arg("--socket").arg(scene.socket());
    let mut process = Process::start(&mut command);
    scene.wait_broker(&mut process);
    let mut wire = scene.wire();
    wire.bind(&[&scene.address().to_string()]);
    // In between the broker waits, for 6 s at most, for a client that does not read its replies.
    let (mut upgrading, mut slow) = (scene.wire(), scene.wire());
    slow.send("{\"method\":\"status\"}\n".repeat(2000).as_bytes());
    slow.reply();
    upgrading.send(b"{\"method\":\"upgrade\"}\n");
    process.wait_line("has proved itself");
    fs::rename(&evil, &binary).expect("exchanged");
    drop(slow);
    assert!(upgrading.reply()["result"]["upgraded"].as_bool().expect("an answer"));
    assert_eq!(broker(&mut scene.wire())["upgrades"], 1, "{}", process.story());
    let comm = fs::read_to_string(format!("/proc/{}/comm", process.pid())).expect("its name");
    assert_eq!(comm.trim_end(), "bindonce");

    // The same file, with changed bytes.
    let next = scene.path("next");
    install(bindonce(), &next);
    fs::rename(&next, &binary).expect("exchanged");
    let (mut upgrading, mut slow) = (scene.wire(), scene.wire());
    slow.send("{\"method\":\"status\"}\n".repeat(2000).as_bytes());
    slow.reply();
    upgrading.send(b"{\"method\":\"upgrade\"}\n");
    process.wait_line("has proved itself");
    let mut written = fs::File::options().append(true).open(&binary).expect("opened");
    written.write_all(b"x").expect("written");
    drop((written, slow));
    process.wait_line("the file was modified after it had proved itself");
    assert_eq!(broker(&mut scene.wire())["upgrades"], 1, "{}", process.story());
    process.terminate();
}
