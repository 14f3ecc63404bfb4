//! A generation of a service, for tokio.

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_core::name::Name;
use bindonce_core::patience::Patience;
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use super::patience::{timeout, within};
use crate::alone::{self, Alone};
use crate::claim::Claim;
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::membership::{ATTEMPT, FAREWELL, Membership, Stopped, after, is_over};
use crate::session::DEFAULT_TIMEOUT;
use crate::socket::default_socket;
use crate::verbs;

/// This process as one generation of a service: [`bindonce::Generation`](crate::Generation),
/// awaited.
///
/// ```no_run
/// # async fn answer(_: tokio::net::TcpStream) {}
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let mut generation = bindonce::aio::Generation::join(&"edge".parse()?).await?;
/// let mut connections = tokio::task::JoinSet::new();
/// loop {
///     let lease = generation.claim_one("web=0.0.0.0:8080").await?;
///     let acceptor = lease.into_tokio_tcp_acceptor()?;
///     generation.ready().await?;
///     loop {
///         tokio::select! {
///             retired = generation.retired() => { retired?; break }
///             accepted = acceptor.accept() => { connections.spawn(answer(accepted?.0)); }
///             Some(_) = connections.join_next() => {}
///         }
///     }
///     drop(acceptor);
///     match generation.stopped().await? {
///         bindonce::Stopped::Retired => break,
///         bindonce::Stopped::Recalled => {} // the newer one has died: serve on
///     }
/// }
/// generation.drain_within(connections.join_all(), std::time::Duration::from_secs(30)).await;
/// generation.drained();
/// # Ok(())
/// # }
/// ```
///
/// This type spawns no task: it reads its connection only inside its own calls. (Connecting uses
/// one of the runtime's blocking threads.) So keep [`retired`](Self::retired) awaited as long as
/// the process serves: it also finds the next broker when this one is lost.
///
/// Each call may be dropped before it is done and made again; at worst the next call connects again
/// as the same generation.
#[derive(Debug)]
pub struct Generation {
    path: PathBuf,
    /// None while no broker is connected.
    client: Option<Client>,
    /// Set if this generation works without a broker.
    alone: Option<Alone>,
    /// Whether to send READY=1 once this generation serves.
    tells: bool,
    membership: Membership,
    /// When to try again to reach a broker.
    again: Instant,
}

impl Generation {
    /// Becomes the next generation of a service, at the broker's
    /// [default path](crate::default_socket).
    ///
    /// # Errors
    /// As [`join_at`](Self::join_at).
    pub async fn join(service: &Name) -> Result<Self, Error> {
        Self::join_at(&default_socket(), service).await
    }

    /// Joins, or works without a broker, for a program that is started in various ways. Takes the
    /// sockets that the starter passed (`LISTEN_FDS`: systemd, `bindonce run`, `bindonce exec`);
    /// else joins at the broker, as [`join`](Self::join) does; else, if no broker answers and no
    /// variable names one (see [`default_socket`]), binds sockets itself.
    /// The rest of the generation's life is the same. [`ready`](Self::ready) also sends READY=1 to
    /// `NOTIFY_SOCKET`.
    ///
    /// A claim finds a passed socket by name or by address; any other claim is bound by this
    /// process. Only the first call in a process gets the passed sockets, so call this before other
    /// code takes them. Without a broker, nothing here tells a generation to retire: the program
    /// that starts the next one sends this process a signal (SIGTERM), on which it stops
    /// accepting, calls [`stopped`](Self::stopped), and drains.
    ///
    /// # Errors
    /// [`Error::Bind`] if the passed sockets cannot be taken; else the errors of
    /// [`join`](Self::join), where a missing broker is an error only if a variable names it.
    pub async fn join_or_bind(service: &Name) -> Result<Self, Error> {
        let path = default_socket();
        let mut generation = match Alone::passed()? {
            Some(passed) => Self::begin(&path, service, Some(passed)).await?,
            None => match Self::begin(&path, service, None).await {
                Err(error) => Self::begin(&path, service, Some(Alone::instead(error)?)).await?,
                joined => joined?,
            },
        };
        generation.tells = true;
        Ok(generation)
    }

    /// Whether this generation works without a broker; see [`join_or_bind`](Self::join_or_bind).
    pub fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Becomes the next generation of a service, at the broker at `path`.
    ///
    /// # Errors
    /// [`Error::Connect`] if no broker answers; [`Error::Refused`] if the service belongs to
    /// another user or to a supervisor, or if the broker is too old to keep an order; see
    /// [`Error`].
    pub async fn join_at(path: &Path, service: &Name) -> Result<Self, Error> {
        Self::begin(path, service, None).await
    }

    async fn begin(path: &Path, service: &Name, alone: Option<Alone>) -> Result<Self, Error> {
        let (client, membership) = if alone.is_some() {
            (None, Membership::alone(service, alone::number()))
        } else {
            let mut membership = Membership::new(service);
            (Some(enter(Client::connect(path).await?, &mut membership).await?), membership)
        };
        let (path, again) = (path.to_owned(), Instant::now());
        Ok(Self { path, client, alone, tells: false, membership, again })
    }

    /// The name of the service.
    pub fn service(&self) -> &Name {
        self.membership.service()
    }

    /// The number of this generation, larger than that of every earlier generation, also under
    /// earlier brokers. Without a broker, the number that the supervisor gave, or 0.
    pub fn number(&self) -> u64 {
        self.membership.number()
    }

    /// Claims listeners, all or none, as [`Client::claim`] does, and returns a lease for each. A
    /// repeated claim gives the same socket. Listeners that the claim creates are closed again if
    /// this generation ends before it has served. Without a broker, sockets that were bound before
    /// one that cannot be stay bound for the next try.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason. After a connection error the call may be
    /// repeated; see [`Error`].
    pub async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        if let Some(alone) = &mut self.alone {
            return alone.claim(claims);
        }
        let timed_out = Error::TimedOut { during: "claim", after: DEFAULT_TIMEOUT };
        let mut patience = Patience::new(DEFAULT_TIMEOUT);
        while self.client.is_none() {
            match within(&mut patience, self.find_again()).await {
                Ok(found) => found?,
                Err(_) => return Err(timed_out),
            }
        }
        let Some(client) = &mut self.client else { return Err(timed_out) };
        let leases = client.claim(&Membership::claims(claims)).await;
        let leases = leases.inspect_err(|error| self.failed(error))?;
        self.membership.keep(&leases)?;
        Ok(leases)
    }

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an
    /// error and binds nothing.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub async fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[Claim::of_one(claim)?]).await?)
    }

    /// Reports that this generation is ready, and waits until it may accept. It may accept when the
    /// older generation has stopped, or when the broker's `retire_time` (5 seconds) has passed.
    /// From then on the claimed listeners stay. A generation that already serves returns at once.
    /// If the wait is dropped, the report stands: the call may be repeated, or the process may end,
    /// and the older generation continues to serve.
    ///
    /// # Errors
    /// [`Error::Superseded`] if a newer generation is ready; see [`Error`].
    pub async fn ready(&mut self) -> Result<(), Error> {
        self.membership.ask_to_serve();
        self.say().await?;
        while !self.membership.may_serve()? {
            self.news().await?;
        }
        if std::mem::take(&mut self.tells) {
            alone::tell_ready();
        }
        Ok(())
    }

    /// Waits until a newer generation is ready and this one must stop accepting. The wait is cancel
    /// safe.
    ///
    /// # Errors
    /// [`Error::Refused`] if the broker was lost and the next one does not take this generation.
    /// The process may continue to serve, and the next call tries again; see [`Error`].
    pub async fn retired(&mut self) -> Result<(), Error> {
        while !self.membership.is_retired() {
            self.news().await?;
        }
        Ok(())
    }

    /// Reports that this process accepts no more, whether or not it was told to retire. Drop every
    /// listener first: the broker now lets the newer generation accept. Returns
    /// [`Stopped::Retired`], or [`Stopped::Recalled`] if the newer generation has gone meanwhile.
    ///
    /// # Errors
    /// See [`Error`]. If the broker is lost, the call looks for the next one for at most 3 seconds.
    /// Finding none is no error: then no generation waits for this one.
    pub async fn stopped(&mut self) -> Result<Stopped, Error> {
        self.membership.stop();
        if let Some(alone) = &mut self.alone {
            alone.stop();
            return Ok(self.membership.stopped());
        }
        let mut patience = Patience::new(FAREWELL);
        self.say().await?;
        while self.client.is_none() {
            match within(&mut patience, self.find_again()).await {
                Ok(found) => found?,
                Err(_) => break,
            }
        }
        Ok(self.membership.stopped())
    }

    /// Awaits `work`, which finishes the open connections, and meanwhile keeps this generation's
    /// place: if the broker is lost, the next broker and its `status` know that this generation
    /// drains.
    pub async fn drain<W: Future>(&mut self, work: W) -> W::Output {
        tokio::select! {
            output = work => output,
            never = self.keep() => match never {},
        }
    }

    /// As [`drain`](Self::drain), for at most `limit`: then `work` is dropped, and this returns
    /// None.
    pub async fn drain_within<W: Future>(&mut self, work: W, limit: Duration) -> Option<W::Output> {
        self.drain(timeout(limit, work)).await.ok()
    }

    async fn keep(&mut self) -> Infallible {
        loop {
            // A broker that refuses is asked again later; nothing else depends on it any more.
            let _ = self.news().await;
        }
    }

    /// Ends this generation after its connections are finished. The same as dropping it.
    pub fn drained(self) {
        drop(self);
    }

    /// Reports this generation's state to the broker, if one is connected.
    async fn say(&mut self) -> Result<(), Error> {
        let Some(client) = &mut self.client else { return Ok(()) };
        let joining = self.membership.joining();
        let told = client.ask(&verbs::enter(&joining)).await;
        match told.and_then(|result| self.membership.joined(&result)) {
            Err(error) if is_over(&error) => {
                self.failed(&error);
                Ok(())
            }
            done => done,
        }
    }

    /// Waits for a message from the broker, or for its loss; without a broker, tries to reach the
    /// next one.
    async fn news(&mut self) -> Result<(), Error> {
        let Some(client) = &mut self.client else { return self.find_again().await };
        match client.hear().await {
            Ok(notification) => self.membership.notified(&notification),
            Err(error) => self.failed(&error),
        }
        Ok(())
    }

    /// Tries once to reach the next broker, when a retry is due. The wait is cancel safe.
    async fn find_again(&mut self) -> Result<(), Error> {
        if self.alone.is_some() {
            return pending().await;
        }
        sleep_until(self.again).await;
        let attempt = async {
            let mut client = Client::connect_within(&self.path, ATTEMPT).await?;
            client.give_back(&self.membership.give(), || ATTEMPT).await?;
            let mut client = enter(client, &mut self.membership).await?;
            client.set_timeout(DEFAULT_TIMEOUT);
            Ok(client)
        };
        match attempt.await {
            Ok(client) => self.client = Some(client),
            Err(error) => {
                let (wait, error) = after(error);
                self.again = Instant::now() + wait;
                return error.map_or(Ok(()), Err);
            }
        }
        Ok(())
    }

    /// Drops the connection if this error has broken it.
    fn failed(&mut self, error: &Error) {
        if is_over(error) {
            self.client = None;
            self.again = Instant::now();
        }
    }
}

/// Takes this generation's place in the order.
async fn enter(mut client: Client, membership: &mut Membership) -> Result<Client, Error> {
    client.expect_notifications();
    let result = client.ask(&verbs::enter(&membership.joining())).await?;
    membership.joined(&result)?;
    Ok(client)
}
