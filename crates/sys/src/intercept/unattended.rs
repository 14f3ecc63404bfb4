//! The calls of a program whose supervisor is gone: the watchdog answers them until the next
//! supervisor takes over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::seccomp_data;

use super::ledger::{Ledger, Received};
use crate::calls::{Calls, Waiting};
use crate::filter::{self, Number};

/// How the watchdog answers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unattended {
    /// bind(2) fails (EADDRNOTAVAIL), as without a broker; listen(2) and unlink(2) go on.
    Fail,
    /// The kernel executes the calls; the readiness signal succeeds.
    GoOn,
}

/// The descriptor on which the kernel reports the calls of a program, and the ledger of those
/// received and not answered. While the descriptor is open an unanswered call waits; when the last
/// copy closes all calls fail with ENOSYS.
#[derive(Debug)]
pub struct Left {
    calls: Calls,
    ledger: Ledger,
}

impl Left {
    /// Takes duplicates of the descriptors from `Intercept::copies`.
    ///
    /// # Errors
    /// `EOVERFLOW` if the kernel's structures are larger than the ones known here.
    pub fn new([listener, ledger]: [OwnedFd; 2]) -> io::Result<Self> {
        Ok(Self { calls: Calls::new(listener)?, ledger: Ledger::from(ledger) })
    }

    /// Answers every waiting call, including those that a killed supervisor had received.
    ///
    /// # Errors
    /// Errors from ioctl(2) SECCOMP_IOCTL_NOTIF_RECV: no call can be answered any more.
    pub fn answer(&self, how: Unattended) -> io::Result<()> {
        let written = self.ledger.read();
        let mut last = written.last;
        for id in written.unknown(&self.calls) {
            last = Some(id);
            // A failure means that its process has ended.
            let _ = self.calls.fail(id, Errno::EADDRNOTAVAIL);
        }
        self.answer_received(how);
        while self.calls.waiting()? == Waiting::Yes {
            match self.calls.receive() {
                Ok(call) => {
                    last = Some(call.id);
                    self.one(how, call.id, &call.data);
                }
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if let Some(last) = last {
            self.ledger.write(last, [].iter());
        }
        Ok(())
    }

    /// Answers the calls that a supervisor has received and written down, and no others: it may
    /// live, and must stay the only one that receives and writes.
    pub fn answer_received(&self, how: Unattended) {
        for (id, _, arch, nr, args) in self.ledger.read().open {
            self.one(how, id, &seccomp_data { nr, arch, instruction_pointer: 0, args });
        }
    }

    fn one(&self, how: Unattended, id: u64, call: &seccomp_data) {
        // A failure means that its process has ended.
        let _ = match (how, filter::number(call)) {
            (_, Number::Kill) => self.calls.done(id),
            (Unattended::Fail, Number::Bind | Number::BindInMemory) => {
                self.calls.fail(id, Errno::EADDRNOTAVAIL)
            }
            _ => self.calls.go_on(id),
        };
    }

    /// Both descriptors, for the next supervisor.
    pub fn copies(&self) -> [BorrowedFd<'_>; 2] {
        [self.calls.as_fd(), self.ledger.as_fd()]
    }
}

/// The calls for the next supervisor: those received before it that still wait. Calls that only the
/// kernel knows fail.
pub(super) fn go_on_with(calls: &Calls, ledger: &Ledger) -> Vec<Received> {
    let written = ledger.read();
    for id in written.unknown(calls) {
        // A failure means that its process has ended.
        let _ = calls.fail(id, Errno::EADDRNOTAVAIL);
    }
    written.open.into_iter().filter(|(id, ..)| calls.waits(*id)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::sync::mpsc;

    use nix::libc::seccomp_notif;
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
    };

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::filter::Watched;

    /// Each call is received by a supervisor that is then killed: after it answered the call, after
    /// it wrote it down, or before either.
    #[test]
    fn what_a_supervisor_leaves_is_answered() {
        let (listener, given) = mpsc::channel();
        let (told, results) = mpsc::channel();
        let (go, goes) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let watched = Watched { readiness: None, binds: true, listens: true, unlinks: false };
            listener.send(filter::install(watched, true)).expect("send");
            let say = |result| told.send(result).expect("send");
            while let Ok(()) = goes.recv() {
                let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None);
                let socket = socket.expect("socket");
                say(bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)));
                if goes.recv().is_ok() {
                    say(listen(&socket, Backlog::new(1).expect("number")));
                }
            }
        });
        let installed = given.recv().expect("a thread");
        let Ok(listener) = installed else { return crate::testing::skip("a filter is refused") };
        let calls = Calls::new(listener).expect("calls");
        let ledger = Ledger::new().expect("memory");
        let copies = [calls.as_fd(), ledger.as_fd()];
        let left = Left::new(copies.map(|fd| fd.try_clone_to_owned().expect("a copy")));
        let left = left.expect("the same");
        let wait = || {
            go.send(()).expect("it goes on");
            let mut polled = [PollFd::new(&calls, PollFlags::IN)];
            poll(&mut polled, None).expect("a call");
        };
        let next = || {
            wait();
            calls.receive().expect("a call")
        };
        let result = || results.recv().expect("a result");
        let unavailable = Err(Errno::EADDRNOTAVAIL);

        let first = next();
        ledger.write(first.id, [].iter());
        calls.done(first.id).expect("answered");
        assert_eq!(result(), Ok(()));
        // Received, and known only to the kernel.
        next();
        left.answer(Unattended::GoOn).expect("answered");
        assert_eq!(result(), unavailable);

        let bind = next();
        let received = |call: &seccomp_notif| {
            let seccomp_data { nr, arch, args, .. } = call.data;
            (call.id, call.pid.cast_signed(), arch, nr, args)
        };
        ledger.write(bind.id, [received(&bind)].iter());
        assert_eq!(go_on_with(&calls, &ledger), [received(&bind)]);
        left.answer(Unattended::Fail).expect("answered");
        assert_eq!(result(), unavailable);
        assert_eq!(go_on_with(&calls, &ledger), []);
        let answer = |how| {
            wait();
            left.answer(how).expect("answered");
        };
        // Not yet received: listen(2) goes on, and bind(2) only if allowed.
        answer(Unattended::Fail);
        assert_eq!(result(), Ok(()));
        answer(Unattended::Fail);
        assert_eq!(result(), unavailable);
        answer(Unattended::Fail);
        assert_eq!(result(), Ok(()));
        answer(Unattended::GoOn);
        assert_eq!(result(), Ok(()));
        answer(Unattended::GoOn);
        assert_eq!(result(), Ok(()));
        drop(go);
        thread.join().expect("join");
    }
}
