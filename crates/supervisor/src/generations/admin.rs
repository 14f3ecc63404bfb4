//! The private admin connection to one generation.
//!
//! It is opened when the generation starts, and kept in interactive mode until no client is
//! connected to the generation any more. A haproxy that was told to stop accepts no new connection
//! on its admin socket, but answers on this one through pause and drain. The connection keeps the
//! process alive, so the supervisor closes it in the end. `bindonce_haproxy::cli` reads the
//! answers.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use bindonce_haproxy::cli::{Info, Level, PROMPT};

/// The command that reports on the process and its connections.
const INFO: &str = "show info";

/// The first commands on a connection of an earlier supervisor, which may have left half a command,
/// an unread answer, or modes that are on. The answer to the last command is found by the answer
/// before it: a level, which no other answer has there.
const AGAIN: &str = "\nset severity-output none\nexpert-mode off\nexperimental-mode off\nshow cli level\nshow info\n";

/// A longer answer is read to its end and given as empty (`show stat` with 30,000 servers).
const LONGEST: usize = 16 << 20;
/// An answer of this length counts as endless.
const ENDLESS: usize = 4 * LONGEST;

/// The admin connection to one generation. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    asks: mpsc::UnboundedSender<Ask>,
    /// Questions wait here for their turn; only one is among the `asks`. So a question whose asker
    /// gives up meanwhile is never sent.
    turn: Arc<Semaphore>,
    task: AbortHandle,
    connection: Rc<RefCell<Option<Connection>>>,
    /// Number of bytes received as answers.
    received: Rc<Cell<u64>>,
}

/// A connection that is shut down on drop, even if another process has a copy of it.
#[derive(Debug)]
struct Connection(OwnedFd);

impl Drop for Connection {
    fn drop(&mut self) {
        // This can only fail if the connection has ended already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

#[derive(Debug)]
struct Ask {
    command: Cow<'static, str>,
    /// Number of answers: one for each line, or one after a payload.
    answers: usize,
    /// Commands sent right before and right after it, each on a line of its own. Their answers do
    /// not matter.
    around: (Vec<String>, Vec<String>),
    /// None for a command whose answer does not matter.
    asker: Option<Asker>,
}

/// Where the answer is waited for, and the turn, which ends with it.
#[derive(Debug)]
struct Asker {
    reply: oneshot::Sender<Answer>,
    _turn: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Answer {
    text: String,
    /// Number of bytes received before this answer.
    before: u64,
}

impl Ask {
    fn new(command: Cow<'static, str>, answers: usize) -> Self {
        Self { command, answers, around: <_>::default(), asker: None }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Not in the time allowed. If it was sent, a later command is answered after it.
    InTime,
    /// The connection has ended.
    Closed,
}

impl Admin {
    /// Connects to the socket at `path` and calls `ready` when haproxy first answers.
    pub(crate) fn connect(path: PathBuf, ready: impl FnOnce(Info) + 'static) -> Self {
        Self::over(UnixStream::connect(path), None, None, ready)
    }

    /// Takes over a connection that an earlier supervisor, or an earlier image of this process, has
    /// opened. `received` is the number of bytes received on it so far.
    pub(crate) fn resume(
        connection: OwnedFd,
        received: u64,
        ready: impl FnOnce(Info) + 'static,
    ) -> Self {
        let copy = connection.try_clone().ok();
        let stream = std::os::unix::net::UnixStream::from(connection);
        let stream = async move {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        Self::over(stream, Some(received), copy, ready)
    }

    fn over(
        stream: impl Future<Output = io::Result<UnixStream>> + 'static,
        earlier: Option<u64>,
        copy: Option<OwnedFd>,
        ready: impl FnOnce(Info) + 'static,
    ) -> Self {
        let (asks, requests) = mpsc::unbounded_channel();
        let connection = Rc::new(RefCell::new(copy.map(Connection)));
        let copy = Rc::clone(&connection);
        let received = Rc::new(Cell::new(earlier.unwrap_or_default()));
        let count = Rc::clone(&received);
        let task = crate::tasks::spawn(async move {
            let talk = async {
                let mut stream = Counted { stream: stream.await?, received: count };
                if earlier.is_none() {
                    copy.replace(Some(Connection(stream.stream.as_fd().try_clone_to_owned()?)));
                }
                let first = format!("prompt\nset timeout cli 86400\n{INFO}");
                ready(Info::read(&match earlier {
                    None => exchange(&mut stream, &first, 3).await?,
                    Some(_) => again(&mut stream).await?,
                }));
                talk(stream, requests).await
            };
            if let Err(error) = talk.await {
                tracing::debug!(%error, "an admin connection ended");
            }
            copy.take();
        });
        let turn = Arc::new(Semaphore::new(1));
        Self { asks, turn, task: task.abort_handle(), connection, received }
    }

    /// A copy of the connection, for the next supervisor or the next image of this process. None
    /// before the connection is open.
    pub(crate) fn connection(&self) -> Option<OwnedFd> {
        self.connection.borrow().as_ref()?.0.try_clone().ok()
    }

    /// Number of bytes received as answers.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Sends a command, or one in each line, and gives the answer, which may take `limit`.
    pub(crate) async fn ask(
        &self,
        command: impl Into<Cow<'static, str>>,
        limit: Duration,
    ) -> Result<String, NoAnswer> {
        let command = command.into();
        let answers = command.lines().count();
        Ok(self.put(Ask::new(command, answers), limit).await?.text)
    }

    /// Sends one command, perhaps with a payload, with more commands before it and after it. No
    /// other command comes between.
    pub(crate) async fn ask_between(
        &self,
        before: Vec<String>,
        command: String,
        after: Vec<String>,
        limit: Duration,
    ) -> Result<String, NoAnswer> {
        let ask = Ask { around: (before, after), ..Ask::new(command.into(), 1) };
        Ok(self.put(ask, limit).await?.text)
    }

    async fn put(&self, ask: Ask, limit: Duration) -> Result<Answer, NoAnswer> {
        let answer = async {
            // It is never closed.
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let turn = turn.map_err(|_| NoAnswer::Closed)?;
            let (reply, answer) = oneshot::channel();
            let ask = Ask { asker: Some(Asker { reply, _turn: turn }), ..ask };
            self.asks.send(ask).map_err(|_| NoAnswer::Closed)?;
            answer.await.map_err(|_| NoAnswer::Closed)
        };
        let answered = bindonce_sys::patience::timeout(limit, answer).await;
        answered.unwrap_or(Err(NoAnswer::InTime))
    }

    /// Sends one command whose answer does not matter. It goes out before any later command.
    pub(crate) fn tell(&self, command: impl Into<Cow<'static, str>>) {
        // A connection that has ended takes no commands, now or later.
        let _ = self.asks.send(Ask::new(command.into(), 1));
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.asks.is_closed()
    }

    /// Asks for `show info`. Its `sent` leaves out the answers on this connection, which haproxy
    /// counts too.
    pub(crate) async fn info(&self, limit: Duration) -> Result<Info, NoAnswer> {
        let Answer { text, before } = self.put(Ask::new(INFO.into(), 1), limit).await?;
        let info = Info::read(&text);
        Ok(Info { sent: info.sent.saturating_sub(before), ..info })
    }

    pub(crate) fn close(&self) {
        self.task.abort();
        self.connection.take();
    }
}

/// A connection, with the number of bytes received on it.
struct Counted {
    stream: UnixStream,
    received: Rc<Cell<u64>>,
}

impl Counted {
    async fn read(&mut self, answer: &mut Vec<u8>) -> io::Result<()> {
        let read = self.stream.read_buf(answer).await?;
        self.received.update(|received| received + read as u64);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

async fn talk(mut stream: Counted, mut requests: mpsc::UnboundedReceiver<Ask>) -> io::Result<()> {
    while let Some(Ask { command, answers, around: (before, after), asker }) = requests.recv().await
    {
        // Its asker gave up while the connection was opened, or behind a command without an asker.
        if asker.as_ref().is_some_and(|asker| asker.reply.is_closed()) {
            continue;
        }
        for command in before {
            exchange(&mut stream, &command, 1).await?;
        }
        let before = stream.received.get();
        let text = exchange(&mut stream, &command, answers).await?;
        for command in after {
            exchange(&mut stream, &command, 1).await?;
        }
        if let Some(Asker { reply, .. }) = asker {
            // The asker may have given up since. The answer must be read all the same.
            let _ = reply.send(Answer { text, before });
        }
    }
    Ok(())
}

/// Sends commands, one in each line, all at once: each round trip is time in which a new generation
/// is not known to serve. Gives the answers, one after the other.
async fn exchange(stream: &mut Counted, commands: &str, answers: usize) -> io::Result<String> {
    stream.stream.write_all(format!("{commands}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(4096);
    let end = PROMPT.as_bytes();
    let ends = |answer: &[u8]| answer.windows(end.len()).filter(|part| *part == end).count();
    let (mut left_out, mut ended) = (0, 0);
    while !answer.ends_with(end) || ended + ends(&answer) < answers {
        if answer.len() > LONGEST {
            ended += ends(&answer);
            // The last bytes stay: they may be half a prompt.
            left_out += answer.drain(..=answer.len() - end.len()).len();
        }
        if left_out > ENDLESS {
            return Err(io::Error::other("the answer is too long"));
        }
        stream.read(&mut answer).await?;
    }
    if left_out > 0 || answer.len() > LONGEST {
        return Ok(String::new());
    }
    answer.truncate(answer.len() - end.len());
    let answer = String::from_utf8_lossy(&answer);
    Ok(if answers > 1 { answer.replace(PROMPT, "\n") } else { answer.into_owned() })
}

/// Takes over the connection of an earlier supervisor, and gives the answer to `show info`.
async fn again(stream: &mut Counted) -> io::Result<String> {
    stream.stream.write_all(AGAIN.as_bytes()).await?;
    let ends = Level::ALL.map(|level| format!("{level}\n{PROMPT}Name: "));
    let mut said = Vec::with_capacity(4096);
    let has = |said: &[u8], end: &str| said.windows(end.len()).any(|part| part == end.as_bytes());
    while !said.ends_with(PROMPT.as_bytes()) || !ends.iter().any(|end| has(&said, end)) {
        if said.len() > LONGEST {
            return Err(io::Error::other("the answer is too long"));
        }
        stream.read(&mut said).await?;
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as Blocking;

    use super::*;

    fn counted(ours: Blocking) -> Counted {
        let stream = UnixStream::from_std(ours).expect("a stream");
        Counted { stream, received: Rc::default() }
    }

    #[test]
    fn what_it_has_answered_is_not_what_it_has_sent_to_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime.expect("a runtime"), async {
            let (ours, theirs) = Blocking::pair().expect("a pair");
            // Counts as haproxy does: all bytes sent before, here and to others, who got 1,000
            // bytes.
            let haproxy = std::thread::spawn(move || {
                let mut questions = io::BufReader::new(theirs.try_clone().expect("a copy"));
                let mut sent = 1000 + 70;
                let mut question = String::new();
                while io::BufRead::read_line(&mut questions, &mut question)
                    .is_ok_and(|read| read > 0)
                {
                    let level =
                        question.contains("level").then(|| format!("{}\n{PROMPT}", Level::ALL[0]));
                    let info = question
                        .contains("info")
                        .then(|| format!("Name: x\nTotalBytesOut: {sent}\n{PROMPT}"));
                    let answer = level.or(info).unwrap_or_else(|| PROMPT.to_owned());
                    sent += answer.len();
                    io::Write::write_all(&mut &theirs, answer.as_bytes()).expect("written");
                    question.clear();
                }
            });
            let admin = Admin::resume(ours.into(), 70, |_| ());
            for _ in 0..3 {
                assert_eq!(
                    admin.info(Duration::from_secs(20)).await.expect("an answer").sent,
                    1000
                );
            }
            assert!(admin.received() > 70 + 3 * 30);
            admin.close();
            haproxy.join().expect("it has answered");
        });
    }

    /// haproxy answers the first question only after the asker of the second has given up.
    #[test]
    fn what_nobody_waits_for_any_more_is_not_asked() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime.expect("a runtime"), async {
            let (ours, theirs) = Blocking::pair().expect("a pair");
            let (given_up, release) = std::sync::mpsc::channel();
            let haproxy = std::thread::spawn(move || {
                let questions = io::BufReader::new(theirs.try_clone().expect("a copy"));
                let mut asked = Vec::new();
                for question in io::BufRead::lines(questions).map_while(Result::ok) {
                    let said = match question.as_str() {
                        "show cli level" => format!("{}\n", Level::ALL[0]),
                        "show info" => "Name: x\n".to_owned(),
                        "first" => release.recv().map(|()| String::new()).expect("a release"),
                        _ => String::new(),
                    };
                    let answer = format!("{said}{PROMPT}");
                    io::Write::write_all(&mut &theirs, answer.as_bytes()).expect("written");
                    asked.push(question);
                }
                asked
            });
            let admin = Admin::resume(ours.into(), 0, |_| ());
            let patient = Duration::from_secs(60);
            let second = async {
                let answer = admin.ask("second", Duration::from_millis(10)).await;
                given_up.send(()).expect("haproxy waits");
                answer
            };
            let (first, second, third) =
                tokio::join!(admin.ask("first", patient), second, admin.ask("third", patient));
            assert_eq!((first.is_ok(), second, third.is_ok()), (true, Err(NoAnswer::InTime), true));
            admin.close();
            let asked = haproxy.join().expect("it has answered");
            assert!(asked.ends_with(&["first".to_owned(), "third".to_owned()]), "{asked:?}");
        });
    }

    #[test]
    fn what_follows_an_answer_that_is_too_long_is_understood() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (ours, mut theirs) = Blocking::pair().expect("a pair");
            ours.set_nonblocking(true).expect("non-blocking");
            let haproxy = std::thread::spawn(move || {
                let long = "x".repeat(LONGEST + 2);
                let mut questions = io::BufReader::new(theirs.try_clone().expect("a copy"));
                for answer in [long.as_str(), "short"] {
                    let mut question = String::new();
                    io::BufRead::read_line(&mut questions, &mut question).expect("a question");
                    for part in [answer, PROMPT] {
                        io::Write::write_all(&mut theirs, part.as_bytes()).expect("written");
                    }
                }
                theirs
            });
            let mut stream = counted(ours);
            assert_eq!(exchange(&mut stream, "show stat", 1).await.expect("an answer"), "");
            assert_eq!(exchange(&mut stream, "show info", 1).await.expect("an answer"), "short");
            drop(haproxy.join().expect("it has answered"));
        });
    }

    /// haproxy's user may answer with anything, for as long as it likes.
    #[test]
    fn an_answer_without_end_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (ours, mut theirs) = Blocking::pair().expect("a pair");
            ours.set_nonblocking(true).expect("non-blocking");
            // More than the reader takes: one read fills the spare room of the vector, which
            // doubles.
            let writer = std::thread::spawn(move || {
                let piece = [b'x'; 65536];
                (0..2 * ENDLESS / piece.len())
                    .any(|_| io::Write::write_all(&mut theirs, &piece).is_err())
            });
            let mut stream = counted(ours);
            let error = exchange(&mut stream, "show info", 1).await.expect_err("no end");
            assert_eq!(error.kind(), io::ErrorKind::Other, "{error}");
            drop(stream);
            assert!(writer.join().expect("the writer"), "all of it was read");
        });
    }
}
