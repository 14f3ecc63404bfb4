//! Processes that share the host with a broker: the user of a supervisor, another container,
//! another user namespace. Each is tested against root's broker and against an ordinary user's.

use nix::unistd::geteuid;

use crate::harness::{Scene, skip};
use crate::strangers::{ORDINARY, brokers, serve, stranger};

/// Root may do everything, the user of a supervisor some things.
const RULES: &str = "[[rule]]\nuid = 0\n\
    allow = ['bind', 'use', 'list', 'release', 'store', 'admin']\n\
    [[rule]]\nuid = 65533\n\
    allow = ['bind', 'use', 'list', 'release', 'store']\n\
    addresses = ['*:9000-9999']\nservices = ['edge']\nnames = ['edge-*']\n";

/// The control socket with its neighbouring files, and the broker's pid.
const PLACE: &str = "broker_pid = int(open(sys.argv[1] + '.lock').read())\n\
    place = [sys.argv[1] + end for end in ('', '.state', '.lock', '.events')]\n\
    libc = ctypes.CDLL(None)\n";

#[test]
fn a_supervisors_user_has_what_its_rule_says_and_nothing_of_the_brokers() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    for user in brokers() {
        let scene = Scene::new();
        let _broker = serve(&scene, RULES, user);
        let attack = "root = Broker()\n\
            say(root.bind('web=127.0.0.1:8000'))\n\
            say(root.call('join', {'service': 'haproxy', 'generation': 1, 'state': 'serving'}))\n\
            become(65533)\n\
            broker = Broker()\n\
            say(broker.bind('edge-1=127.0.0.1:9000'))\n\
            say(broker.call('join', {'service': 'edge', 'generation': 1, 'state': 'serving'}))\n\
            for call in (('upgrade',), ('release', 'web'), ('bind', {'listen': 'web'}),\n\
            \x20            ('bind', {'listen': '127.0.0.1:8000'}), ('bind', {'listen': 'web=127.0.0.1:9001'}),\n\
            \x20            ('join', {'service': 'haproxy', 'generation': 2, 'state': 'serving'})):\n\
            \x20   say(Broker().call(*call)[:6])\n\
            say('done:', *attempts(place, [broker_pid]))\n";
        let said = stranger(&scene, &format!("{PLACE}{attack}"));
        assert_eq!(said[..4], ["ok"; 4], "{said:?}");
        assert_eq!(said[4..10], ["-32002"; 6], "{said:?}");
        // It may ask, but nothing else.
        assert_eq!(said[10], format!("done: connect to {}", scene.socket().display()));
        let status = scene.wire().call("status", &serde_json::json!([]));
        assert_eq!(status["broker"]["upgrades"], 0);
    }
}

#[test]
fn another_container_reaches_no_more_than_it_mounts() {
    if !geteuid().is_root() {
        return skip("needs root, to make a container");
    }
    let scene = Scene::new();
    // Two containers of one user, as from one image. They share the network, as in a pod.
    let rules = format!("{RULES}[[rule]]\nuid = {ORDINARY}\nallow = ['bind']\n");
    let _broker = serve(&scene, &rules, Some(ORDINARY));
    let attack = format!(
        "user = {ORDINARY}\n\
         def container(*hidden):\n\
         \x20   assert libc.unshare(0x20000 | 0x20000000) == 0\n\
         \x20   if os.fork():\n\
         \x20       os.wait()\n\
         \x20       os._exit(0)\n\
         \x20   assert libc.mount(b'none', b'/', None, 0x4000 | 0x40000, None) == 0\n\
         \x20   assert libc.mount(b'proc', b'/proc', b'proc', 0, None) == 0\n\
         \x20   for path in hidden: assert libc.mount(b'none', path.encode(), b'tmpfs', 0, b'mode=755') == 0\n\
         if os.fork() == 0:\n\
         \x20   container(os.path.dirname(sys.argv[1]))\n\
         \x20   become(user)\n\
         \x20   others = [int(name) for name in os.listdir('/proc') if name.isdigit() and int(name) != os.getpid()]\n\
         \x20   say('done:', *attempts(place, [broker_pid] + others))\n\
         \x20   for line in open('/proc/net/unix'):\n\
         \x20       name = line.split()[7:]\n\
         \x20       if name and name[0].startswith('@'): say('abstract:', name)\n\
         \x20   os._exit(0)\n\
         os.wait()\n\
         for uid in (65532, user):\n\
         \x20   if os.fork() == 0:\n\
         \x20       container()\n\
         \x20       become(uid)\n\
         \x20       say(Broker().bind('127.0.0.1:9001')[:6])\n\
         \x20       say('done:', *attempts([], [broker_pid]))\n\
         \x20       os._exit(0)\n\
         \x20   os.wait()\n"
    );
    let said = stranger(&scene, &format!("{PLACE}{attack}"));
    // Without the volume a container reaches nothing. With it, another user has no right, and the
    // same user has the same rights.
    assert_eq!(said, ["done:", "-32002", "done:", "ok", "done:"]);
}

#[test]
fn root_of_another_user_namespace_is_who_it_is_outside() {
    if !geteuid().is_root() {
        return skip("needs root, to be another user who is root somewhere else");
    }
    for user in brokers() {
        let scene = Scene::new();
        let _broker = serve(&scene, RULES, user);
        let attack = "become(65531)\n\
            libc.prctl(4, 1, 0, 0, 0)\n\
            if libc.unshare(0x10000000) != 0:\n\
            \x20   say('none')\n\
            \x20   sys.exit()\n\
            for file, text in (('setgroups', 'deny'), ('uid_map', '0 65531 1'), ('gid_map', '0 65531 1')):\n\
            \x20   with open(f'/proc/self/{file}', 'w') as map: map.write(text)\n\
            say(os.getuid(), os.getgid())\n\
            for call in (('upgrade',), ('bind', {'listen': '127.0.0.1:9001'}), ('release', '127.0.0.1:9001')):\n\
            \x20   say(Broker().call(*call)[:6])\n\
            say('done:', *attempts(place, [broker_pid]))\n";
        let said = stranger(&scene, &format!("{PLACE}{attack}"));
        if said == ["none"] {
            return skip("an ordinary user makes no user namespace here");
        }
        assert_eq!(said[..4], ["0 0", "-32002", "-32002", "-32002"], "{said:?}");
        assert_eq!(said[4], format!("done: connect to {}", scene.socket().display()));
    }
}
