//! Finds which process has an address that could not be bound, and which processes share a
//! listener. The answer goes into the hint of an error or a line of the log, so this is best
//! effort, and "no known process" is an answer.
//!
//! The answer is in /proc, in the descriptors of every process on the host. So only one thread
//! looks at a time, for a tenth of the time at most, however often clients ask. Its findings serve
//! every request for a while ([`FRESH`]), and a request waits for [`PATIENCE`] at most.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_core::listener::{Key, Listener, Options};
use bindonce_core::text::printable;
use bindonce_sys::{diag, holders, limits, listen, process, worker};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

/// How long a request waits for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long an answer stays valid.
const FRESH: Duration = Duration::from_secs(2);

/// After each look no other starts for this many times its duration.
const REST: u32 = 9;

/// Number of answers that are remembered.
const REMEMBERED: usize = 64;

/// Number of processes that an answer names.
const NAMED: usize = 5;

/// A question to /proc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// The processes that have a socket in the way of this listener.
    InTheWay(Arc<Listener>),
    /// Other processes that have one of these sockets, by inode.
    Sharing(Vec<u64>),
}

/// Where all requests ask.
#[derive(Debug, Default)]
pub(crate) struct Inquiry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    /// Notified when a look ends.
    looked: Notify,
}

#[derive(Debug, Default)]
struct Known {
    answers: Vec<(Question, Instant, Option<String>)>,
    looking: bool,
    /// No look starts before this.
    rest: Option<Instant>,
}

impl Inquiry {
    /// Asks for the processes, as `pid 12 (nginx), pid 13 (nginx)`. None if none is found, or not
    /// in time.
    pub(crate) async fn ask(&self, question: Question) -> Option<String> {
        let answered = async {
            loop {
                // Registers first, so that the end of no look is missed.
                let looked = self.0.looked.notified();
                match self.0.step(&question) {
                    Step::Known(answer) => return answer,
                    Step::Rest(until) => sleep_until(until.into()).await,
                    Step::Wait => looked.await,
                    Step::Nobody => return None,
                }
            }
        };
        timeout(PATIENCE, answered).await.ok().flatten()
    }
}

/// The next step of a waiting request.
enum Step {
    Known(Option<String>),
    /// Ask again at this time.
    Rest(Instant),
    /// Ask again when the current look has ended.
    Wait,
    /// No thread can be started to look.
    Nobody,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(self: &Arc<Self>, question: &Question) -> Step {
        let mut known = self.known();
        let now = Instant::now();
        known.answers.retain(|(_, since, _)| now.duration_since(*since) < FRESH);
        if let Some((_, _, answer)) = known.answers.iter().find(|(asked, ..)| asked == question) {
            return Step::Known(answer.clone());
        }
        if known.looking {
            return Step::Wait;
        }
        if let Some(rest) = known.rest.filter(|rest| *rest > now) {
            return Step::Rest(rest);
        }
        let (shared, question) = (Arc::clone(self), question.clone());
        let started = worker::start("inquiry", move || {
            let _looking = Looking(&shared);
            limits::give_way();
            let begun = Instant::now();
            let answer = look(&question);
            let mut known = shared.known();
            if known.answers.len() == REMEMBERED {
                known.answers.remove(0);
            }
            let now = Instant::now();
            known.answers.push((question, now, answer));
            known.rest = Some(now + now.duration_since(begun) * REST);
        });
        known.looking = started.is_ok();
        if known.looking { Step::Wait } else { Step::Nobody }
    }
}

/// Marks a look as in progress, until this is dropped.
struct Looking<'a>(&'a Shared);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.known().looking = false;
        self.0.looked.notify_waiters();
    }
}

fn look(question: &Question) -> Option<String> {
    let inodes = match question {
        Question::InTheWay(listener) => in_the_way(listener)?,
        Question::Sharing(inodes) => inodes.clone(),
    };
    let mut pids: Vec<i32> = holders::of(&inodes).iter().map(|holder| holder.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    if matches!(question, Question::Sharing(_)) {
        let own = std::process::id().cast_signed();
        pids.retain(|pid| *pid != own);
    }
    let mut named: Vec<String> = pids.iter().take(NAMED).map(named).collect();
    if pids.len() > NAMED {
        named.push(format!("{} more", pids.len() - NAMED));
    }
    (!named.is_empty()).then(|| named.join(", "))
}

/// The inodes of the sockets in the way of a listener.
fn in_the_way(listener: &Listener) -> Option<Vec<u64>> {
    if let Address::Unix(path) = &listener.address {
        // The socket that a client reaches at this path, under whatever name it was bound; not a
        // replaced socket of the same name.
        return Some(diag::unix_at(Path::new(path)).ok()?.into_iter().collect());
    }
    let sockets = match &listener.options.netns {
        Some(netns) => listen::within_netns(netns, diag::listening).ok()?,
        None => diag::listening(),
    };
    let key = listener.key();
    let mut inodes = Vec::new();
    for socket in sockets.ok()? {
        let netns = listener.options.netns.clone();
        if overlaps(&key, socket.address, socket.interface, socket.v6only, netns) {
            inodes.push(socket.inode);
        }
    }
    Some(inodes)
}

/// A process, as `pid 12 (nginx)`.
pub(crate) fn named(pid: &i32) -> String {
    match process::command(*pid).unwrap_or_default().first() {
        Some(command) => format!("pid {pid} ({})", printable(command)),
        None => format!("pid {pid}"),
    }
}

fn overlaps(
    key: &Key,
    address: Address,
    interface: Option<String>,
    v6only: Option<bool>,
    netns: Option<String>,
) -> bool {
    let v6only = v6only.unwrap_or(false);
    let options = Options { v6only, interface, netns, ..Options::default() };
    key.overlaps(&Listener { name: None, address, options }.key())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn one_looks_for_all_who_ask_and_then_rests() {
        run(async {
            let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
            let listener = socket.local_addr().expect("its address").to_string();
            let listener: Listener = listener.parse().expect("a listener");
            let question = Question::InTheWay(Arc::new(listener));
            let inquiry = Inquiry::default();
            // A look is in progress, and many requests wait for it.
            inquiry.0.known().looking = true;
            for _ in 0..100 {
                assert!(matches!(inquiry.0.step(&question), Step::Wait));
            }
            inquiry.0.known().looking = false;
            let own = format!("pid {}", std::process::id());
            let mut holders = None;
            // On a busy machine the look may take longer than a request waits.
            while holders.is_none() {
                holders = inquiry.ask(question.clone()).await;
            }
            assert!(holders.expect("it is ours").contains(&own));
            assert!(matches!(inquiry.0.step(&question), Step::Known(Some(_))));
            // Another question waits until the pause after the look is over.
            inquiry.0.known().rest = Some(Instant::now() + PATIENCE * 4);
            let other = Question::Sharing(vec![1]);
            assert!(matches!(inquiry.0.step(&other), Step::Rest(_)));
            assert_eq!(inquiry.ask(other).await, None);
        });
    }

    #[test]
    fn only_so_many_answers_are_remembered() {
        let shared = Arc::new(Shared::default());
        let now = Instant::now();
        for inode in 0..REMEMBERED as u64 {
            shared.known().answers.push((Question::Sharing(vec![inode]), now, None));
        }
        let one_more = Question::Sharing(vec![u64::MAX]);
        while !matches!(shared.step(&one_more), Step::Known(_)) {
            std::thread::yield_now();
        }
        assert!(shared.known().answers.len() <= REMEMBERED);
    }
}
