//! How a broker starts and ends: its control socket, its state file, and what it finds there.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;

use bindonce_broker::Error;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use serde_json::json;

use crate::support::{Scene, assert_descriptors, open_descriptors, run, wait_for_threads};

#[test]
fn one_broker_serves_a_path_and_leaves_it_clean() {
    let scene = Scene::new();
    let config = scene.config();
    let socket = config.socket.clone();
    let run_directory = scene.path("run");
    let broker = scene.start(scene.config());
    let mode = |path| fs::metadata(path).expect("stat").permissions().mode() & 0o777;
    assert_eq!((mode(&run_directory), mode(&socket)), (0o755, 0o660));
    assert!(fs::metadata(&socket).expect("stat").file_type().is_socket());

    let (_stop, stopped) = tokio::sync::oneshot::channel();
    let second = std::thread::spawn({
        let config = scene.config();
        move || run(config, stopped)
    });
    let error = second.join().expect("thread").expect_err("refused");
    let own = std::process::id();
    assert!(matches!(error, Error::AlreadyRunning { pid: Some(pid), .. } if pid == own), "{error}");
    assert!(error.to_string().contains(&format!("pid {own}")));
    broker.client().call("ping", &json!([]));

    broker.stop();
    let left: Vec<_> = fs::read_dir(&run_directory).expect("read").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_dead_brokers_path_is_replaced() {
    let scene = Scene::new();
    fs::create_dir(scene.path("run")).expect("directory");
    drop(UnixListener::bind(scene.path("run/broker.sock")).expect("bind"));
    fs::write(scene.path("run/broker.sock.lock"), "999999\n").expect("write");
    let broker = scene.start(scene.config());
    assert_eq!(broker.client().call("ping", &json!([]))["result"]["pong"], true);
}

#[test]
fn what_cannot_be_bound_at_the_start_leaves_nothing() {
    let scene = Scene::new();
    let other = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = other.local_addr().expect("address").to_string();
    let path = scene.path("a.sock").display().to_string();
    let refused = || {
        let mut config = scene.config();
        config.listen = vec![path.parse().expect("path"), taken.parse().expect("address")];
        let (_stop, stopped) = tokio::sync::oneshot::channel();
        let error = run(config, stopped).expect_err("refused");
        assert!(error.to_string().contains(&taken) && error.hint().is_some(), "{error}");
        assert!(!scene.path("a.sock").exists() && !scene.path("run/broker.sock").exists());
    };
    // Once before counting: a process opens some things for good at their first use.
    refused();
    // The search for the address's holder may outlast the request that waits for it.
    wait_for_threads();
    let before = open_descriptors();
    refused();
    assert_descriptors(before);
}

/// It may well be good, and the next broker needs it.
#[test]
fn a_state_file_that_cannot_be_read_stays_and_no_broker_starts() {
    let scene = Scene::new();
    let config = scene.config();
    let directory = config.socket.parent().expect("a directory").to_owned();
    fs::create_dir_all(&directory).expect("directory");
    let path = directory.join("broker.sock.state");
    fs::write(&path, "good").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).expect("its mode");
    let refused = std::thread::spawn(move || {
        // Without these a thread of root may read no more than its owner.
        let above = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        let mut sets = capabilities(None).expect("its capabilities");
        sets.effective -= above;
        set_capabilities(None, sets).expect("fewer of them");
        let (_stop, stopped) = tokio::sync::oneshot::channel();
        run(config, stopped).expect_err("refused")
    });
    let error = refused.join().expect("an error");
    assert!(matches!(error, Error::StateFile { .. }), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    assert_eq!(fs::read_to_string(&path).expect("read"), "good");
}

/// A damaged state file is kept for a person to examine. The broker writes its own in its place.
#[test]
fn a_state_file_that_is_damaged_is_moved_aside() {
    let scene = Scene::new();
    let config = scene.config();
    let directory = config.socket.parent().expect("a directory").to_owned();
    fs::create_dir_all(&directory).expect("directory");
    fs::write(directory.join("broker.sock.state"), "damaged").expect("write");
    let broker = scene.start(config);
    // Clients can connect a moment before the broker has written its state; it answers after that.
    broker.client().call("ping", &json!([]));
    let names = fs::read_dir(&directory).expect("directory").flatten().map(|entry| entry.path());
    let aside: Vec<_> =
        names.filter(|path| path.to_string_lossy().contains(".state.bad-")).collect();
    let [aside] = aside.as_slice() else { panic!("{aside:?}") };
    assert_eq!(fs::read_to_string(aside).expect("read"), "damaged");
    assert!(directory.join("broker.sock.state").exists());
    broker.stop();
}
