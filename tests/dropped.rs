//! haproxy after it dropped root, under the control of an attacker: the powers of that process
//! against the supervisor that started it and the broker that bound for it.
//!
//! The attacker has a copy of each descriptor of the real haproxy, and its user.

use std::fs;
use std::process::Command;

use nix::unistd::geteuid;

use crate::harness::{Haproxy, Process, Scene, config, finish, skip};
use crate::strangers::program;
use crate::untrusted::{HOSTILE, fit};

/// A haproxy that runs as nobody, and the data that its attacker gets: its pid, the supervisor's,
/// the broker's, and the directory of the service.
struct Dropped {
    haproxy: Haproxy,
    broker: Process,
    pid: i32,
    scene: Scene,
}

impl Dropped {
    fn new() -> Option<Self> {
        if !geteuid().is_root() {
            skip("needs root, for haproxy to drop it");
            return None;
        }
        let program = Haproxy::system()?;
        let (scene, broker) = Scene::with_broker();
        let text = config(scene.address(), 1);
        let text = text.replace("maxconn 500\n", "maxconn 500\n    uid 65534\n    gid 65534\n");
        let file = scene.write("haproxy.cfg", &text);
        let mut haproxy = Haproxy::start(&scene, &program, &file);
        let (_, pid) = haproxy.wait_serving(&scene);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("haproxy");
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        Some(Self { haproxy, broker, pid, scene })
    }

    /// An attacker: haproxy's user, with `theirs`, its descriptors by number.
    fn attacker(&self, text: &str) -> Command {
        let begin = "pid, supervisor, broker = map(int, sys.argv[2:5])\n\
             theirs = all_of(pid)\n\
             become(65534)\n";
        let mut command = program(&self.scene, &format!("{begin}{text}"));
        let pids = [self.pid.cast_unsigned(), self.haproxy.supervisor.pid(), self.broker.pid()];
        command.args(pids.map(|pid| pid.to_string())).arg(self.scene.path("web.d"));
        command
    }
}

#[test]
fn haproxys_user_reaches_neither_the_supervisor_nor_the_broker() {
    let Some(dropped) = Dropped::new() else { return };
    let attack = "me = os.getpid()\n\
        def ours(pid):\n\
        \x20   try: return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1] == str(supervisor)\n\
        \x20   except OSError: return False\n\
        others = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n\
        others = [other for other in others if ours(other) and other != pid]\n\
        directory, beside = sys.argv[5], os.path.dirname(sys.argv[1])\n\
        names = ['control.sock', 'metrics.sock', 'admin-1.sock', 'state.json', 'events.jsonl', 'lock', 'pid',\n\
        \x20        'generation-1', 'generation-1/haproxy.cfg', 'generation-2']\n\
        paths = [os.path.join(directory, name) for name in names]\n\
        paths += [sys.argv[1] + end for end in ('', '.state', '.lock', '.events', '.metrics')]\n\
        say(len(others) > 0, 'done:', *attempts(paths, [supervisor, broker] + others))\n\
        answers = []\n\
        for number, copy in theirs.items():\n\
        \x20   try:\n\
        \x20       peer = socket.socket(fileno=copy)\n\
        \x20       if peer.family != socket.AF_UNIX: continue\n\
        \x20       peer.settimeout(0.5)\n\
        \x20       peer.sendall(b'{\"id\":1,\"method\":\"status\"}\\n')\n\
        \x20       if b'jsonrpc' in peer.recv(65536): answers.append(number)\n\
        \x20   except OSError: pass\n\
        say('answers:', *answers)\n";
    let said = finish(&mut dropped.attacker(attack)).ok();
    let said: Vec<_> = said.lines().collect();
    // The watchdog is the supervisor's other child.
    assert_eq!(said, ["True done:", "answers:"]);
}

#[test]
fn what_haproxys_user_writes_moves_no_cursor_and_fills_no_memory() {
    let Some(mut dropped) = Dropped::new() else { return };
    // On standard error, and instead of answers on the admin connection.
    let attack = "hostile = sys.argv[6].encode()\n\
        os.write(theirs[2], hostile + b'\\n')\n\
        for _ in range(100): os.write(theirs[2], b'x' * 65536)\n\
        os.write(theirs[2], b'\\n')\n\
        for copy in theirs.values():\n\
        \x20   try:\n\
        \x20       peer = socket.socket(fileno=copy)\n\
        \x20       if peer.family != socket.AF_UNIX: continue\n\
        \x20       peer.setblocking(False)\n\
        \x20       while True: peer.send(hostile * 1000)\n\
        \x20   except OSError: pass\n\
        say('done')\n";
    assert_eq!(finish(dropped.attacker(attack).arg(HOSTILE)).ok(), "done\n");
    let line = dropped.haproxy.supervisor.wait_line("OWNED");
    fit("the supervisor's log", &line);
    let reloaded = dropped.haproxy.reload(&dropped.scene);
    assert!(reloaded.ok().contains("generation 2 serves"));
    for verb in ["status", "events", "doctor"] {
        let output = dropped.scene.bindonce(verb).output().expect("run");
        fit(verb, &String::from_utf8(output.stdout).expect("text"));
        fit(verb, &String::from_utf8(output.stderr).expect("text"));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", dropped.haproxy.supervisor.pid()));
    let status = status.expect("the supervisor");
    let most = status.split("VmHWM:").nth(1).and_then(|rest| rest.split_whitespace().next());
    // 6 MiB were written without a newline.
    assert!(most.and_then(|text| text.parse::<u32>().ok()) < Some(60_000), "{most:?} KiB");
    fit("the supervisor's log", &dropped.haproxy.supervisor.story());
}
