//! Programs started through the shim and by exec.

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use bindonce_sys::process::{Exit, Pidfd};
use bindonce_sys::spawn::{Launch, Started};
use bindonce_sys::tree;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, getsid};
use rustix::event::{PollFd, PollFlags, poll};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a program finds its descriptors, variables and directory", finds_everything),
    ("a program starts with its signals as they should be", signals_are_reset),
    ("a service starts in a session of its own and finds its pid", service),
    ("a tree is found, stopped and killed with all that it has made", tree),
    ("a tree has stopped when none of it can fork any more", forks_meanwhile),
    ("six hundred descriptors arrive in order", many_descriptors),
    ("no descriptors are no problem", no_descriptors),
    ("a program that is not there is told on standard error", not_found),
    ("a shim that dies at once blocks nobody", dead_shim),
    ("exec moves descriptors past each other", exec_overlaps),
    ("an exec that fails puts everything back", exec_fails),
    ("exec needs hardly more numbers than descriptors", exec_crowded),
    ("an exec beyond the limit names the limit", exec_too_many),
    ("a child is signalled and reaped through its descriptor", pidfd),
];

fn shell(script: &str) -> Launch {
    let mut launch = Launch::new("sh");
    launch.args = vec!["-c".into(), script.into()];
    launch.stdout = Stdio::piped();
    launch.stderr = Stdio::piped();
    launch
}

/// All output of the program, and how it ended.
fn finish(started: Started) -> (String, String, Exit) {
    let [stdout, stderr] = [started.stdout, started.stderr].map(|pipe| {
        let mut text = String::new();
        std::fs::File::from(pipe.expect("piped")).read_to_string(&mut text).expect("read");
        text
    });
    (stdout, stderr, wait(&started.pidfd))
}

pub(crate) fn wait(pidfd: &Pidfd) -> Exit {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).expect("poll");
    pidfd.try_wait().expect("wait").expect("ended")
}

fn socket() -> (OwnedFd, u64) {
    let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").expect("bind"));
    let inode = rustix::fs::fstat(&socket).expect("fstat").st_ino;
    (socket, inode)
}

fn finds_everything() {
    let ((first, first_inode), (second, second_inode)) = (socket(), socket());
    let mut launch = shell(
        "echo $WEB $API $COLOUR $PWD $$ \"[$HOME]\"; for n in $WEB $API 0; do readlink /proc/self/fd/$n; done; \
         ls /proc/self/fd | wc -l; echo done >&2; exit 7",
    );
    launch.descriptors = vec![("WEB".to_owned(), first.into()), ("API".to_owned(), second.into())];
    launch.env = vec![("COLOUR".into(), "blue".into())];
    launch.env_remove = vec!["HOME".into()];
    launch.cwd = Some("/proc".into());
    let started = launch.start().expect("start");
    let pid = started.pid;
    let (stdout, stderr, exit) = finish(started);
    let expected = format!(
        "3 4 blue /proc {pid} []\nsocket:[{first_inode}]\nsocket:[{second_inode}]\n/dev/null\n"
    );
    // 0, 1, 2, ours, and the directory that ls reads.
    assert_eq!(stdout, expected + "6\n");
    assert_eq!((stderr.as_str(), exit), ("done\n", Exit::Code(7)));
}

fn service() {
    let (socket, _) = socket();
    let mut launch = shell(
        "echo $$ $LISTEN_PID $LISTEN_FDS; cut -d' ' -f6 /proc/$$/stat; grep SigIgn /proc/$$/status",
    );
    launch.service = true;
    launch.descriptors = vec![(String::new(), socket.into())];
    // An added variable takes precedence over a removed one.
    launch.env = vec![("LISTEN_FDS".into(), "1".into())];
    launch.env_remove = vec!["LISTEN_FDS".into(), "LISTEN_PID".into()];
    let started = launch.start().expect("start");
    let pid = started.pid;
    let (stdout, _, exit) = finish(started);
    let (told, ignored) = stdout.trim().rsplit_once('\t').expect("SigIgn");
    assert_eq!((told, exit), (format!("{pid} {pid} 1\n{pid}\nSigIgn:").as_str(), Exit::Code(0)));
    // SIGPIPE is signal 13; the C library's own signals are above.
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    assert_eq!(ignored & 0x7fff_ffff, 1 << 12, "{ignored:x}");
}

/// A leader that is inside vfork(2) until its child has opened a pipe. By then the leader has
/// SIGSTOP, and has not stopped.
fn forks_meanwhile() {
    let pipe = std::env::temp_dir().join(format!("bindonce-pipe-{}", std::process::id()));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut launch = Launch::new("python3");
    let script = "import os, signal, sys\n\
                  print('up', flush=True)\n\
                  opens = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n\
                  os.posix_spawn('/bin/sleep', ['sleep', '1000'], {}, file_actions=opens)\n\
                  os.posix_spawn('/bin/sleep', ['sleep', '1000'], {})\n\
                  signal.pause()";
    launch.args = vec!["-c".into(), script.into(), pipe.clone().into()];
    launch.service = true;
    launch.stdout = Stdio::piped();
    let started = launch.start().expect("start");
    let leader = started.pid;
    // `python3` may be a script that creates processes before it becomes python3.
    let mut stdout = std::fs::File::from(started.stdout.expect("piped"));
    stdout.read_exact(&mut [0; 3]).expect("up");
    let mut members = vec![leader];
    while members.len() < 2 {
        members = tree::members(leader);
    }
    let child = Pidfd::open(members[1]).expect("the child");
    let mut stopping = tree::Stopping::of(leader);
    for _ in 0..100 {
        assert!(!stopping.step(), "the leader is inside vfork(2)");
    }
    child.send(Signal::SIGCONT).expect("continue");
    drop(std::fs::OpenOptions::new().write(true).open(&pipe).expect("the child reads"));
    while !bindonce_sys::process::is_stopped(leader) {
        std::thread::yield_now();
    }
    child.send(Signal::SIGSTOP).expect("stop");
    while !stopping.step() {
        std::thread::yield_now();
    }
    assert_eq!(tree::kill(leader), 2);
    wait(&started.pidfd);
    std::fs::remove_file(pipe).expect("removed");
}

/// A leader, a child, and a grandchild in a session of its own; also after the death of the leader.
fn tree() {
    let script = "setsid sleep 1000 & sh -c 'sleep 1000 & echo up; wait' & wait";
    let mut launch = shell(script);
    launch.service = true;
    let started = launch.start().expect("start");
    let leader = started.pid;
    let mut stdout = std::fs::File::from(started.stdout.expect("piped"));
    stdout.read_exact(&mut [0; 3]).expect("up");
    let state = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).expect("a state")
    };
    // setsid(1) creates no process of its own here: it leads no group. It may not have run yet.
    let leads = |pid: &i32| getsid(Some(Pid::from_raw(*pid))).is_ok_and(|id| id.as_raw() == *pid);
    while !tree::members(leader).iter().any(|pid| *pid != leader && leads(pid)) {
        std::thread::yield_now();
    }
    let members = tree::members(leader);
    assert_eq!((members.len(), members[0]), (4, leader), "{members:?}");
    let mut stopping = tree::Stopping::of(leader);
    while !stopping.step() {
        std::thread::yield_now();
    }
    assert!(members.iter().all(|pid| state(pid) == 'T'));
    assert_eq!(tree::signal(leader, Signal::SIGCONT), 4);
    let start_time = bindonce_sys::process::start_time(leader).expect("it lives");
    started.pidfd.send(Signal::SIGKILL).expect("kill");
    poll(&mut [PollFd::new(&started.pidfd, PollFlags::IN)], None).expect("poll");
    assert_eq!(tree::kill_orphans(leader, start_time + 1), 0, "somebody else's");
    // The process in a session of its own has lost its parent: nothing identifies its tree.
    assert_eq!(tree::kill_orphans(leader, start_time), 2);
    started.pidfd.try_wait().expect("reaped");
    let stray =
        members.iter().find(|pid| bindonce_sys::process::name(**pid).as_deref() == Some("sleep"));
    Pidfd::open(*stray.expect("the stray"))
        .and_then(|stray| stray.send(Signal::SIGKILL))
        .expect("end");
}

fn signals_are_reset() {
    let blocked: SigSet = [Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect();
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before)).expect("block");
    let started = shell("exec grep -E 'Sig(Blk|Ign)' /proc/self/status").start();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).expect("unblock");
    let (stdout, _, _) = finish(started.expect("start"));
    let sets: Vec<u64> = stdout
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_once('\t')?.1, 16).ok())
        .collect();
    // 32 and 33 are glibc's own, which its posix_spawn leaves ignored in every child.
    let of_glibc = (1 << 31) | (1 << 32);
    let [blocked, ignored] = sets[..] else { unreachable!("{stdout}") };
    assert_eq!((blocked, ignored & !of_glibc), (0, 0), "{stdout}");
}

fn many_descriptors() {
    let sockets: Vec<_> = (0..600).map(|_| socket()).collect();
    let inodes: Vec<u64> = sockets.iter().map(|(_, inode)| *inode).collect();
    let mut launch = shell(
        "echo $V0 $V300 $V599; n=3; while [ $n -lt 603 ]; do readlink /proc/self/fd/$n; n=$((n+1)); done",
    );
    launch.descriptors = sockets
        .into_iter()
        .enumerate()
        .map(|(n, (fd, _))| (if n == 300 { String::new() } else { format!("V{n}") }, fd.into()))
        .collect();
    let (stdout, stderr, exit) = finish(launch.start().expect("start"));
    assert!(exit.success(), "{stderr}");
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("3 602"));
    assert!(lines.eq(inodes.iter().map(|inode| format!("socket:[{inode}]"))), "{stdout}");
}

fn no_descriptors() {
    let (stdout, _, exit) = finish(shell("echo hello").start().expect("start"));
    assert_eq!((stdout.as_str(), exit), ("hello\n", Exit::Code(0)));
}

fn not_found() {
    let mut launch = Launch::new("bindonce-no-such-program");
    launch.stdout = Stdio::piped();
    launch.stderr = Stdio::piped();
    launch.descriptors = vec![("A".to_owned(), socket().0.into())];
    let (_, stderr, exit) = finish(launch.start().expect("start"));
    assert_eq!(exit, Exit::Code(127));
    assert!(stderr.contains("cannot execute bindonce-no-such-program: ENOENT"), "{stderr}");
}

fn dead_shim() {
    let mut launch = shell("true");
    launch.env = vec![("TEST_SHIM_DIES".into(), "1".into())];
    launch.descriptors = (0..1000).map(|n| (format!("V{n}"), socket().0.into())).collect();
    let (_, _, exit) = finish(launch.start().expect("start"));
    assert_eq!(exit, Exit::Code(9));
}

fn child(mode: &str) -> (String, String) {
    let output = Command::new("/proc/self/exe").args(["child", mode]).output().expect("child");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    (stdout, stderr)
}

fn exec_overlaps() {
    let (stdout, _) = child("exec");
    let mut lines = stdout.lines();
    let wanted: Vec<&str> = lines.next().expect("links").split(' ').collect();
    let found: Vec<&str> = lines.by_ref().take(5).collect();
    assert_eq!(found, wanted);
    assert_eq!(lines.collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
}

fn exec_fails() {
    child("exec-fails");
}

fn exec_crowded() {
    let (stdout, _) = child("exec-crowded");
    let (wanted, found) = stdout.split_once('\n').expect("lines");
    assert!(found.lines().eq(wanted.split(' ')), "{stdout}");
}

fn exec_too_many() {
    let (stdout, stderr) = child("exec-too-many");
    assert_eq!(stdout.lines().count(), 2, "{stdout}{stderr}");
    for (line, needed) in stdout.lines().zip([41, 58]) {
        let limit = format!("{needed} descriptors are needed, and RLIMIT_NOFILE allows 40");
        assert!(line.contains(&limit), "{line}");
        assert!(line.contains("raise the hard limit"), "{line}");
    }
}

fn pidfd() {
    let mut launch = Launch::new("sleep");
    launch.args = vec!["60".into()];
    let started = launch.start().expect("start");
    assert_eq!(started.pidfd.try_wait().expect("wait"), None);
    let born = bindonce_sys::process::start_time(started.pid).expect("running");
    assert!(born > 0);
    started.pidfd.send(Signal::SIGKILL).expect("send");
    assert_eq!(wait(&started.pidfd), Exit::Signal(9));
    assert_eq!(Exit::Signal(9).to_string(), "SIGKILL");
    assert!(started.pidfd.send(Signal::SIGTERM).is_err());
    assert!(started.pidfd.as_fd().try_clone_to_owned().is_ok());
}
