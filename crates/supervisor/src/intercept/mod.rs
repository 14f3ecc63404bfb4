//! bind(2) and listen(2) of a program that takes no descriptors. Each bind(2) of an intercepted
//! address is a claim of the program's generation, and the program gets the broker's socket in
//! place of its own. An intercepted UNIX path keeps its file when the program removes it
//! (unlink(2)).
//!
//! One task for each generation answers its calls, one at a time: a program that floods the
//! supervisor delays only itself. The task lives as long as any process has the filter, even one
//! that has outlived its generation. A thread looks at each call, since a page of the program's
//! memory can stall; [`bindonce_core::intercept`] decides. [`steps`] is the loop's part, and
//! [`net`] decides about the calls of haproxy.

pub(crate) mod calls_seen;
mod net;
pub(crate) mod requests;
pub(crate) mod resume;
mod steps;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::identity;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::generation::GenerationId;
use bindonce_core::intercept::{Decision, Failure, Own, Ports, Scope, Target};
use bindonce_sys::hold::Hold;
use bindonce_sys::intercept::{self as sys, Call, Intercept, Look, Theirs};
use bindonce_sys::{spawn, worker};
use tokio::sync::{mpsc, oneshot};

use self::calls_seen::CallsSeen;
use self::net::Net;
use self::requests::{Listens, Want};
use crate::context::Context;
use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;
use crate::generations::start::Prepared;
use crate::handover::watchdog::Watchdog;
use crate::message::Message;

/// How long a look at a call may take.
const LOOK: Duration = Duration::from_secs(1);
/// While this many looks are stalled, no other call of this program is looked at.
const STALLED: usize = 3;

/// Answers the calls of a generation that is being started.
pub(crate) fn begin(
    cx: &Context,
    watchdog: Rc<RefCell<Watchdog>>,
    id: GenerationId,
    shim: OwnedFd,
) {
    let cx = cx.clone();
    let is_program = cx.settings.kind.program().is_some();
    crate::tasks::spawn(async move {
        let Some(listener) = spawn::receive_hold(shim).await else {
            if !is_program {
                cx.send(Message::Unseen(id, "seccomp(2) is refused".to_owned()));
            }
            // The shim of a program has reported why, and exits.
            return;
        };
        if !is_program {
            watchdog.borrow().hold(listener.as_fd());
        }
        match Intercept::new(listener, Vec::new()) {
            Ok(calls) => cx.send(Message::Intercepts(id, Arc::new(calls))),
            Err(error) => {
                tracing::error!(generation = id.0, %error, "its calls cannot be answered: bind() fails");
            }
        }
    });
}

/// Answers the calls of a generation from now on, for as long as any process can make one.
pub(crate) fn serve(
    cx: &Context,
    generation: &mut Generation,
    calls: Arc<Intercept>,
    prepared: Option<Rc<Prepared>>,
) {
    generation.own.intercept = Some(Arc::clone(&calls));
    let Some(program) = cx.settings.kind.program() else {
        return serve_haproxy(cx, generation, calls, prepared);
    };
    let Some(scope) = program.intercept.clone() else { return };
    let (id, mut answers) = (generation.id, Answers::new(cx, generation, Rule::Program(scope)));
    let cx = cx.clone();
    crate::tasks::spawn(async move {
        loop {
            match calls.next().await {
                Ok(Some(call)) => answers.answer(call).await,
                Ok(None) => return,
                Err(error) => {
                    let text = "its calls can no longer be answered: bind() fails";
                    tracing::error!(generation = id.0, %error, "{text}");
                    return cx.send(Message::Unanswerable(id));
                }
            }
        }
    });
}

/// Answers the calls of a haproxy generation. A generation that starts is held at its readiness.
fn serve_haproxy(
    cx: &Context,
    generation: &mut Generation,
    calls: Arc<Intercept>,
    prepared: Option<Rc<Prepared>>,
) {
    let (send, mut binds) = mpsc::unbounded_channel();
    // The task below lives as long as this hold.
    let hold = Rc::new(Hold::new(calls, move |call| drop(send.send(call))));
    let over = Rc::clone(&generation.own.over);
    if generation.readiness.ready {
        over.set(true);
        hold.release();
    } else {
        generation.own.seen = Some(BTreeMap::new());
        let (cx, id) = (cx.clone(), generation.id);
        crate::tasks::spawn(async move {
            match hold.called().await {
                Ok(Some(_)) => cx.send(Message::Held(id, hold)),
                // It has ended before it was ready.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(generation = id.0, %error, "it cannot be held when it is ready");
                }
            }
        });
    }
    let mut answers = Answers::new(cx, generation, Rule::Haproxy(Net(prepared)));
    crate::tasks::spawn(async move {
        while let Some(call) = binds.recv().await {
            if over.get() {
                call.go_on();
            } else {
                answers.answer(call).await;
            }
        }
    });
}

/// The rule that decides about a bind(2).
enum Rule {
    Program(Scope),
    Haproxy(Net),
}

/// The state of the task that answers one generation's calls.
struct Answers {
    cx: Context,
    id: GenerationId,
    rule: Rule,
    ports: Ports,
    /// The listeners that the program was given, by inode. Weak, because the generation owns them:
    /// a listener that it has given back must close.
    given: BTreeMap<u64, Weak<HeldListener>>,
    /// Inodes of given listeners whose call was interrupted before the answer arrived: the same
    /// call comes again (before Linux 5.19).
    interrupted: BTreeSet<u64>,
    /// The sockets of calls that were left to the kernel.
    left: CallsSeen,
    /// Each look that has not ended has a copy.
    looks: Arc<()>,
}

impl Answers {
    fn new(cx: &Context, generation: &Generation, rule: Rule) -> Self {
        let given = generation.listeners.iter();
        let given = given.map(|held| (held.inode, Rc::downgrade(held))).collect();
        let (cx, id, ports) = (cx.clone(), generation.id, sys::ports());
        let left = generation.own.calls.clone().unwrap_or_default();
        Self {
            cx,
            id,
            rule,
            ports,
            given,
            interrupted: BTreeSet::new(),
            left,
            looks: Arc::default(),
        }
    }

    async fn answer(&mut self, call: Call) {
        if Arc::strong_count(&self.looks) > STALLED {
            return match self.rule {
                _ if call.is_unlink() => call.go_on(),
                Rule::Program(_) => call.refuse(Failure::Unavailable),
                Rule::Haproxy(_) => call.go_on(),
            };
        }
        let (look, place) = (call.look(), Arc::clone(&self.looks));
        let look = move || {
            let _place = place;
            look()
        };
        let look = match worker::within(LOOK, look).await.and_then(|look| look) {
            Ok(look) => look,
            Err(error) => return self.unseen(call, &error),
        };
        match look {
            Look { target, .. } if call.is_unlink() => self.unlink(call, target),
            // The kernel finds what is wrong with the call.
            Look { socket: None, .. } => call.go_on(),
            Look { socket: Some(theirs), .. } if call.is_listen() => self.listen(call, &theirs),
            Look { socket: Some(theirs), target: Some(target) } => {
                self.bind(call, theirs, &target).await;
            }
            Look { target: None, .. } => call.go_on(),
        }
    }

    fn listen(&self, call: Call, theirs: &Theirs) {
        if self.given.contains_key(&theirs.inode) {
            let listens = Listens::at(theirs.inode, Some(call));
            self.cx.send(Message::Listening(self.id, listens));
        } else {
            self.left.add(theirs.inode);
            call.go_on();
        }
    }

    /// Keeps the file of the broker's socket: the next generation needs it, and clients do
    /// meanwhile.
    fn unlink(&self, call: Call, target: Option<Target>) {
        match (&self.rule, target) {
            (Rule::Program(scope), Some(target)) if scope.keeps(&target) => {
                let (id, pid) = (self.id.0, call.pid());
                tracing::debug!(generation = id, pid, ?target, "unlink() answered, and not done");
                call.succeed();
            }
            _ => call.go_on(),
        }
    }

    async fn bind(&mut self, call: Call, theirs: Theirs, target: &Target) {
        let (id, pid) = (self.id.0, call.pid());
        if self.given.get(&theirs.inode).and_then(Weak::upgrade).is_some() {
            // The socket is bound already, as the kernel finds too.
            let again = call.comes_again() || self.interrupted.remove(&theirs.inode);
            return if again { call.succeed() } else { call.go_on() };
        }
        let (decision, line) = match &self.rule {
            Rule::Program(scope) => (scope.decide(&self.ports, target, &theirs.socket), None),
            Rule::Haproxy(net) => {
                net.decide(&self.cx, self.id, theirs.inode, &self.ports, target, &theirs.socket)
            }
        };
        let listener = match decision {
            Decision::Continue(why) => {
                tracing::debug!(generation = id, pid, ?target, "bind() left to the kernel: {why}");
                self.left.add(theirs.inode);
                return call.go_on();
            }
            Decision::Refuse(failure, why) => {
                return self.refuse(call, failure, &format!("{target:?}: {why}"));
            }
            Decision::Claim(listener) => listener,
        };
        let text = listener.to_string();
        let (reply, answer) = oneshot::channel();
        self.cx.send(Message::Wants(self.id, Want { listener, line, moved: false, reply }));
        let given = match answer.await {
            Ok(Ok(given)) => given,
            Ok(Err((failure, why))) => {
                return self.refuse(call, failure, &format!("{text}: {why}"));
            }
            // The loop has ended, and the supervisor is about to.
            Err(_) => return call.refuse(Failure::Unavailable),
        };
        let held = given.held;
        self.prepare(pid, &theirs, &held, given.alone);
        // Noted even if the program gets it only after we stop waiting: it listens on the broker's
        // then.
        let is_new = self.given.insert(held.inode, Rc::downgrade(&held)).is_none();
        let given = worker::within(LOOK, call.give(Arc::clone(&held.fd), theirs)).await;
        match given.and_then(identity) {
            Ok(gave) => {
                if gave.is_interrupted {
                    self.interrupted.insert(held.inode);
                }
                // A program may bind one address again and again.
                let said = "bind() answered with the broker's";
                if is_new {
                    tracing::info!(generation = id, pid, "{said} {text}");
                } else {
                    tracing::debug!(generation = id, pid, "{said} {text}");
                }
                for left in gave.left {
                    self.warn(pid, &format!("{text}: {left}"));
                }
                if !held.bound.listens() {
                    let listens = Listens::at(held.inode, None);
                    self.cx.send(Message::Listening(self.id, listens));
                }
            }
            Err(error) => self.warn(pid, &format!("{text} could not be given: {error}")),
        }
    }

    /// Applies what the program has set on its own socket to the broker's socket.
    fn prepare(&self, pid: i32, theirs: &Theirs, held: &HeldListener, alone: bool) {
        let failed = sys::copy_options(theirs.fd.as_fd(), held.fd.as_fd());
        if !failed.is_empty() {
            let options = failed.join(" ");
            self.warn(pid, &format!("{}: {options} not set as the program has them", held.label));
        }
        if alone {
            // Other generations have set it as this program wants it, or this program must set it.
            let blocking = theirs.socket.options.blocking;
            let _ = rustix::io::ioctl_fionbio(&held.fd, !blocking);
        }
    }

    /// Logs a warning, unless it is one of many.
    fn warn(&self, pid: i32, text: &str) {
        let own = nix::unistd::getuid().as_raw();
        if let Some(left_out) = self.cx.reporter.refused(own, "intercepted call that worked") {
            tracing::warn!(generation = self.id.0, pid, left_out, "{text}");
        }
    }

    fn unseen(&self, call: Call, error: &std::io::Error) {
        if call.is_unlink() {
            return call.go_on();
        }
        if let Rule::Haproxy(_) = self.rule {
            tracing::debug!(generation = self.id.0, pid = call.pid(), %error, "a bind() was not seen");
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                let why = format!("its calls cannot be looked at: {error}");
                self.cx.send(Message::Unseen(self.id, why));
            }
            self.cx.send(Message::Binds(self.id, None, Own::Unknown));
            return call.go_on();
        }
        let what = if call.is_listen() { "listen()" } else { "bind()" };
        self.refuse(call, Failure::Denied, &format!("the {what} cannot be looked at: {error}"));
    }

    /// Refuses the call, and logs that unless it is one of many.
    fn refuse(&self, call: Call, failure: Failure, why: &str) {
        let own = nix::unistd::getuid().as_raw();
        if let Some(left_out) = self.cx.reporter.refused(own, "intercepted call") {
            let (id, pid, errno) = (self.id.0, call.pid(), sys::errno_of(failure));
            tracing::error!(generation = id, pid, left_out, "refused ({errno:?}): {why}");
        }
        call.refuse(failure);
    }
}
