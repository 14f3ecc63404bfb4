//! The promises of docs/security.md about costs: no client takes much of the broker's time,
//! threads, memory or log from the others.
//!
//! Each of these attacks worked once. They are made like those of `boundary`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::unistd::geteuid;

use crate::harness::{Process, Scene, bindonce, skip};
use crate::strangers::{brokers, open, program, rules, serve, stranger};

/// A process with many descriptors, so that a search of /proc takes a while.
const CROWD: &str = "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
    many = min(20000, most - 100)\n\
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n\
    null = os.open('/dev/null', 0)\n\
    for number in range(100, 100 + many): os.dup2(null, number)\n\
    say('crowded')\n\
    time.sleep(600)\n";

/// CPU time of a broker's main thread, in seconds, and its number of threads.
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
        // A broker that is not root's sees only the descriptors of its own user, and of processes
        // that it may trace.
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
        // One thread searches for all clients, beside the main thread and the log thread.
        assert!(threads.parse::<u32>().expect("a number") <= 3, "{said:?}");
        // Each search through that crowd takes 20 ms or more: 400 on the main thread would take 8
        // s.
        assert!(cpu.parse::<f64>().expect("a number") < 2.0, "{said:?}");
        assert!(said[1].contains("held by pid "), "{said:?}");
        assert!(said[2].starts_with("-32602 ") && said[2].contains("not looked up"), "{said:?}");
    }
}

#[test]
fn listeners_that_fall_at_once_take_no_thread_each() {
    for user in brokers() {
        let Some(scene) =
            Scene::isolated("needs a network namespace of its own, for hundreds of ports")
        else {
            return;
        };
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
        let Some(scene) =
            Scene::isolated("needs a network namespace of its own, for thousands of ports")
        else {
            return;
        };
        let _broker = serve(&scene, "", user);
        // Everything is queued when the broker continues, the large request first.
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
        // Without a limit it would take 100 MiB for each client.
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
        // A test that takes longer than one period sees some more.
        assert!((10..=60).contains(&count("denied:")), "{story}");
        assert!((100..=400).contains(&count("listener opened")), "{story}");
        assert!((100..=400).contains(&count("listener closed")), "{story}");
    }
}

/// Closing the last descriptor of a connection waits as long as its SO_LINGER says: here one
/// minute, longer than the other client waits for its answer. The attacker has no right, and for
/// the last attack a right to some listeners.
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
