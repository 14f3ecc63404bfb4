//! The leases of one generation: a connection to the broker for as long as the generation lives.
//! When the broker is lost, the listeners are given to the next one.

use std::cell::Cell;
use std::future::pending;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce::aio::Client;
use bindonce::{Claim, ErrorCode, Give, Join, RpcError, State};
use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_core::intercept::Failure;
use bindonce_core::listener::Listener;
use bindonce_core::name::Name;
use bindonce_core::text::count;
use bindonce_daemon::{Happening, Journal};
use bindonce_sys::{Errno, peer};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::broker;
use crate::error::Error;
use crate::generations::listeners::{HeldListener, Known};
use crate::settings::Settings;

/// How long one attempt to reach the next broker lasts; the log then repeats it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before the next attempt.
const AGAIN: Duration = Duration::from_secs(5);

/// Errnos that depend on the address alone: the program's own bind(2) would fail with the same one.
const KERNELS: [Errno; 7] = [
    Errno::EADDRNOTAVAIL,
    Errno::EINVAL,
    Errno::ELOOP,
    Errno::ENODEV,
    Errno::ENOENT,
    Errno::ENOTDIR,
    Errno::EROFS,
];

/// How long the broker may take to end the leases of a connection that ends.
const ENDED: Duration = Duration::from_secs(1);

/// Updates about a generation for the broker, and where to confirm them.
pub(crate) enum LeaseUpdate {
    State(State, oneshot::Sender<()>),
    /// The generation wants one more listener.
    Claim {
        listener: Box<Listener>,
        known: Known,
        reply: oneshot::Sender<Result<Rc<HeldListener>, (Failure, String)>>,
    },
    /// The generation is ready. The broker shows clients these listeners, which it has hidden and
    /// the supervisor may not show.
    Show(Vec<Rc<HeldListener>>, oneshot::Sender<()>),
    /// The generation drains and still has these listeners. All its leases end.
    Has(Vec<Rc<HeldListener>>, oneshot::Sender<()>),
    Gone(oneshot::Sender<()>),
}

/// The broker, as all generations of a service share it.
#[derive(Debug)]
pub(crate) struct Broker {
    socket: PathBuf,
    /// Where a broker that is started, if any, writes its log.
    start: Option<broker::Log>,
    service: Name,
    /// Its pid, by the peer credentials of the last connection.
    pid: Cell<Option<i32>>,
    /// Held by the task that starts a broker.
    starting: Mutex<()>,
    /// Whether the last connection was lost and none has been made since.
    lost: Cell<bool>,
    journal: Rc<Journal>,
}

impl Broker {
    pub(crate) fn new(settings: &Settings, journal: Rc<Journal>) -> Self {
        Self {
            socket: settings.broker.socket.clone(),
            start: settings.broker_log(),
            service: settings.service.clone(),
            pid: Cell::new(None),
            starting: Mutex::new(()),
            lost: Cell::new(false),
            journal,
        }
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid.get()
    }

    /// Whether it was lost and is not yet found again.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Notes the pid of the broker at the other end.
    pub(crate) fn note(&self, client: &Client) {
        if let Ok(peer) = peer::credentials(client.as_fd()) {
            self.pid.set(Some(peer.pid));
        }
    }
}

/// Keeps the leases of one generation.
pub(crate) struct Keeper {
    pub(crate) broker: Rc<Broker>,
    pub(crate) id: GenerationId,
    pub(crate) pid: i32,
    pub(crate) listeners: Vec<Rc<HeldListener>>,
}

impl Keeper {
    /// Reports the generation's state to the broker, and finds the broker again when it is lost.
    /// Ends with the generation, and so do the leases.
    pub(crate) async fn keep(
        mut self,
        mut lease: Option<Client>,
        mut updates: mpsc::UnboundedReceiver<LeaseUpdate>,
    ) {
        let mut state = State::Starting;
        loop {
            if let Some(client) = &lease {
                self.broker.note(client);
            }
            let lost = async {
                match &lease {
                    Some(client) => client.closed().await,
                    // A starting generation has nothing to give back: its listeners are tentative.
                    None if state == State::Starting => std::future::pending().await,
                    None => {}
                }
            };
            tokio::select! {
                biased;
                news = updates.recv() => {
                    // Dropped at the end of this block, which answers the task that waits for the
                    // broker.
                    let _done = match news {
                        None => return,
                        Some(LeaseUpdate::Gone(_done)) => return end(lease).await,
                        // The requester has stopped waiting.
                        Some(LeaseUpdate::Claim { reply, .. }) if reply.is_closed() => continue,
                        Some(LeaseUpdate::Claim { listener, known, reply }) => {
                            if lease.is_none() && state != State::Starting {
                                lease = self.find_again(state).await;
                            }
                            let claimed = self.claim(&mut lease, &listener, &known, state).await;
                            // The requester may have ended.
                            let _ = reply.send(claimed);
                            continue;
                        }
                        Some(LeaseUpdate::Show(listeners, _done)) => {
                            show(&mut lease, &listeners).await;
                            continue;
                        }
                        Some(LeaseUpdate::State(now, done)) => {
                            state = now;
                            done
                        }
                        Some(LeaseUpdate::Has(listeners, done)) => {
                            self.listeners = listeners;
                            // Leases end with their connection. A new connection has none.
                            if lease.is_some() {
                                end(lease.take()).await;
                                lease = self.connect_anew().await;
                            }
                            done
                        }
                    };
                    let Some(client) = &mut lease else { continue };
                    let Broker { service, .. } = &*self.broker;
                    let joined = broker::join(client, service, self.id, Some(self.pid), state).await;
                    if let Err(error) = joined {
                        tracing::warn!(
                            generation = self.id.0,
                            "cannot report the generation's state to the broker: {error}"
                        );
                        lease = None;
                    }
                }
                () = lost => lease = self.find_again(state).await,
            }
        }
    }

    /// Claims one more listener on the connection of this generation.
    async fn claim(
        &mut self,
        lease: &mut Option<Client>,
        listener: &Listener,
        known: &Known,
        state: State,
    ) -> Result<Rc<HeldListener>, (Failure, String)> {
        let Some(client) = lease else {
            return Err((Failure::Unavailable, "the broker is gone".to_owned()));
        };
        let mut claim = Claim::listen(listener.to_string()).changing();
        if state == State::Starting {
            claim = claim.tentative();
        }
        let error = match client.claim(&[claim]).await {
            Ok(mut leases) => {
                let Some(given) = leases.pop() else {
                    return Err((
                        Failure::Unavailable,
                        "the broker returned no listener".to_owned(),
                    ));
                };
                let held = HeldListener::new(given, listener, known);
                if state == State::Starting {
                    held.remember_options();
                }
                if !self.listeners.iter().any(|one| one.inode == held.inode) {
                    self.listeners.push(Rc::clone(&held));
                }
                return Ok(held);
            }
            Err(error) => error,
        };
        let failure = match error.refusal() {
            Some(refusal) if refusal.code == ErrorCode::DENIED => Failure::Denied,
            Some(refusal) if refusal.errno() == Some(Errno::EACCES as i32) => Failure::Denied,
            Some(refusal) => match refusal.errno() {
                Some(errno) if KERNELS.contains(&Errno::from_raw(errno)) => Failure::Kernels(errno),
                _ => Failure::InUse,
            },
            None => {
                *lease = None;
                Failure::Unavailable
            }
        };
        Err((failure, Error::claim(error).with_hint()))
    }

    async fn connect_anew(&self) -> Option<Client> {
        let connected = broker::connect(&self.broker.socket).await;
        // On an error the broker counts as lost, and `keep` reconnects.
        connected.ok()
    }

    /// Waits for the next broker and gives it the listeners that this generation holds.
    async fn find_again(&self, state: State) -> Option<Client> {
        let Broker { socket, service, .. } = &*self.broker;
        let (generation, pid) = (self.id.0, self.pid);
        tracing::error!(
            generation,
            pid,
            socket = %socket.display(),
            "the broker is gone; all generations keep their sockets; waiting for another broker"
        );
        let journal = &self.broker.journal;
        if !self.broker.lost.replace(true) {
            let text = "the broker is gone; all generations keep their sockets";
            journal
                .record(Happening::new(event::Kind::BrokerLost, text).pid(self.broker.pid.get()));
        }
        let broker = Rc::clone(&self.broker);
        // A task, because a started broker is watched and reaped whatever becomes of this call. It
        // waits for the listeners given back here before it reports READY=1.
        let started = crate::tasks::spawn(async move {
            if broker.start.is_some() {
                let _one = broker.starting.lock().await;
                broker::ensure(&broker.socket, broker.start, &broker.journal).await?;
            }
            Ok::<(), Error>(())
        });
        let not_started = async {
            match started.await {
                Ok(Err(error)) => error,
                _ => pending().await,
            }
        };
        let give: Vec<_> = self
            .listeners
            .iter()
            .map(|held| Give::new(held.listener.to_string(), held.fd.as_fd()))
            .collect();
        let join = Join::new(service.clone(), generation, u32::try_from(pid).ok(), state);
        let given = tokio::select! {
            biased;
            given = Client::reconnect(socket, &give, Some(&join), PATIENCE) => given,
            error = not_started => {
                tracing::error!(generation, "no broker could be started: {}", error.with_hint());
                tokio::time::sleep(AGAIN).await;
                return None;
            }
        };
        match given {
            Ok((client, refused)) => {
                self.broker.note(&client);
                self.tell_refused(&refused);
                let listeners = give.len().saturating_sub(refused.len());
                let its_pid = self.broker.pid().map(|pid| format!(" (pid {pid})"));
                let text = format!(
                    "reconnected to the broker{}; it holds {} of generation {generation}",
                    its_pid.unwrap_or_default(),
                    count(listeners, "listener")
                );
                tracing::info!(generation, pid, listeners, "{text}");
                if self.broker.lost.replace(false) {
                    let pid = self.broker.pid();
                    journal.record(Happening::new(event::Kind::BrokerBack, text).pid(pid));
                }
                Some(client)
            }
            Err(error) => {
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                tracing::error!(
                    generation,
                    pid,
                    "the broker did not take our listeners: {error}{hint}"
                );
                // The cause of the refusal will not go away at once.
                tokio::time::sleep(PATIENCE.min(Duration::from_secs(5))).await;
                None
            }
        }
    }

    /// Reports listeners that the next broker has not taken back, such as one whose UNIX path was
    /// removed.
    fn tell_refused(&self, refused: &[RpcError]) {
        let Some(first) = refused.first() else { return };
        let (generation, count) = (self.id.0, count(refused.len(), "listener"));
        let text = format!("the broker has not taken back {count} of generation {generation}");
        tracing::error!(
            generation,
            first = first.message,
            hint = "reload the service: it then gets listeners that the broker holds",
            "{text}"
        );
        let text = format!("{text}: {}", first.message);
        let happening = Happening::new(event::Kind::ListenerLost, text);
        self.broker.journal.record(happening.pid(self.broker.pid.get()));
    }
}

/// Has the broker show hidden listeners: it shows one that this connection already has when that is
/// claimed again.
async fn show(lease: &mut Option<Client>, listeners: &[Rc<HeldListener>]) {
    let Some(client) = lease else { return };
    let again = |held: &Rc<HeldListener>| Claim::listen(held.listener.to_string()).tentative();
    let claims: Vec<_> = listeners.iter().map(again).collect();
    if let Err(error) = client.claim(&claims).await {
        let count = claims.len();
        tracing::error!(count, %error, "new listeners stay hidden until the generation serves");
    }
}

pub(crate) async fn claim_one(client: &mut Client, claim: Claim) -> Result<OwnedFd, Error> {
    let lease = client.claim(&[claim]).await.map_err(Error::claim)?.pop();
    let missing = || Error::system("claim")(std::io::ErrorKind::NotFound.into());
    Ok(lease.ok_or_else(missing)?.into_fd())
}

/// Keeps one listener leased while the supervisor runs: gives it to the next broker when one is
/// lost.
pub(crate) async fn keep_one(mut client: Client, listener: &Listener, fd: &OwnedFd, socket: &Path) {
    loop {
        client.closed().await;
        let give = [Give::new(listener.to_string(), fd.as_fd())];
        client = loop {
            let error = match Client::reconnect(socket, &give, None, PATIENCE).await {
                Ok((client, refused)) => match refused.into_iter().next() {
                    None => break client,
                    Some(refusal) => bindonce::Error::Refused(refusal),
                },
                Err(error) => error,
            };
            tracing::debug!(%error, "the broker has not taken the listener back yet");
            tokio::time::sleep(AGAIN).await;
        };
    }
}

/// Ends a connection, and waits until the broker has ended its leases: the broker then closes its
/// end.
async fn end(lease: Option<Client>) {
    if let Some(client) = lease
        && rustix::net::shutdown(client.as_fd(), rustix::net::Shutdown::Write).is_ok()
    {
        let _ = bindonce_sys::patience::timeout(ENDED, client.closed()).await;
    }
}
