//! Untrusted users, as programs in Python, and brokers for them to attack.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use nix::unistd::geteuid;

use crate::harness::{Process, Scene, bindonce, finish};

/// A Python program, run as the user of the tests; its `become` changes the user.
pub(crate) fn program(scene: &Scene, text: &str) -> Command {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/stranger.py");
    let library = fs::read_to_string(library).expect("the library");
    let file = scene.write("stranger.py", &(library + "\n" + text));
    let mut command = scene.command("python3");
    command.arg(file).arg(scene.socket());
    command
}

/// Its output, by lines.
#[track_caller]
pub(crate) fn stranger(scene: &Scene, text: &str) -> Vec<String> {
    finish(&mut program(scene, text)).ok().lines().map(str::to_owned).collect()
}

/// A user who is not root.
pub(crate) const ORDINARY: u32 = 54_399;

/// The users whose brokers are attacked: this user, and as root also an ordinary user.
pub(crate) fn brokers() -> impl Iterator<Item = Option<u32>> {
    let ordinary = geteuid().is_root().then_some(Some(ORDINARY));
    [None].into_iter().chain(ordinary)
}

/// A broker with a configuration, that every user can connect to, owned by this user or by another.
#[track_caller]
pub(crate) fn serve(scene: &Scene, config: &str, user: Option<u32>) -> Process {
    serve_with(scene, config, user, &[])
}

/// As [`serve`], started by another command.
#[track_caller]
pub(crate) fn serve_with(
    scene: &Scene,
    config: &str,
    user: Option<u32>,
    starter: &[&str],
) -> Process {
    let file = scene.write("broker.toml", config);
    let mut words: Vec<String> = starter.iter().map(|word| (*word).to_owned()).collect();
    let mut binary = bindonce().to_owned();
    if let Some(user) = user {
        chown(scene.path("."), Some(user), Some(user)).expect("a directory of its own");
        // A copy that every user may execute.
        fs::copy(&binary, scene.path("bindonce")).expect("a copy");
        binary = scene.path("bindonce");
        words.extend(["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}")]);
        words.push("--clear-groups".to_owned());
    }
    words.push(binary.to_str().expect("a path of ASCII").to_owned());
    let mut command = scene.command(&words[0]);
    command.args(&words[1..]).args(["serve", "--socket"]).arg(scene.socket());
    let mut process = Process::start(command.arg("--config").arg(file));
    open(scene, &mut process);
    process
}

#[track_caller]
pub(crate) fn open(scene: &Scene, process: &mut Process) {
    scene.wait_broker(process);
    let everybody = fs::Permissions::from_mode(0o666);
    fs::set_permissions(scene.socket(), everybody).expect("the mode of the control socket");
}

/// Root may do everything, another user some things.
pub(crate) fn rules(of_nobody: &str) -> String {
    let all = "'bind', 'use', 'list', 'release', 'store', 'admin'";
    format!("[[rule]]\nuid = 0\nallow = [{all}]\n[[rule]]\nuid = 65534\n{of_nobody}\n")
}
