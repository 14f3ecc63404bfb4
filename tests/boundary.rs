//! The promises of docs/security.md about the broker: to whom a right, a service and a name belong.
//!
//! Each of these attacks worked once. As root the attackers are other users, and each attack is
//! made against root's broker and against an ordinary user's. Without root, the user of the tests
//! is the attacker where the rules allow it.

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::harness::{Process, Scene, bindonce, skip};
use crate::strangers::{brokers, open, program, rules, serve, stranger};

#[test]
fn rights_are_of_who_connected_not_of_a_pid() {
    if !geteuid().is_root() {
        return skip("needs root, to be users of several groups");
    }
    for user in brokers() {
        let scene = Scene::new();
        let _broker = serve(&scene, "[[rule]]\ngid = 54321\nallow = ['bind']\n", user);
        // The connected process joins the group later, as would any process that got its pid.
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
        // The reverse: the group belongs to the connection, even after its process has left the
        // group or ended.
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
             for _ in range(600):\n\
             \x20   time.sleep(0.05)\n\
             \x20   if '\"upgraded\"' in open(sys.argv[1] + '.events').read(): break\n\
             else: say('not upgraded')\n\
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
    // In its namespace the broker's user is root, and every other user has the number 65534.
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
    // A failed claim takes nothing.
    let kept = "['own', 'web']";
    assert_eq!(said, ["ok", "ok", "-32003", "-32005", kept, "ok", "-32003", names]);
    let line = broker.wait_line("has taken the name of a listener back");
    assert!(line.contains("127.0.0.1:9001"), "{line}");
}

/// The creator of a listener is recorded, for the next broker and for the next image.
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
