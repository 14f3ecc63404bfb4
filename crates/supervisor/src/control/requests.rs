//! The clients that wait for an answer: to a reload, or until a generation is gone.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{Caller, GenerationId};
use bindonce_wire::RpcError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::control::Answer;
use crate::control::draining::Draining;
use crate::kind::Haproxy;
use crate::message::Message;
use crate::replies::{self, Retired};

/// How long the answer to a reload waits for each of these: the broker's confirmation, the closing
/// of listeners that left, the pid file, and the addresses without an observed call.
const CONFIRMED: Duration = Duration::from_secs(1);

/// The hint for a generation that does not listen on all claimed listeners.
pub(crate) const READS_OTHERWISE: &str = "haproxy reads this configuration in another way than bindonce: \
    `bindonce render` shows what was claimed; a condition or a variable of a bind line is the likeliest \
    cause, please report it";

/// Requests to this supervisor that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    reloads: HashMap<Caller, Client>,
    last: u64,
    /// Clients that wait until a generation is gone.
    pub(crate) retirements: Vec<Retirement>,
    /// Number of connections cut since the last reload began.
    pub(crate) cut: u64,
    /// Number of reloads that have ended and whose clients are being answered.
    answering: usize,
    /// The drains that clients of finished reloads wait for.
    draining: Vec<Rc<Draining>>,
    pub(crate) awaited: Awaited,
}

/// Conditions that the answer to the reload in progress waits for.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    /// Ends when the broker knows which generation serves.
    pub(crate) confirmed: Option<oneshot::Receiver<()>>,
    /// The serving generation's late answer about its listeners, where it was asked only after the
    /// handover, or after a failed one.
    pub(crate) late: Option<oneshot::Receiver<Option<RpcError>>>,
    /// Addresses that the serving generation listens on without an observed call, once the search
    /// is done.
    pub(crate) unseen: Option<oneshot::Receiver<BTreeSet<String>>>,
    /// Ends when the pid file has our pid: the client that asked for the reload may read it at
    /// once.
    pub(crate) pid_file: Option<JoinHandle<bool>>,
    /// The error if listener options could not be changed.
    pub(crate) changed: Option<oneshot::Receiver<Option<RpcError>>>,
    /// Ends when listeners that the configuration no longer names are closed. Until then clients of
    /// these addresses wait in queues from which no process accepts; afterwards a wildcard may
    /// serve them.
    pub(crate) released: Option<oneshot::Receiver<()>>,
}

/// A client that waits for a reload.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) reply: oneshot::Sender<Answer>,
    pub(crate) options: Options,
}

/// A client's options, for its own reload alone.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Serve this command line from now on.
    pub(crate) command: Option<Haproxy>,
    /// The configuration may have no listeners.
    pub(crate) allow_empty: bool,
    /// Waits until the older generations are gone too, for this long at most.
    pub(crate) drained: Option<Duration>,
    /// Close connections of older generations that are idle for this long.
    pub(crate) drain_idle: Option<Duration>,
    /// End older generations after this long.
    pub(crate) drain_timeout: Option<Duration>,
    /// End older generations as soon as the new one serves.
    pub(crate) at_once: bool,
}

/// A client that waits until a generation is gone, and the generation's data when it asked.
#[derive(Debug)]
pub(crate) struct Retirement {
    pub(crate) id: GenerationId,
    pub(crate) pid: Option<i32>,
    pub(crate) connections: Option<u64>,
    pub(crate) reply: oneshot::Sender<Answer>,
}

impl Requests {
    /// Registers a reload; without a client there is no answer.
    pub(crate) fn reload(&mut self, client: Option<Client>) -> Caller {
        self.last += 1;
        let caller = Caller(self.last);
        self.reloads.extend(client.map(|client| (caller, client)));
        caller
    }

    fn options(&self, callers: &[Caller]) -> impl Iterator<Item = &Options> {
        callers.iter().filter_map(move |id| Some(&self.reloads.get(id)?.options))
    }

    /// The command line that these clients want to be served. It is one: see
    /// [`Requests::is_apart`].
    pub(crate) fn command(&self, callers: &[Caller]) -> Option<Haproxy> {
        self.options(callers).find_map(|options| options.command.clone())
    }

    /// Whether a client has another command line than the one that waits for the next reload: only
    /// one of the two would be served. `running` are the callers of the reload in progress.
    pub(crate) fn is_apart(&self, client: &Client, running: &[Caller]) -> bool {
        let Some(command) = &client.options.command else { return false };
        let waiting = self.reloads.iter().filter(|(id, _)| !running.contains(id));
        let newest = waiting
            .filter_map(|(id, client)| Some((id, client.options.command.as_ref()?)))
            .max_by_key(|(id, _)| **id);
        newest.is_some_and(|(_, newest)| match (&newest.caller, &command.caller) {
            (Some(newest), Some(caller)) => !newest.is_as(caller),
            (newest, caller) => newest != caller,
        })
    }

    /// Whether one of these clients allows a configuration without listeners.
    pub(crate) fn allow_empty(&self, callers: &[Caller]) -> bool {
        self.options(callers).any(|options| options.allow_empty)
    }

    /// Whether one of these clients wants older generations to end at once.
    pub(crate) fn at_once(&self, callers: &[Caller]) -> bool {
        self.options(callers).any(|options| options.at_once)
    }

    /// The shortest idle time after which these clients want connections of older generations
    /// closed.
    pub(crate) fn drain_idle(&self, callers: &[Caller]) -> Option<Duration> {
        self.options(callers).filter_map(|options| options.drain_idle).min()
    }

    /// The shortest drain time that these clients allow older generations.
    pub(crate) fn drain_timeout(&self, callers: &[Caller]) -> Option<Duration> {
        self.options(callers).filter_map(|options| options.drain_timeout).min()
    }

    /// Answers the clients of the reload that has just ended. `older` are the generations that it
    /// leaves draining.
    pub(crate) fn answer(
        &mut self,
        cx: &Context,
        callers: &[Caller],
        answer: Answer,
        older: BTreeSet<GenerationId>,
    ) {
        let waiting: Vec<_> = callers.iter().filter_map(|id| self.reloads.remove(id)).collect();
        let awaited =
            answer.is_ok() && waiting.iter().any(|client| client.options.drained.is_some());
        let draining = awaited.then(|| Draining::new(older, self.cut));
        self.draining.extend(draining.clone());
        let Awaited { confirmed, late, unseen, pid_file, changed, released } =
            std::mem::take(&mut self.awaited);
        let cx = cx.clone();
        self.answering += 1;
        crate::tasks::spawn(async move {
            // Waits, if the broker answers, so that its list agrees with the answer.
            for told in confirmed.into_iter().chain(released) {
                let _ = bindonce_sys::patience::timeout(CONFIRMED, told).await;
            }
            if let Some(written) = pid_file {
                // A failed write is retried and logged.
                let _ = bindonce_sys::patience::timeout(CONFIRMED, written).await;
            }
            let mut failed = Vec::new();
            for late in late.into_iter().chain(changed) {
                failed.push(late.await.ok().flatten());
            }
            let mut answer = with_late(answer, failed);
            if let (Ok(answer), Some(unseen)) = (&mut answer, unseen)
                && let Ok(Ok(unseen)) = bindonce_sys::patience::timeout(CONFIRMED, unseen).await
            {
                answer["unseen"] = unseen.into_iter().collect();
            }
            for Client { mut reply, options } in waiting {
                match (options.drained, draining.clone(), &answer) {
                    (Some(limit), Some(draining), Ok(answer)) => {
                        let answer = answer.clone();
                        crate::tasks::spawn(async move {
                            tokio::select! {
                                answer = draining.answer(answer, limit) => drop(reply.send(answer)),
                                () = reply.closed() => {}
                            }
                        });
                    }
                    // The client may have gone away.
                    _ => drop(reply.send(answer.clone())),
                }
            }
            // After the tasks that write the replies.
            tokio::task::yield_now().await;
            cx.send(Message::Answered);
        });
    }

    /// The clients of a reload are answered, except those that wait for its drain.
    pub(crate) fn answered(&mut self) {
        self.answering = self.answering.saturating_sub(1);
    }

    /// Whether a client waits for a generation to be gone, or for the answer to a reload that has
    /// ended.
    pub(crate) fn some_wait(&self) -> bool {
        self.answering > 0 || !self.retirements.is_empty()
    }

    /// Counts closed idle connections of a generation.
    pub(crate) fn idle_closed(&self, id: GenerationId, count: u64) {
        self.draining.iter().for_each(|draining| draining.idle_closed(id, count));
    }

    /// Counts connections that end with a generation.
    pub(crate) fn cut(&mut self, id: GenerationId, count: u64) {
        self.cut += count;
        self.draining.iter().for_each(|draining| draining.cut(id, count));
    }

    /// A generation is gone: answers the clients that wait for it.
    pub(crate) fn gone(&mut self, id: GenerationId) {
        self.draining.retain(Draining::is_awaited);
        self.draining.iter().for_each(|draining| draining.gone(id));
        let of_it = self.retirements.extract_if(.., |retirement| retirement.id == id);
        for Retirement { pid, connections, reply, .. } in of_it {
            // The client may have gone away.
            let _ = reply.send(replies::result(&Retired { generation: id.0, pid, connections }));
        }
    }
}

/// Adds all late errors, known only once the new generation served, to the answer to a reload.
fn with_late(answer: Answer, late: impl IntoIterator<Item = Option<RpcError>>) -> Answer {
    late.into_iter().flatten().fold(answer, |answer, late| match answer {
        Ok(_) => Err(late),
        Err(mut failed) => {
            failed.message = format!("{}\n{}", failed.message, late.message);
            Err(failed)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use bindonce_haproxy::config::Command;
    use bindonce_wire::ErrorCode;

    use super::*;
    use crate::origin::Origin;

    /// A client with this command line.
    fn client(at_once: bool, command: Option<&str>) -> Client {
        let (reply, _) = oneshot::channel();
        let command = command.map(|word| {
            let command = vec![OsString::from(word).into()];
            let caller = Some(Box::new(Origin { command, ..Origin::default() }));
            Haproxy { command: Command::default(), admin: true, caller }
        });
        Client { reply, options: Options { at_once, command, ..Options::default() } }
    }

    #[test]
    fn options_hold_for_the_reload_of_their_client_alone() {
        let mut requests = Requests::default();
        let plain = requests.reload(Some(client(false, None)));
        let at_once = requests.reload(Some(client(true, None)));
        let of_a_signal = requests.reload(None);
        assert!(!requests.at_once(&[plain, of_a_signal]));
        assert!(requests.at_once(&[plain, at_once]));
    }

    #[test]
    fn two_command_lines_share_no_reload() {
        let mut requests = Requests::default();
        let apart = |requests: &Requests, command: Option<&str>, running: &[Caller]| {
            requests.is_apart(&client(false, command), running)
        };
        let a = requests.reload(Some(client(false, Some("a"))));
        assert!(!apart(&requests, Some("b"), &[a]), "that one has begun");
        assert!(!apart(&requests, Some("a"), &[]));
        assert!(!apart(&requests, None, &[]));
        assert!(apart(&requests, Some("b"), &[]));
        let b = requests.reload(Some(client(false, Some("b"))));
        assert!(!apart(&requests, Some("b"), &[]));
        assert!(apart(&requests, Some("a"), &[]));
        let of = |callers: &[Caller]| requests.command(callers).and_then(|it| it.caller);
        assert!(of(&[a]).is_some() && of(&[a]) != of(&[b]));
    }

    #[test]
    fn all_that_has_failed_is_told() {
        let error = |text: &str| RpcError::new(ErrorCode::RELOAD_FAILED, text);
        let told = |answer: Answer, late: [Option<&str>; 2]| {
            with_late(answer, late.map(|late| late.map(error))).map_err(|error| error.message)
        };
        let serves = || Ok(serde_json::Value::Null);
        assert_eq!(told(serves(), [None, None]), serves().map_err(|_: RpcError| String::new()));
        assert_eq!(told(serves(), [Some("a"), None]), Err("a".to_owned()));
        assert_eq!(told(serves(), [Some("a"), Some("b")]), Err("a\nb".to_owned()));
        assert_eq!(told(Err(error("x")), [None, Some("b")]), Err("x\nb".to_owned()));
    }
}
