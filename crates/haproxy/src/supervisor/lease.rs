//! The leases of one generation: a connection to the broker for as long as the generation
//! lives, and the listeners given back when the broker is lost.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bindonce::aio::Client;
use bindonce::{Give, Join, State};
use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_core::name::Name;
use bindonce_observe::{Happening, Journal};
use bindonce_sys::peer;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::broker;
use super::listeners::Held;

/// How long one attempt to find the next broker goes on; then the log says so again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What this generation does now, and where to say that the broker knows.
pub(super) type Told = (State, oneshot::Sender<()>);

/// What all generations of a service share about the broker.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) socket: PathBuf,
    /// Whether a broker is started when none answers.
    pub(super) start: bool,
    pub(super) service: Name,
    /// Its pid, as the kernel tells it of the last connection.
    pub(super) pid: Cell<Option<i32>>,
    /// Held by the one that starts a broker.
    pub(super) starting: Mutex<()>,
    /// Somebody has found that it is gone, and nobody yet that another is there.
    pub(super) lost: Cell<bool>,
    pub(super) journal: Rc<Journal>,
}

impl Shared {
    /// Notes the pid of the broker at the other end.
    pub(super) fn note(&self, client: &Client) {
        if let Ok(peer) = peer::credentials(client.as_fd()) {
            self.pid.set(Some(peer.pid));
        }
    }
}

/// Keeps the leases of one generation.
pub(super) struct Keeper {
    pub(super) shared: Rc<Shared>,
    pub(super) id: GenerationId,
    pub(super) pid: i32,
    pub(super) listeners: Vec<Rc<Held>>,
}

impl Keeper {
    /// Tells the broker what the generation does, and finds it again when it is lost. Ends with the
    /// generation, and so do the leases.
    pub(super) async fn keep(
        self,
        mut lease: Option<Client>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) {
        let mut state = State::Starting;
        loop {
            if let Some(client) = &lease {
                self.shared.note(client);
            }
            let lost = async {
                match &lease {
                    Some(client) => client.closed().await,
                    // What only starts holds nothing that must be given back: it is tentative.
                    None if state == State::Starting => std::future::pending().await,
                    None => {}
                }
            };
            tokio::select! {
                biased;
                news = told.recv() => {
                    let Some((now, _done)) = news else { return };
                    state = now;
                    let Some(client) = &mut lease else { continue };
                    let Shared { service, .. } = &*self.shared;
                    let joined = broker::join(client, service, self.id, Some(self.pid), state).await;
                    if let Err(error) = joined {
                        tracing::warn!(generation = self.id.0, "the broker was not told: {error}");
                        lease = None;
                    }
                }
                () = lost => lease = self.find_again(state).await,
            }
        }
    }

    /// Waits for the next broker and gives it back what this generation holds.
    async fn find_again(&self, state: State) -> Option<Client> {
        let Shared { socket, start, service, starting, .. } = &*self.shared;
        let (generation, pid) = (self.id.0, self.pid);
        tracing::error!(
            generation,
            pid,
            socket = %socket.display(),
            "the broker is gone; haproxy serves on with the same sockets; waiting for another broker"
        );
        let journal = &self.shared.journal;
        if !self.shared.lost.replace(true) {
            let text = "the broker is gone; haproxy serves on with the same sockets";
            journal
                .record(Happening::new(event::Kind::BrokerLost, text).pid(self.shared.pid.get()));
        }
        if *start {
            let _one = starting.lock().await;
            if let Err(error) = broker::ensure(socket, true, journal).await {
                tracing::error!(generation, "no broker could be started: {}", error.story());
            }
        }
        let give: Vec<_> = self
            .listeners
            .iter()
            .map(|held| Give::new(held.listener.to_string(), held.fd.as_fd()))
            .collect();
        let join = Join::new(service.clone(), generation, u32::try_from(pid).ok(), state);
        match Client::reconnect(socket, &give, Some(&join), PATIENCE).await {
            Ok(client) => {
                let listeners = give.len();
                tracing::info!(
                    generation,
                    pid,
                    listeners,
                    "a broker is back and has our listeners"
                );
                self.shared.note(&client);
                if self.shared.lost.replace(false) {
                    let text = "a broker is back and has our listeners";
                    let pid = self.shared.pid.get();
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
                // Whatever refused it will not change its mind at once.
                tokio::time::sleep(PATIENCE.min(Duration::from_secs(5))).await;
                None
            }
        }
    }
}
