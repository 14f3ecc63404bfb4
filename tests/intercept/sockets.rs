//! Which sockets a program gets, and which it does not.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use super::{BINDER, only, python, reload, run};
use crate::harness::{DEADLINE, Process, Scene, eventually};

#[test]
fn a_bind_that_the_broker_refuses_fails_in_the_program_as_one_of_the_kernels() {
    let scene = Scene::new();
    let addresses: Vec<_> = (0..3).map(|_| scene.address()).collect();
    let ports: Vec<_> = addresses.iter().map(|at| at.port().to_string()).collect();
    let rule = format!(
        "[[rule]]\nuid = {}\nallow = ['bind', 'use', 'list', 'release', 'store']\naddresses = ['127.0.0.0/8:{}', '127.0.0.0/8:{}']\n",
        nix::unistd::getuid(),
        ports[0],
        ports[1]
    );
    let file = scene.write("broker.toml", &rule);
    let mut broker = Process::start(scene.bindonce("serve").arg("--config").arg(&file));
    scene.wait_broker(&mut broker);
    let _taken = TcpListener::bind(addresses[1]).expect("bind");
    let program = ["python3", "-c", BINDER, &ports[0], &ports[1], &ports[2], "0", &ports[0]];
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    supervisor.wait_line("said EADDRINUSE EACCES bound bound");
    let story = supervisor.story();
    assert!(story.contains("refused (EADDRINUSE)"), "{story}");
    assert!(supervisor.terminate().success());
}

/// Binds a socket that it has under two numbers, that is registered with epoll under both, and that one thread has in a table of its
/// own; then accepts by epoll alone.
const BEFOREHAND: &str = "\
import ctypes, os, select, socket, sys, threading
one = socket.socket()
one.setblocking(False)
copy = one.dup()
os.set_inheritable(copy.fileno(), True)
epoll = select.epoll()
epoll.register(one.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
epoll.register(copy.fileno(), select.EPOLLIN | select.EPOLLET)
one.bind(('127.0.0.1', int(sys.argv[1])))
epoll.modify(copy.fileno(), select.EPOLLIN)
apart = []
def bind_apart():
    # CLONE_FILES
    assert ctypes.CDLL(None).unshare(0x400) == 0
    other = socket.socket()
    other.bind(('127.0.0.1', int(sys.argv[2])))
    apart.append(os.readlink(f'/proc/thread-self/fd/{other.fileno()}'))
    other.listen(5)
thread = threading.Thread(target=bind_apart)
thread.start()
thread.join()
flags = [os.get_inheritable(each.fileno()) for each in (one, copy)]
print('has', os.fstat(one.fileno()).st_ino, os.fstat(copy.fileno()).st_ino, *flags, apart[0], flush=True)
copy.listen(5)
while True:
    for number, events in epoll.poll():
        try: (one if number == one.fileno() else copy).accept()[0].sendall(b'served')
        except BlockingIOError: pass
";

#[test]
fn a_socket_is_replaced_wherever_the_program_has_it() {
    let (scene, _broker) = Scene::with_broker();
    let addresses: Vec<_> = (0..2).map(|_| scene.address()).collect();
    let program = python(BEFOREHAND, &addresses);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    let (inode, apart) = (only(addresses[0]), only(addresses[1]));
    // The second is not inherited, the first is.
    let has = format!("has {inode} {inode} False True socket:[{apart}]");
    eventually("the broker's sockets", || supervisor.story().contains(&has).then_some(()));
    for _ in 0..3 {
        let mut client = TcpStream::connect(addresses[0]).expect("connect");
        client.set_read_timeout(Some(DEADLINE)).expect("timeout");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "served");
    }
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

#[test]
fn what_is_not_named_is_left_alone() {
    let (scene, _broker) = Scene::with_broker();
    let (named, other) = (scene.address(), scene.address());
    let only_named = format!("web={named}");
    let program = python(BINDER, &[named, other]);
    let Some(mut supervisor) = run(&scene, &[&only_named], &program) else { return };
    supervisor.wait_line("said bound");
    let held = scene.run("list", &[]).ok();
    assert!(held.contains("web") && !held.contains(&other.port().to_string()), "{held}");
    assert!(supervisor.terminate().success());
}

#[test]
fn udp_and_unix_sockets_are_shared_where_they_are_named() {
    let (scene, _broker) = Scene::with_broker();
    let (web, dns) = (scene.address(), scene.address());
    let path = scene.path("app.sock");
    let script = "import os, socket, sys, time\n\
        def bind(family, kind, at):\n\
        \x20   one = socket.socket(family, kind); one.bind(at); return one\n\
        app = bind(socket.AF_UNIX, socket.SOCK_STREAM, 'app.sock'); app.listen()\n\
        dns = bind(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', int(sys.argv[2])))\n\
        web = bind(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', int(sys.argv[1]))); web.listen()\n\
        print('inodes', *(os.fstat(one.fileno()).st_ino for one in (app, dns, web)), flush=True)\n\
        time.sleep(1000)\n";
    let named = [format!("app={}", path.display()), format!("dns=udp@{dns}"), web.to_string()];
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    let program = python(script, &[web, dns]);
    let Some(mut supervisor) = run(&scene, &named, &program) else { return };
    reload(&scene);
    let inodes = eventually("both generations to have said it", || {
        let story = supervisor.story();
        let said: Vec<_> = story.lines().filter_map(|line| line.split_once("inodes ")).collect();
        let [(_, before), (_, after)] = said[..] else { return None };
        Some((before.to_owned(), after.to_owned()))
    });
    assert_eq!(inodes.0, inodes.1);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
