//! Ghosts made by a real process, found and deleted from outside.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bindonce_sys::executable;
use bindonce_sys::spawn::{Launch, Started};
use bindonce_sys::{Errno, epoll, ghosts, holders, process};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Test;
use crate::programs::wait;

pub(crate) const TESTS: &[Test] = &[
    ("a ghost is found and deleted, and the process is woken no more", by_number),
    ("a ghost in a thread's own table is found and deleted", in_a_thread),
    (
        "a listener in a table of two threads is found and taken, whatever has its number elsewhere",
        apart,
    ),
    ("a listener that is open is no ghost", open),
    ("a process that is gone has none", gone),
    ("the ghosts of a haproxy that drains are found and deleted", of_haproxy),
];

struct Haunted {
    listener: OwnedFd,
    inode: u64,
    at: SocketAddr,
    started: Started,
}

impl Haunted {
    fn new(kind: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = listener.local_addr().expect("address");
        let listener = OwnedFd::from(listener);
        let inode = rustix::fs::fstat(&listener).expect("fstat").st_ino;
        let mut launch = Launch::new(std::env::current_exe().expect("path"));
        launch.args = vec!["child".into(), "ghost".into(), kind.into()];
        launch.stdout = Stdio::piped();
        launch.descriptors = vec![("L".to_owned(), listener.try_clone().expect("dup").into())];
        let mut started = launch.start().expect("start");
        let pipe = std::fs::File::from(started.stdout.take().expect("piped"));
        let mut line = String::new();
        BufReader::new(pipe).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n");
        Self { listener, inode, at, started }
    }

    fn find(&self) -> Vec<ghosts::Ghost> {
        ghosts::find(self.started.pid, &[self.inode])
    }

    fn detach(&self, found: &[ghosts::Ghost]) -> Result<usize, bindonce_sys::Error> {
        ghosts::detach(&self.started.pidfd, found, &[(self.inode, self.listener.as_fd())])
    }
}

impl Drop for Haunted {
    fn drop(&mut self) {
        self.started.pidfd.send(Signal::SIGKILL).expect("kill");
        wait(&self.started.pidfd);
    }
}

fn is_ready(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).expect("poll") == 1
}

fn by_number() {
    let haunted = Haunted::new("number");
    let found = haunted.find();
    let [ghost] = found[..] else { unreachable!("{found:?}") };
    assert_eq!((ghost.number, ghost.inode, ghost.tid), (40, haunted.inode, haunted.started.pid));
    assert!(ghosts::find(haunted.started.pid, &[haunted.inode + 1]).is_empty());

    let epoll = haunted.started.pidfd.take(ghost.epoll).expect("epoll");
    let client = TcpStream::connect(haunted.at).expect("connect");
    assert!(is_ready(&epoll), "a ghost is woken for a connection that waits");
    let before = crate::open_descriptors();
    assert_eq!(haunted.detach(&found).expect("detach"), 1);
    assert!(!is_ready(&epoll));
    assert_eq!(haunted.find(), []);
    assert_eq!(haunted.detach(&found).expect("again"), 0);
    // The caller's own table was not touched, and neither was the child's.
    assert_eq!(crate::open_descriptors(), before);
    assert!(!holders::of_process(haunted.started.pid, &[haunted.inode]).is_empty());
    drop(client);
}

fn apart() {
    let haunted = Haunted::new("apart");
    let pid = haunted.started.pid;
    assert_eq!(process::threads_with_own_descriptors(pid).len(), 1);
    let found = holders::of_process(pid, &[haunted.inode]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|holder| holder.tid != pid), "{found:?}");
    assert_eq!(epoll::waited_for(pid, &[haunted.inode]), Some([haunted.inode].into()));
    assert_eq!(haunted.find(), []);
    for holder in found {
        // In the main thread's table the number is another file.
        assert!(holders::Holder { tid: pid, ..holder }.take().is_err());
        match holder.take() {
            Ok(taken) => {
                assert_eq!(rustix::fs::fstat(&taken).expect("fstat").st_ino, haunted.inode);
            }
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                crate::skip::skip(&format!("thread tables: PIDFD_THREAD needs Linux 6.9: {error}"));
            }
            Err(error) => unreachable!("{error}"),
        }
    }
}

fn in_a_thread() {
    let haunted = Haunted::new("thread");
    let found = haunted.find();
    let [ghost] = found[..] else { unreachable!("{found:?}") };
    assert_eq!(ghost.number, 60);
    assert_ne!(ghost.tid, haunted.started.pid);
    match haunted.detach(&found) {
        Ok(deleted) => {
            assert_eq!(deleted, 1);
            assert_eq!(haunted.find(), []);
        }
        Err(error) if error.errno() == Some(Errno::EINVAL as i32) => {
            crate::skip::skip(&format!("thread tables: PIDFD_THREAD needs Linux 6.9: {error}"));
        }
        Err(error) => unreachable!("{error}"),
    }
}

fn open() {
    assert_eq!(Haunted::new("open").find(), []);
}

fn gone() {
    let haunted = Haunted::new("number");
    let found = haunted.find();
    haunted.started.pidfd.send(Signal::SIGSTOP).expect("stop");
    assert_eq!(haunted.find(), found, "a stopped process is read all the same");
    assert_eq!(ghosts::find(i32::MAX, &[haunted.inode]), []);
}

const DEADLINE: Duration = Duration::from_secs(10);

/// A haproxy that relays a connection when it is told to stop, and so lives on.
fn of_haproxy() {
    if executable::find("haproxy".as_ref()).is_err() {
        crate::skip::skip("haproxy is not installed");
        return;
    }
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let file = std::env::temp_dir().join(format!("bindonce-ghosts-{}.cfg", std::process::id()));
    let text = format!(
        "global\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 9s\n  timeout client 9s\n  \
         timeout server 9s\nlisten relay\n  bind \"fd@${{L}}\"\n  server s {}\n",
        server.local_addr().expect("address")
    );
    std::fs::write(&file, text).expect("write");

    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("address");
    let listener = OwnedFd::from(listener);
    let inode = rustix::fs::fstat(&listener).expect("fstat").st_ino;
    let mut launch = Launch::new("haproxy");
    launch.args = vec!["-db".into(), "-f".into(), file.clone().into()];
    launch.descriptors = vec![("L".to_owned(), listener.try_clone().expect("dup").into())];
    let started = launch.start().expect("start");
    let client = TcpStream::connect(at).expect("connect");
    let (relayed, _) = server.accept().expect("haproxy connects");
    std::fs::remove_file(&file).expect("remove");

    started.pidfd.send(Signal::SIGUSR1).expect("stop");
    let begun = Instant::now();
    while !holders::of_process(started.pid, &[inode]).is_empty() {
        assert!(begun.elapsed() < DEADLINE, "haproxy keeps the listener");
        std::thread::yield_now();
    }
    let found = ghosts::find(started.pid, &[inode]);
    let deleted = ghosts::detach(&started.pidfd, &found, &[(inode, listener.as_fd())]);
    println!("haproxy left {} ghosts", found.len());
    assert_eq!(deleted.expect("detach"), found.len());
    assert_eq!(ghosts::find(started.pid, &[inode]), []);
    // The connection that it still serves is not affected.
    assert_eq!(started.pidfd.try_wait().expect("wait"), None);
    drop((client, relayed));
    assert!(wait(&started.pidfd).success());
}
