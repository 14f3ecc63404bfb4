//! Descriptors that were sent to a client that does not receive them.

use nix::unistd::geteuid;

use crate::harness::{Scene, skip};
use crate::strangers::{brokers, rules, serve_with, stranger};

/// The kernel counts descriptors in flight for the broker's user, including those of connections
/// that the broker has closed. At the limit, an ordinary user's broker can send none to any client.
/// The next image continues the count.
#[test]
fn what_a_client_does_not_receive_keeps_nobody_else_from_a_listener() {
    if !geteuid().is_root() {
        return skip("needs root, to be two users");
    }
    for user in brokers() {
        let Some(scene) =
            Scene::isolated("needs a network namespace of its own, for hundreds of ports")
        else {
            return;
        };
        let limit = ["prlimit", "--nofile=4096:4096"];
        let config = rules("allow = ['use']\naddresses = ['127.0.0.1:9000-9252']");
        let _broker = serve_with(&scene, &config, user, &limit);
        let attack = "import select\n\
            all = {'listen': '127.0.0.1:9000-9252'}\n\
            good = Broker()\n\
            say(good.bind(all['listen']))\n\
            become(65534)\n\
            first, others, last = Broker(), [Broker() for _ in range(40)], Broker()\n\
            first.send('bind', all)\n\
            first.socket.sendall(b'}')\n\
            ended = select.poll()\n\
            ended.register(first.socket, select.POLLRDHUP)\n\
            say('ended', len(ended.poll(30000)))\n\
            say(good.call('upgrade'))\n\
            for other in others: other.send('bind', all)\n\
            say(last.call('ping'))\n\
            answered = lambda patience: select.select([one.socket for one in others], [], [], patience)[0]\n\
            say('answered', len(answered(0)))\n\
            say(good.bind(all['listen']))\n\
            say('received', len(first.reply()['result']['listeners']))\n\
            while first.socket.recv(65536): pass\n\
            one = answered(25)[0]\n\
            other = next(other for other in others if other.socket == one)\n\
            say('answered', len(other.reply()['result']['listeners']))\n";
        let said = stranger(&scene, attack);
        let expected =
            ["ok", "ended 1", "ok", "ok", "answered 0", "ok", "received 253", "answered 253"];
        assert_eq!(said, expected, "{user:?}");
    }
}
