//! A generation of a service, for tokio.

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bindonce_core::name::Name;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::client::Client;
use crate::alone::{self, Alone};
use crate::claim::Claim;
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::membership::{ATTEMPT, FAREWELL, Membership, Stopped, after, is_over};
use crate::session::DEFAULT_TIMEOUT;
use crate::socket::default_socket;
use crate::verbs;

/// This process as one generation of a service whose order the broker keeps: what
/// [`bindonce::Generation`](crate::Generation) is, awaited.
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
/// Nothing happens behind the caller's back: no task is spawned, and the connection is looked at
/// only in calls of this type. (While it connects, one of the runtime's blocking threads is used.) So have [`retired`](Self::retired)
/// awaited as long as the process serves: that is also what finds the next broker when this
/// one is lost.
///
/// Each call may be dropped before it is done and made again; at worst the next one connects again
/// as the same generation.
#[derive(Debug)]
pub struct Generation {
    path: PathBuf,
    /// None while there is no broker.
    client: Option<Client>,
    /// In place of a broker.
    alone: Option<Alone>,
    /// Whether READY=1 has to be said once this serves.
    tells: bool,
    membership: Membership,
    /// When to try again to find a broker.
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

    /// For a program that runs in any way: takes the sockets that its starter has passed (`LISTEN_FDS`: systemd,
    /// `bindonce run`, `bindonce exec`); else joins at the broker, as [`join`](Self::join) does; else, where there is no broker and
    /// `BINDONCE_SOCKET` names none, binds by itself. The rest of the life is the same. [`ready`](Self::ready)
    /// also says READY=1 to `NOTIFY_SOCKET`.
    ///
    /// What was passed is claimed by name or by address; a claim of anything else is bound by this process. Only the
    /// first call in a process finds what was passed, so make it before anything else takes it. Without a
    /// broker no generation is told to retire by this: whoever starts the next one sends a signal (SIGTERM), at which
    /// this one accepts no more, calls [`stopped`](Self::stopped), and drains.
    ///
    /// # Errors
    /// [`Error::Bind`] where what was passed cannot be taken; those of [`join`](Self::join) but for a broker that nobody
    /// named and that is not there.
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

    /// Whether no broker keeps the order of this generation; see [`join_or_bind`](Self::join_or_bind).
    pub fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Becomes the next generation of a service.
    ///
    /// # Errors
    /// [`Error::Connect`] without a broker; [`Error::Refused`] where the service is another user's
    /// or a supervisor's, or the broker is too old to keep an order; see [`Error`].
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

    /// The service.
    pub fn service(&self) -> &Name {
        self.membership.service()
    }

    /// The number of this generation: larger than that of any before, also of those under
    /// earlier brokers. Without a broker the supervisor's, or 0.
    pub fn number(&self) -> u64 {
        self.membership.number()
    }

    /// Claims listeners, all or none, as [`Client::claim`] does, and gives a lease for each. A claim made
    /// again gives the same socket. Listeners that this creates are closed again if this generation
    /// ends before it has served.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason. After any error of the connection the
    /// call may be made again; see [`Error`].
    pub async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        if let Some(alone) = &mut self.alone {
            return alone.claim(claims);
        }
        let timed_out = Error::TimedOut { during: "claim", after: DEFAULT_TIMEOUT };
        let until = Instant::now() + DEFAULT_TIMEOUT;
        while self.client.is_none() {
            match timeout_at(until, self.find_again()).await {
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

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an error.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub async fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[claim.into()]).await?)
    }

    /// Says that this generation is ready, and waits until it may accept: until the older one
    /// accepts no more, which is as soon as that one has said so, or the broker's `retire_time`
    /// (5 seconds) has passed. From then on what was claimed is there to stay. One that serves already is
    /// told so at once. If this wait is dropped, the readiness stays said, and the call may be made again, or
    /// the process may just end: the older one serves on.
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

    /// Waits until a newer generation is ready, and this one must stop accepting. Dropping this
    /// wait harms nothing.
    ///
    /// # Errors
    /// Those of the next broker, where this one was lost and the next does not take this generation
    /// ([`Error::Refused`]). The process may serve on, and the next call tries again; see [`Error`].
    pub async fn retired(&mut self) -> Result<(), Error> {
        while !self.membership.is_retired() {
            self.news().await?;
        }
        Ok(())
    }

    /// Says that this process accepts no more, whether it was told to or not: every listener has
    /// been dropped. The newer generation is let in at this, and it is [`Stopped::Retired`]; if
    /// that one has gone meanwhile, it was [`Stopped::Recalled`].
    ///
    /// # Errors
    /// See [`Error`]. If the broker is lost meanwhile the next one is sought for at most 3 seconds,
    /// and that none is found is no error: nobody waits for this generation then.
    pub async fn stopped(&mut self) -> Result<Stopped, Error> {
        self.membership.stop();
        if let Some(alone) = &mut self.alone {
            alone.stop();
            return Ok(self.membership.stopped());
        }
        let until = Instant::now() + FAREWELL;
        self.say().await?;
        while self.client.is_none() {
            match timeout_at(until, self.find_again()).await {
                Ok(found) => found?,
                Err(_) => break,
            }
        }
        Ok(self.membership.stopped())
    }

    /// Awaits `work`, which finishes what is connected, and meanwhile keeps this generation's place: should
    /// the broker be lost, the next one, and its `status`, know of a generation that drains.
    pub async fn drain<W: Future>(&mut self, work: W) -> W::Output {
        tokio::select! {
            output = work => output,
            never = self.keep() => match never {},
        }
    }

    /// As [`drain`](Self::drain), for no longer than `limit`: then `work` is dropped, and this gives None.
    pub async fn drain_within<W: Future>(&mut self, work: W, limit: Duration) -> Option<W::Output> {
        self.drain(timeout(limit, work)).await.ok()
    }

    async fn keep(&mut self) -> Infallible {
        loop {
            // A broker that refuses is asked again later; nothing else depends on it any more.
            let _ = self.news().await;
        }
    }

    /// Ends this generation: what was connected is finished. The same as dropping it.
    pub fn drained(self) {
        drop(self);
    }

    /// Says to the broker where this generation is, if there is a broker.
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

    /// Waits until the broker says something or is lost; or looks for the next one.
    async fn news(&mut self) -> Result<(), Error> {
        let Some(client) = &mut self.client else { return self.find_again().await };
        match client.hear().await {
            Ok(notification) => self.membership.heard(&notification),
            Err(error) => self.failed(&error),
        }
        Ok(())
    }

    /// Tries once to reach the next broker, when it is time. Dropping this harms nothing.
    async fn find_again(&mut self) -> Result<(), Error> {
        if self.alone.is_some() {
            return pending().await;
        }
        sleep_until(self.again).await;
        let attempt = async {
            let mut client = Client::connect_within(&self.path, ATTEMPT).await?;
            client.store(&self.membership.give()).await?;
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

    /// After an error: the connection may be of no use any more.
    fn failed(&mut self, error: &Error) {
        if is_over(error) {
            self.client = None;
            self.again = Instant::now();
        }
    }
}

/// Takes its place in the order.
async fn enter(mut client: Client, membership: &mut Membership) -> Result<Client, Error> {
    client.expect_notifications();
    let result = client.ask(&verbs::enter(&membership.joining())).await?;
    membership.joined(&result)?;
    Ok(client)
}
