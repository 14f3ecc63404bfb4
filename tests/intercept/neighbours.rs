//! What odd ways to bind come to under bindonce, each beside what the kernel makes of it alone: the same, or a difference that docs/intercept.md
//! tells.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::Signal;

use super::{only, python, reload, run};
use crate::harness::{DEADLINE, Process, Scene, eventually, root, skip};

/// One for each case and one more.
const PORTS: usize = 70;

/// What each case has come to.
fn outcomes(process: &mut Process) -> BTreeMap<String, String> {
    let story = eventually("all cases", || {
        let story = process.story();
        story.contains("| all of ").then_some(story)
    });
    let lines = story.lines().filter_map(|line| line.split_once("| case ")?.1.split_once(": "));
    lines.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

/// Runs the cases with these names intercepted (all, if none), and without bindonce; gives what differs, as it is under bindonce.
fn differences(names: impl Fn(&Path, &str) -> Vec<String>) -> Option<BTreeMap<String, String>> {
    if !nix::unistd::geteuid().is_root() {
        skip("odd ways to bind: needs root, for ports of its own");
        return None;
    }
    let (scene, _broker) = Scene::with_broker();
    let script = root().join("tests/harness/neighbours.py").display().to_string();
    let ports: Vec<_> = (0..PORTS).map(|_| scene.address().port().to_string()).collect();
    let program = |directory: &Path| {
        fs::create_dir(directory).expect("a directory");
        let words = ["python3".to_owned(), script.clone(), directory.display().to_string()];
        [&words[..], &ports].concat()
    };
    let (alone, under) = (scene.path("one"), scene.path("two"));
    let words = program(&alone);
    let mut plain = Process::start(scene.command(&words[0]).args(&words[1..]));
    let expected = outcomes(&mut plain);
    plain.signal(Signal::SIGKILL);
    plain.wait_exit();
    let names = names(&under, &ports[0]);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut supervisor = run(&scene, &names, &program(&under))?;
    let found = outcomes(&mut supervisor);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    Some(found.into_iter().filter(|(name, outcome)| expected[name] != *outcome).collect())
}

#[track_caller]
fn assert_differences(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected =
        expected.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned()));
    assert_eq!(*found, expected.collect::<BTreeMap<_, _>>());
}

#[test]
fn a_bind_comes_to_what_the_kernel_makes_of_it() {
    let Some(found) = differences(|_, _| Vec::new()) else { return };
    let by_another = r#"("('done', 'done', '127.0.0.1 same port')", '0.0.0.0 other port')"#;
    assert_differences(
        &found,
        &[
            ("owner_of_signals", "(False, False, False)"),
            ("options_tcp", "('refused {}', 'lost SO_REUSEPORT')"),
            ("options_tcp_listening", "('refused {}', 'lost SO_REUSEPORT')"),
            ("options_udp", "('refused {}', 'lost SO_REUSEADDR SO_REUSEPORT')"),
            ("dual_stack_then_ipv4", "('done', '0.0.0.0 same port', 'done')"),
            ("reuseport_programs", "['done', 'done', 'EINVAL', 'done']"),
            ("reuseport_many", "('done', 1)"),
            ("same_address_twice", "('done', True)"),
            ("bound_by_a_child", by_another),
            ("passed_and_bound", by_another),
        ],
    );
}

#[test]
fn a_bind_of_a_unix_path_comes_to_what_the_kernel_makes_of_it() {
    let names = |directory: &Path, port: &str| {
        let at = |name: &str| directory.join(name).display().to_string();
        let paths = ["app.sock", "file", "none/app.sock", "file/app.sock", "a"].map(at);
        // That of its server makes it serve.
        let others = ["abnsz@neighbour".to_owned(), format!("127.0.0.1:{port}")];
        paths.into_iter().chain(others).collect()
    };
    let Some(found) = differences(names) else { return };
    let absolute = "'done', \"'DIRECTORY/app.sock'\", 'done', 'done', True";
    assert_differences(
        &found,
        &[
            ("unix_relative", &format!("[{absolute}, {absolute}, {absolute}, {absolute}]")),
            ("unix_other_types", "['EADDRNOTAVAIL', 'EINVAL', 'EADDRNOTAVAIL', 'ENOTSUP']"),
            ("unix_in_a_root_of_its_own", "('EADDRNOTAVAIL', 'done')"),
        ],
    );
}

/// Removes the file before it binds it, and when it ends.
const REMOVES: &str = "\
import os, select, signal, socket, sys
told, tell = socket.socketpair()
tell.setblocking(False)
signal.set_wakeup_fd(tell.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
if os.path.exists('app.sock'): os.unlink('app.sock')
server = socket.socket(socket.AF_UNIX)
server.bind('app.sock')
server.listen(100)
server.setblocking(False)
while told not in select.select([told, server], [], [])[0]:
    try: server.accept()[0].sendall(os.environ['BINDONCE_GENERATION'].encode())
    except OSError: pass
server.close()
here = os.open('.', os.O_RDONLY)
os.unlink('app.sock', dir_fd=here)
other = socket.socket(socket.AF_UNIX)
other.bind('other.sock')
os.unlink('other.sock')
print('removed', os.path.exists('app.sock'), os.path.exists('other.sock'), flush=True)
";

#[test]
fn a_unix_path_that_a_program_removes_stays() {
    let (scene, _broker) = Scene::with_broker();
    let path = scene.path("app.sock");
    let name = path.display().to_string();
    let Some(mut supervisor) = run(&scene, &[&name], &python(REMOVES, &[])) else { return };
    let file = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).expect("its file"));
    let ask = || {
        let mut client = UnixStream::connect(&path).expect("the listener");
        client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        answer
    };
    assert_eq!(ask(), "1");
    let inode = file();
    for generation in 2..=3 {
        reload(&scene);
        supervisor.wait_line("removed True False");
        assert_eq!((ask(), file()), (generation.to_string(), inode));
    }
    // Another process removes the file: the next generation gets a new socket, and clients reach it.
    fs::remove_file(&path).expect("remove");
    reload(&scene);
    assert_eq!(ask(), "4");
    assert_ne!(file(), inode);
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

/// While one thread binds, another closes the descriptor, and has a file under its number.
const REUSED: &str = "\
import os, socket, sys, threading, time
first = socket.socket()
first.bind(('127.0.0.1', int(sys.argv[1])))
first.listen()
second = socket.socket()
def bind():
    try: second.bind(('127.0.0.1', int(sys.argv[2])))
    except OSError: pass
thread = threading.Thread(target=bind)
print('inode', os.fstat(second.fileno()).st_ino, flush=True)
while not os.path.exists('go'): time.sleep(0.01)
thread.start()
while not os.path.exists('looked'): time.sleep(0.01)
number = second.detach()
os.dup2(os.open('/dev/null', os.O_RDONLY), number)
print('is a file now', flush=True)
thread.join()
print('has', os.readlink(f'/proc/self/fd/{number}'), flush=True)
time.sleep(1000)
";

#[test]
fn what_another_thread_has_opened_under_the_number_stays() {
    let (scene, broker) = Scene::with_broker();
    let addresses = [scene.address(), scene.address()];
    let program = python(REUSED, &addresses);
    let Some(mut supervisor) = run(&scene, &[], &program) else { return };
    only(addresses[0]);
    let theirs = eventually("its inode", || {
        let story = supervisor.story();
        let inode = story.lines().find_map(|line| line.split_once("| inode "))?.1;
        Some(format!("socket:[{inode}]"))
    });
    broker.signal(Signal::SIGSTOP);
    scene.write("go", "");
    let descriptors = format!("/proc/{}/fd", supervisor.pid());
    eventually("the supervisor to look at its socket", || {
        let mut open = fs::read_dir(&descriptors).ok()?.flatten();
        let is_it =
            |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|it| it == Path::new(&theirs));
        open.any(is_it).then_some(())
    });
    scene.write("looked", "");
    supervisor.wait_line("is a file now");
    broker.signal(Signal::SIGCONT);
    eventually("that to stay, and to be told", || {
        let story = supervisor.story();
        (story.contains("has /dev/null") && story.contains("could not be given")).then_some(())
    });
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}

/// Each generation sets more on its sockets than the one before.
const GROWS: &str = "\
import errno, os, socket, sys, time
first = os.environ['BINDONCE_GENERATION'] == '1'
def bind(*wanted, family=socket.AF_INET, host='127.0.0.1', protocol=0, port):
    one = socket.socket(family, socket.SOCK_STREAM, protocol)
    for option in wanted:
        if not first: one.setsockopt(*option)
    try: one.bind((host, port))
    except OSError as error: return errno.errorcode[error.errno]
    one.listen()
    kept.append(one)
    return *(one.getsockopt(*option[:2]) for option in wanted), os.fstat(one.fileno()).st_ino
kept, ports = [], [int(port) for port in sys.argv[1:]]
print('grows', bind((6, 9, 7), (6, 23, 5), (0, 15, 1), (0, 19, 1), host='0.0.0.0', port=ports[0]), end=' ')
print(bind((41, 26, 1), family=socket.AF_INET6, host='::', port=ports[1]), end=' ')
print(bind(protocol=6 if first else 262, port=ports[2]), flush=True)
time.sleep(1000)
";

/// TCP_DEFER_ACCEPT, TCP_FASTOPEN, IP_FREEBIND and IP_TRANSPARENT are changed in place; IPV6_V6ONLY and the protocol belong to a socket.
#[test]
fn what_a_newer_generation_wants_is_changed_in_place_or_refused() {
    if !nix::unistd::geteuid().is_root() {
        return skip("options of a newer generation: needs root, for IP_TRANSPARENT");
    }
    let (scene, _broker) = Scene::with_broker();
    let addresses: Vec<_> = (0..3).map(|_| scene.address()).collect();
    let Some(mut supervisor) = run(&scene, &[], &python(GROWS, &addresses)) else { return };
    reload(&scene);
    let said = eventually("both generations to have said it", || {
        let story = supervisor.story();
        let said = story.lines().filter_map(|line| line.split_once("grows "));
        let said: Vec<_> = said.map(|(_, said)| said.to_owned()).collect();
        (said.len() == 2).then_some(said)
    });
    let inode = said[0].split_once(')').expect("the first").0.rsplit(' ').next().expect("one");
    assert!(said[0].starts_with(&format!("(0, 0, 0, 0, {inode}) (0, ")), "{said:?}");
    assert_eq!(said[1], format!("(7, 5, 1, 1, {inode}) EADDRINUSE EADDRINUSE"));
    let story = supervisor.story();
    assert_eq!(story.matches("refused (EADDRINUSE)").count(), 2, "{story}");
    assert!(supervisor.terminate().success(), "{}", supervisor.story());
}
