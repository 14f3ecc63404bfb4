//! Text that another process chooses, above all its command line, is shown on root's terminals: no
//! terminal may obey any of it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::harness::{Process, Scene, eventually};

pub(crate) const HOSTILE: &str =
    "\x1b]0;OWNED\x07\x1b[2J\r\nbindonce: \x1b[32mall is well\x1b[0m \u{9b}2J\u{202e}";

pub(crate) fn fit(what: &str, text: &str) {
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(obeyed), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("bindonce: \\u{1b}")), "{what}: {text:?}");
}

#[test]
fn a_command_line_moves_no_cursor() {
    let (scene, mut broker) = Scene::with_broker();
    let address = scene.address();
    let listener = TcpListener::bind(address).expect("bind");
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("inherit it");
    let mut command = scene.command("sleep");
    let mut holder = Process::start(command.arg0(HOSTILE).arg("600"));
    drop(listener);
    // The broker names the holder if it has found it in time, which is not certain on a busy
    // machine.
    let refused = eventually("the holder is named", || {
        let refused = scene.run("bind", &[&address.to_string()]).fails(1);
        refused.contains("OWNED").then_some(refused)
    });
    fit("bind", &refused);
    for arguments in
        [&["events"][..], &["events", "--json"], &["status"], &["doctor"], &["doctor", "--json"]]
    {
        let mut command: Command = scene.bindonce(arguments[0]);
        let output = command.args(&arguments[1..]).output().expect("run");
        fit(&arguments.join(" "), &String::from_utf8(output.stdout).expect("text"));
        fit(&arguments.join(" "), &String::from_utf8(output.stderr).expect("text"));
    }
    let doctor = scene.bindonce("doctor").arg("--json").output().expect("doctor");
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    assert!(doctor.to_string().contains("OWNED"), "doctor does not name it: {doctor}");
    fit("the broker's log", &broker.story());
    assert!(holder.is_running());
}
