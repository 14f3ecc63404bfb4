//! What docs/security.md promises of the broker, attacked as the users that it names.
//!
//! Each of these attacks worked once. As root the attackers are other users, and each is made against root's broker and
//! that of an ordinary user; without root, the user of the tests is the attacker where the rules make it one.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::harness::{Process, Scene, bindonce, finish, skip};

/// A program in Python, run as the user of the tests; `become` in it makes that another one.
pub(crate) fn program(scene: &Scene, text: &str) -> Command {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/stranger.py");
    let library = fs::read_to_string(library).expect("the library");
    let file = scene.write("stranger.py", &(library + "\n" + text));
    let mut command = scene.command("python3");
    command.arg(file).arg(scene.socket());
    command
}

/// What it says, a line each.
#[track_caller]
pub(crate) fn stranger(scene: &Scene, text: &str) -> Vec<String> {
    finish(&mut program(scene, text)).ok().lines().map(str::to_owned).collect()
}

/// Somebody who is not root.
pub(crate) const ORDINARY: u32 = 54_399;

/// Whose brokers are attacked: this user's, and as root an ordinary user's, too.
pub(crate) fn brokers() -> impl Iterator<Item = Option<u32>> {
    let ordinary = geteuid().is_root().then_some(Some(ORDINARY));
    [None].into_iter().chain(ordinary)
}

/// A broker with a configuration, that everybody can connect to; of this user, or of another.
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
        // A copy that anybody may execute.
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
    for user in brokers() {
        let scene = Scene::new();
        let _broker = serve(&scene, "[[rule]]\ngid = 54321\nallow = ['bind']\n", user);
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
const CROWD: &str = "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
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
    for user in brokers() {
        let scene = Scene::new();
        let _broker = serve(&scene, "", user);
        // Unless it is root's, a broker sees the descriptors of its own user alone, and of processes that may be traced.
        let own =
            user.map(|user| format!("become({user})\nctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"));
        let own = own.unwrap_or_default();
        let mut crowd =
            Process::start(&mut program(&scene, &format!("import resource\n{own}{CROWD}")));
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
        let said = stranger(&scene, &format!("{own}{COST}{attack}"));
        let (threads, cpu) = said[0].split_once(' ').expect("two numbers");
        // One thread looks for all of them, beside the one that serves and the one that logs.
        assert!(threads.parse::<u32>().expect("a number") <= 3, "{said:?}");
        // Each look through that crowd takes 20 ms or more: 400 on this thread would take 8 s.
        assert!(cpu.parse::<f64>().expect("a number") < 2.0, "{said:?}");
        assert!(said[1].contains("held by pid "), "{said:?}");
        assert!(said[2].starts_with("-32602 ") && said[2].contains("not looked up"), "{said:?}");
    }
}

#[test]
fn listeners_that_fall_at_once_take_no_thread_each() {
    for user in brokers() {
        let scene = Scene::new();
        if !scene.is_isolated() {
            return skip("needs a network namespace of its own, for hundreds of ports");
        }
        let mut broker = serve(&scene, "", user);
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
            listening = 0\n\
            while listening < 600:\n\
            \x20   good.send('list')\n\
            \x20   listening = sum(one['listening'] for one in good.reply()['result']['listeners'])\n\
            \x20   most = max(most, threads())\n\
            say(most, listening)\n";
        let said = stranger(&scene, &format!("{COST}{attack}"));
        let (threads, listening) = said[0].split_once(' ').expect("two numbers");
        assert!(threads.parse::<u32>().expect("a number") <= 3, "{said:?}");
        assert_eq!(listening, "600");
        let line = broker.wait_line("listeners had left LISTEN");
        assert!(line.contains("count="), "{line}");
    }
}

#[test]
fn a_large_claim_is_made_in_turns() {
    for user in brokers() {
        let scene = Scene::new();
        if !scene.is_isolated() {
            return skip("needs a network namespace of its own, for thousands of ports");
        }
        let _broker = serve(&scene, "", user);
        // All of it lies before the broker when it goes on, the large one first.
        let attack = "import signal\n\
            pid = int(open(sys.argv[1] + '.lock').read())\n\
            large, same, small, known = Broker(), Broker(), Broker(), Broker()\n\
            say(known.bind('127.0.0.1:8998'))\n\
            os.kill(pid, signal.SIGSTOP)\n\
            large.send('bind', {'listen': '127.0.0.1:9000-10999'})\n\
            same.send('bind', {'listen': 'same=127.0.0.1:9000'})\n\
            small.send('bind', {'listen': 'small=127.0.0.1:8999'})\n\
            os.kill(pid, signal.SIGCONT)\n\
            say(len(large.reply()['result']['listeners']))\n\
            say(same.reply()['result']['listeners'][0]['created'])\n\
            say(small.reply()['result']['listeners'][0]['created'])\n\
            events = open(sys.argv[1] + '.events').read()\n\
            say(0 < events.find('small bound') < events.find('2000 listeners bound'))\n";
        assert_eq!(stranger(&scene, attack), ["ok", "2000", "False", "True", "True"]);
    }
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
        "import resource\nbecome(54399)\nresource.setrlimit(resource.RLIMIT_NPROC, (2, 2))\n\
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

/// Root may do everything, another user some.
pub(crate) fn rules(of_nobody: &str) -> String {
    let all = "'bind', 'use', 'list', 'release', 'store', 'admin'";
    format!("[[rule]]\nuid = 0\nallow = [{all}]\n[[rule]]\nuid = 65534\n{of_nobody}\n")
}

#[test]
fn a_service_is_joined_by_whom_a_rule_says_and_root_takes_it_back() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    for user in brokers() {
        let scene = Scene::new();
        let config =
            rules("allow = ['use']\naddresses = ['127.0.0.1:9000']\nservices = ['edge-*']");
        let mut broker = serve(&scene, &config, user);
        let attack = "root = Broker()\n\
            start, end = os.pipe()\n\
            if os.fork() == 0:\n\
            \x20   become(65534)\n\
            \x20   broker, other = Broker(), Broker()\n\
            \x20   for handover in (True, False):\n\
            \x20       one = {'service': 'haproxy', 'generation': 1, 'state': 'serving', 'handover': handover}\n\
            \x20       say(broker.call('join', one))\n\
            \x20   say(other.call('join', {'service': 'edge-1', 'state': 'serving', 'handover': True}))\n\
            \x20   os.write(end, b'x')\n\
            \x20   say('cut', other.socket.recv(100))\n\
            \x20   os._exit(0)\n\
            os.read(start, 1)\n\
            say(root.call('join', {'service': 'haproxy', 'generation': 1, 'state': 'serving'}))\n\
            say(Broker().call('join', {'service': 'edge-1', 'generation': 7, 'state': 'serving'}))\n\
            os.wait()\n";
        let mut said = stranger(&scene, attack);
        said.sort_unstable();
        assert_eq!(said[2..], ["cut b''", "ok", "ok", "ok"], "{said:?}");
        assert!(said[..2].iter().all(|text| text.starts_with("-32002 ")), "{said:?}");
        let line = broker.wait_line("may not join");
        assert!(line.contains("services = ") && line.contains("haproxy"), "{line}");
        broker.wait_line("taken the name of the service back");
    }
}

#[test]
fn a_listener_is_named_by_whom_a_rule_says() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    for user in brokers() {
        let scene = Scene::new();
        let config = rules("allow = ['bind']\naddresses = ['*:9000-9999']\nnames = ['app-*']");
        let _broker = serve(&scene, &config, user);
        let said = stranger(
            &scene,
            "root = Broker()\n\
             if os.fork() == 0:\n\
             \x20   become(65534)\n\
             \x20   broker = Broker()\n\
             \x20   for text in ('web=127.0.0.1:9001', '127.0.0.1:9001', 'app-1=127.0.0.1:9002'):\n\
             \x20       say(broker.bind(text)[:6])\n\
             \x20   os._exit(0)\n\
             os.wait()\n\
             say(root.bind('web=127.0.0.1:9003'))\n",
        );
        assert_eq!(said, ["-32002", "ok", "ok", "ok"]);
    }
}

#[test]
fn root_takes_the_name_of_a_listener_back() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    let scene = Scene::new();
    let config = rules("allow = ['bind']\naddresses = ['*:9000-9999']\nnames = ['*']");
    let mut broker = serve(&scene, &config, None);
    let said = stranger(
        &scene,
        "root = Broker()\n\
         say(root.bind('own=127.0.0.1:8001'))\n\
         if os.fork() == 0:\n\
         \x20   become(65534)\n\
         \x20   broker = Broker()\n\
         \x20   say(broker.bind('web=127.0.0.1:9001'))\n\
         \x20   say(broker.bind('own=127.0.0.1:9002')[:6])\n\
         \x20   os._exit(0)\n\
         os.wait()\n\
         say(root.bind('web=127.0.0.1:8002', '203.0.113.1:8002')[:6])\n\
         root.send('list')\n\
         say([it['name'] for it in root.reply()['result']['listeners']])\n\
         say(root.bind('web=127.0.0.1:8002'))\n\
         say(root.bind('own=127.0.0.1:8003')[:6])\n\
         root.send('list')\n\
         names = {it['address']: it['name'] for it in root.reply()['result']['listeners']}\n\
         say(names['127.0.0.1:8002'], names['127.0.0.1:9001'], names['127.0.0.1:8001'])\n",
    );
    let names = "web 127.0.0.1:9001 own";
    // A claim that fails takes nothing.
    let kept = "['own', 'web']";
    assert_eq!(said, ["ok", "ok", "-32003", "-32005", kept, "ok", "-32003", names]);
    let line = broker.wait_line("has taken the name of a listener back");
    assert!(line.contains("127.0.0.1:9001"), "{line}");
}

/// Who has created a listener is written down: it is so for the next broker and for the next image of it.
#[test]
fn root_takes_a_name_back_from_the_next_broker_too() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    let rule = "allow = ['bind']\naddresses = ['*:9000-9999']\nnames = ['*']";
    let config = rules(rule) + "[limits]\nlisteners_per_user = 2\n";
    for upgraded in [true, false] {
        let scene = Scene::new();
        let mut broker = serve(&scene, &config, None);
        let mut holder = Process::start(&mut program(
            &scene,
            "become(65534)\n\
             broker = Broker()\n\
             say(broker.bind('web=127.0.0.1:9001', '127.0.0.1:9002'))\n\
             signal.pause()\n",
        ));
        holder.wait_line("ok");
        if upgraded {
            broker.signal(Signal::SIGUSR1);
            broker.wait_line("upgraded in place");
        } else {
            broker.kill();
            broker = serve(&scene, &config, None);
        }
        let said = stranger(
            &scene,
            "root = Broker()\n\
             say(root.bind('web=127.0.0.1:8002'))\n\
             become(65534)\n\
             say(Broker().bind('127.0.0.1:9003')[:6])\n",
        );
        assert_eq!(said, ["ok", "-32008"], "upgraded: {upgraded}");
        broker.wait_line("has taken the name of a listener back");
    }
}

#[test]
fn what_is_kept_for_clients_has_a_limit() {
    if !geteuid().is_root() {
        return skip("needs root, to be several users");
    }
    for user in brokers() {
        let scene = Scene::new();
        let mut broker =
            serve(&scene, &rules("allow = ['use']\naddresses = ['127.0.0.1:9000']"), user);
        let attack = "long = b'{\"method\":\"ping\",\"params\":[\"' + b'x' * 1000000\n\
            def fill(uid, count):\n\
            \x20   if os.fork() == 0:\n\
            \x20       become(uid)\n\
            \x20       cut, kept = 0, []\n\
            \x20       for _ in range(count):\n\
            \x20           try:\n\
            \x20               broker = Broker()\n\
            \x20               kept.append(broker)\n\
            \x20               broker.socket.sendall(long)\n\
            \x20           except OSError: cut += 1\n\
            \x20       other = Broker()\n\
            \x20       say(uid, cut > count // 2)\n\
            \x20       os._exit(0)\n\
            \x20   os.wait()\n\
            good = Broker()\n\
            fill(65534, 100)\n\
            for uid in range(1000, 1010): fill(uid, 100)\n\
            good.socket.sendall(long + b'\"]}\\n')\n\
            say(good.reply()['error']['code'])\n\
            status = open('/proc/%s/status' % open(sys.argv[1] + '.lock').read().strip()).read()\n\
            say(status.split('VmHWM:')[1].split()[0])\n";
        let said = stranger(&scene, attack);
        assert_eq!(said.len(), 13, "{said:?}");
        assert!(said[..11].iter().all(|text| text.ends_with("True")), "{said:?}");
        assert_eq!(said[11], "-32602", "a long request of root's is read to its end");
        // Without a limit it would be 100 MiB for each of them.
        assert!(said[12].parse::<u32>().expect("KiB") < 60_000, "{said:?}");
        let story = broker.story();
        let cut = story.lines().filter(|line| line.contains("buffered_bytes")).count();
        assert!((1..=11 * 12).contains(&cut), "{cut} lines");
    }
}

#[test]
fn a_client_writes_some_lines_of_the_log_and_not_more() {
    if !geteuid().is_root() {
        return skip("needs root, to be another user");
    }
    for user in brokers() {
        let scene = Scene::new();
        let mut broker =
            serve(&scene, &rules("allow = ['bind', 'release']\naddresses = ['*:9000']"), user);
        let said = stranger(
            &scene,
            "become(65534)\n\
             broker = Broker()\n\
             for _ in range(500):\n\
             \x20   assert broker.bind('127.0.0.1:80')[:6] == '-32002'\n\
             \x20   assert broker.call('join', {'service': 'haproxy', 'state': 'starting', 'handover': True})[:6] == '-32002'\n\
             \x20   assert broker.bind('127.0.0.1:9000') == 'ok'\n\
             \x20   os.close(broker.descriptors.pop())\n\
             \x20   assert broker.call('release', '127.0.0.1:9000') == 'ok'\n\
             say('done')\n",
        );
        assert_eq!(said, ["done"]);
        let story = broker.story();
        let count = |text: &str| story.lines().filter(|line| line.contains(text)).count();
        // A test that takes longer than a period sees another few.
        assert!((10..=60).contains(&count("denied:")), "{story}");
        assert!((100..=400).contains(&count("listener opened")), "{story}");
        assert!((100..=400).contains(&count("listener closed")), "{story}");
    }
}

/// The close of the last descriptor of a connection waits as long as its SO_LINGER says: here a minute, longer than the
/// other client waits for its answer. The attacker has no right, and for the last attack that to some listeners.
#[test]
fn what_a_client_passes_or_makes_of_a_listener_keeps_nobody_waiting() {
    for user in brokers() {
        let scene = Scene::new();
        let config = match geteuid().is_root() {
            true => rules("allow = ['bind']\naddresses = ['127.0.0.1:0']"),
            false => String::new(),
        };
        let _broker = serve(&scene, &config, user);
        let attack = "import struct, encodings.idna\n\
            kept, server = [], socket.create_server(('127.0.0.1', 0))\n\
            def linger(one):\n\
            \x20   one.setblocking(False)\n\
            \x20   try:\n\
            \x20       while True: one.send(b'x' * 65536)\n\
            \x20   except BlockingIOError: pass\n\
            \x20   one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))\n\
            \x20   return one\n\
            def lingering():\n\
            \x20   one = linger(socket.create_connection(server.getsockname()))\n\
            \x20   kept.append(server.accept())\n\
            \x20   return one\n\
            good = Broker()\n\
            if os.getuid() == 0: become(65534)\n\
            def passing():\n\
            \x20   broker, one = Broker(), lingering()\n\
            \x20   socket.send_fds(broker.socket, [b'{\"id\":1,'], [one.fileno()])\n\
            \x20   one.close()\n\
            \x20   return broker\n\
            passing().socket.close()\n\
            say('unfinished', good.call('ping'))\n\
            broker = passing()\n\
            broker.socket.sendall(b'\"method\":\"ping\"}\\n')\n\
            say('with a request', 'result' in broker.reply(), good.call('ping'))\n\
            last = lingering()\n\
            def unread():\n\
            \x20   broker = Broker()\n\
            \x20   try:\n\
            \x20       # What has a descriptor ends a read: what follows lies in the connection when it ends.\n\
            \x20       socket.send_fds(broker.socket, [b']'], [0])\n\
            \x20       socket.send_fds(broker.socket, [b'x'], [last.fileno()])\n\
            \x20   except OSError: return None\n\
            \x20   return broker\n\
            # One that the broker has ended before it is all sent shows nothing.\n\
            ended = next((one for _ in range(1000) if (one := unread())), None)\n\
            last.close()\n\
            say('unread', bool(ended), good.call('ping'))\n\
            libc, none = ctypes.CDLL(None), struct.pack('HH12x', 0, 0)\n\
            connected = False\n\
            while not connected:\n\
            \x20   broker = Broker()\n\
            \x20   broker.send('bind', {'listen': '127.0.0.1:0', 'tentative': True})\n\
            \x20   broker.reply()\n\
            \x20   listener = socket.socket(fileno=broker.descriptors[0])\n\
            \x20   libc.connect(listener.fileno(), none, 16)\n\
            \x20   listener.setblocking(True)\n\
            \x20   try: listener.connect(server.getsockname())\n\
            \x20   except OSError: continue\n\
            \x20   connected = True\n\
            linger(listener).close()\n\
            broker.socket.close()\n\
            say('a listener', good.call('ping'))\n";
        let said = stranger(&scene, attack);
        assert_eq!(
            said,
            ["unfinished ok", "with a request True ok", "unread True ok", "a listener ok"]
        );
    }
}
