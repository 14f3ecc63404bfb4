//! What docs/security.md promises of the broker, attacked as the users that it names.
//!
//! Each of these attacks worked once. As root the attackers are other users; without root, the
//! user of the tests is the attacker where the rules make it one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use nix::unistd::geteuid;

use crate::harness::{Process, Scene, bindonce, finish, skip};

/// A program in Python, run as the user of the tests; `become` in it makes that another one.
fn program(scene: &Scene, text: &str) -> Command {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/stranger.py");
    let library = fs::read_to_string(library).expect("the library");
    let file = scene.write("stranger.py", &(library + "\n" + text));
    let mut command = scene.command("python3");
    command.arg(file).arg(scene.socket());
    command
}

/// What it says, a line each.
#[track_caller]
fn stranger(scene: &Scene, text: &str) -> Vec<String> {
    finish(&mut program(scene, text)).ok().lines().map(str::to_owned).collect()
}

/// A broker with a configuration, that everybody can connect to.
#[track_caller]
fn serve(scene: &Scene, config: &str) -> Process {
    let file = scene.write("broker.toml", config);
    let mut process = Process::start(scene.bindonce("serve").arg("--config").arg(&file));
    open(scene, &mut process);
    process
}

#[track_caller]
fn open(scene: &Scene, process: &mut Process) {
    scene.wait_broker(process);
    let everybody = fs::Permissions::from_mode(0o666);
    fs::set_permissions(scene.socket(), everybody).expect("the mode of the control socket");
}

#[test]
fn rights_are_of_who_connected_not_of_a_pid() {
    if !geteuid().is_root() {
        return skip("needs root, to be users of several groups");
    }
    let scene = Scene::new();
    let _broker = serve(&scene, "[[rule]]\ngid = 54321\nallow = ['bind']\n");
    // The process that connected comes to have the group, and so would whoever got its pid.
    let said = stranger(
        &scene,
        "broker = Broker()\n\
         say(broker.bind('127.0.0.1:9001')[:6])\n\
         os.setgroups([54321])\n\
         say(broker.bind('127.0.0.1:9001')[:6])\n\
         os.setgid(54321)\n\
         say(broker.bind('127.0.0.1:9001')[:6])\n",
    );
    assert_eq!(said, ["-32002", "-32002", "-32002"]);
    // The other way: it is the connection's, also when its process has given the group away or ended.
    let said = stranger(
        &scene,
        "become(65534, [1, 54321, 2])\n\
         broker = Broker()\n\
         say(broker.bind('127.0.0.1:9001'))\n\
         if os.fork(): os._exit(0)\n\
         say(broker.bind('127.0.0.1:9002'))\n",
    );
    assert_eq!(said, ["ok", "ok"]);
    // Also under the next image of the broker.
    let said = stranger(
        &scene,
        "os.setgroups([54321])\n\
         broker = Broker()\n\
         os.setgroups([])\n\
         say(broker.bind('127.0.0.1:9001'))\n\
         os.kill(int(open(sys.argv[1] + '.lock').read()), 10)\n\
         for _ in range(100):\n\
         \x20   time.sleep(0.05)\n\
         \x20   if 'upgraded' in open(sys.argv[1] + '.events').read(): break\n\
         say(broker.bind('127.0.0.1:9003'))\n",
    );
    assert_eq!(said, ["ok", "ok"]);
}

#[test]
fn a_user_that_the_broker_cannot_name_is_nobody() {
    if !geteuid().is_root() {
        return skip("needs root, to be a user that another user namespace does not have");
    }
    let scene = Scene::new();
    // In its namespace the broker's user is root, and everybody else has the number 65534.
    let rules =
        "[[rule]]\nuid = 65534\nallow = ['bind']\n[[rule]]\ngid = 65534\nallow = ['bind']\n";
    let file = scene.write("broker.toml", rules);
    let mut command = scene.command("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(bindonce());
    command.args(["serve", "--socket"]).arg(scene.socket()).arg("--config").arg(file);
    let mut broker = Process::start(&mut command);
    open(&scene, &mut broker);
    for uid in [65534, 1234] {
        let text = format!("become({uid}, [65534])\nsay(Broker().bind('127.0.0.1:9001'))\n");
        let said = stranger(&scene, &text);
        assert!(said[0].starts_with("-32002 a user of another user namespace"), "{said:?}");
    }
}
