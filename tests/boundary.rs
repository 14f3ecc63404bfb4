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

/// A process that has many descriptors, so that a look through /proc takes a while.
const CROWD: &str = "import resource\n\
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
    many = min(20000, most - 100)\n\
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n\
    null = os.open('/dev/null', 0)\n\
    for number in range(100, 100 + many): os.dup2(null, number)\n\
    say('crowded')\n\
    time.sleep(600)\n";

/// CPU time of a broker's own thread, in seconds; and how many threads it has.
const COST: &str = "pid = int(open(sys.argv[1] + '.lock').read())\n\
    def cpu():\n\
    \x20   words = open(f'/proc/{pid}/task/{pid}/stat').read().rsplit(')', 1)[1].split()\n\
    \x20   return (int(words[11]) + int(words[12])) / os.sysconf('SC_CLK_TCK')\n\
    def threads(): return len(os.listdir(f'/proc/{pid}/task'))\n";

#[test]
fn asking_for_an_occupied_address_costs_the_broker_next_to_nothing() {
    let scene = Scene::new();
    let _broker = serve(&scene, "");
    let mut crowd = Process::start(&mut program(&scene, CROWD));
    crowd.wait_line("crowded");
    let attack = "occupied = socket.create_server(('127.0.0.1', 0))\n\
        address = '127.0.0.1:%d' % occupied.getsockname()[1]\n\
        brokers = [Broker() for _ in range(20)]\n\
        begun, most = cpu(), 0\n\
        for _ in range(20):\n\
        \x20   for broker in brokers: broker.send('bind', {'listen': address})\n\
        \x20   for broker in brokers:\n\
        \x20       assert broker.reply()['error']['code'] == -32005\n\
        \x20       most = max(most, threads())\n\
        say(most, cpu() - begun)\n\
        answer = ''\n\
        for _ in range(100):\n\
        \x20   answer = brokers[0].bind(address)\n\
        \x20   if 'held by' in answer: break\n\
        \x20   time.sleep(0.1)\n\
        say(answer)\n\
        say(brokers[0].call('bind', {'address': 'broker.example', 'port': 80}))\n";
    let said = stranger(&scene, &format!("{COST}{attack}"));
    let (threads, cpu) = said[0].split_once(' ').expect("two numbers");
    // One thread looks for all of them.
    assert!(threads.parse::<u32>().expect("a number") <= 2, "{said:?}");
    // Each look through that crowd takes 20 ms or more: 400 on this thread would take 8 s.
    assert!(cpu.parse::<f64>().expect("a number") < 2.0, "{said:?}");
    assert!(said[1].contains("held by pid "), "{said:?}");
    assert!(said[2].starts_with("-32602 ") && said[2].contains("not looked up"), "{said:?}");
}

#[test]
fn listeners_that_fall_at_once_take_no_thread_each() {
    let scene = Scene::new();
    if !scene.is_isolated() {
        return skip("needs a network namespace of its own, for hundreds of ports");
    }
    let mut broker = serve(&scene, "");
    let attack = "import ctypes, struct\n\
        libc, none = ctypes.CDLL(None), struct.pack('HH12x', 0, 0)\n\
        broker, good, most = Broker(), Broker(), 0\n\
        broker.bind('127.0.0.1:9000-9599')\n\
        while len(broker.descriptors) < 600:\n\
        \x20   broker.descriptors += socket.recv_fds(broker.socket, 65536, 253)[1]\n\
        for number in broker.descriptors: assert libc.connect(number, none, 16) == 0\n\
        for _ in range(200):\n\
        \x20   good.call('ping')\n\
        \x20   most = max(most, threads())\n\
        good.send('list')\n\
        listeners = good.reply()['result']['listeners']\n\
        say(most, sum(entry['listening'] for entry in listeners))\n";
    let said = stranger(&scene, &format!("{COST}{attack}"));
    let (threads, listening) = said[0].split_once(' ').expect("two numbers");
    assert!(threads.parse::<u32>().expect("a number") <= 2, "{said:?}");
    assert_eq!(listening, "600");
    let line = broker.wait_line("listeners had left LISTEN");
    assert!(line.contains("count="), "{line}");
}

#[test]
fn where_no_thread_can_be_made_everybody_is_answered() {
    if !geteuid().is_root() {
        return skip("needs root, to be a user that may have one process");
    }
    let scene = Scene::new();
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(scene.path("."), everybody).expect("a directory for another user");
    let start = format!(
        "import resource\nbecome(54399)\nresource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n\
         os.execv({0:?}, [{0:?}, 'serve', '--socket', sys.argv[1]])\n",
        bindonce()
    );
    let mut broker = Process::start(&mut program(&scene, &start));
    open(&scene, &mut broker);
    let said = stranger(
        &scene,
        "occupied = socket.create_server(('127.0.0.1', 0))\n\
         address = '127.0.0.1:%d' % occupied.getsockname()[1]\n\
         become(54399)\n\
         broker, other = Broker(), Broker()\n\
         say(broker.bind('127.0.0.1:9001'))\n\
         say(broker.bind(address)[:6])\n\
         broker.socket.close()\n\
         say(other.call('release', '127.0.0.1:9001'))\n",
    );
    assert_eq!(said, ["ok", "-32005", "ok"]);
}
