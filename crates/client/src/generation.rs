//! A generation of a service, for programs that wait with blocking calls or with poll(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bindonce_core::name::Name;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::acceptor::{Ready, wait_readable, wait_readable_or_stop};
use crate::alone::{self, Alone};
use crate::blocking::Client;
use crate::claim::Claim;
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::membership::{ATTEMPT, FAREWELL, Membership, Stopped, after, is_over};
use crate::session::DEFAULT_TIMEOUT;
use crate::socket::default_socket;
use crate::verbs;

/// This process as one generation of a service. The broker keeps the order of the generations.
///
/// A generation's life, one call per step:
///
/// 1. [`join`](Self::join): the generation gets a [number](Self::number), which only grows.
/// 2. [`claim`](Self::claim) the listeners, and do the rest of the start. If the start fails here,
///    drop the generation: no other generation is disturbed, and the listeners that it created are
///    closed.
/// 3. [`ready`](Self::ready): the broker tells the older generation to retire. The call returns
///    when the older generation accepts no more; from then on only this process accepts.
/// 4. [`retired`](Self::retired): waits until a newer generation is ready.
/// 5. Stop accepting: drop every listener, then call [`stopped`](Self::stopped). The newer
///    generation waits for this call; the broker cuts off a generation that does not make it within
///    `retire_time` (5 seconds). If the newer generation has died meanwhile, the call returns
///    [`Stopped::Recalled`]: claim the listeners again and continue to serve.
/// 6. Finish the open connections ([`drain`](Self::drain) waits for them), then call
///    [`drained`](Self::drained).
///
/// If the process ends at any point, or drops this value, the broker treats the generation as
/// ended.
///
/// ```no_run
/// use bindonce::{Accepted, Generation, Stopped};
/// # fn answer(_: std::net::TcpStream) {}
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut generation = Generation::join(&"edge".parse()?)?;
/// loop {
///     let acceptor = generation.claim_one("web=0.0.0.0:8080")?.into_tcp_acceptor()?;
///     generation.ready(None)?;
///     loop {
///         match acceptor.accept_or_stop(&generation, None)? {
///             Accepted::Connection(stream, _) => answer(stream),
///             Accepted::Stopped if generation.has_retired()? => break,
///             Accepted::Stopped => {}
///         }
///     }
///     drop(acceptor);
///     match generation.stopped()? {
///         Stopped::Retired => break,
///         Stopped::Recalled => {} // the newer one has died: serve on
///     }
/// }
/// // ... finish what is connected ...
/// generation.drained();
/// # Ok(())
/// # }
/// ```
///
/// # No thread of its own
/// This type reads its connection only inside its own calls. So poll its descriptor ([`AsFd`])
/// together with your listeners, or let a thread of your own wait in [`retired`](Self::retired).
/// When the descriptor is readable, call [`has_retired`](Self::has_retired): it reads the broker's
/// messages without waiting.
///
/// # When the broker is lost
/// An upgrade of the broker in place goes unnoticed. If the broker is killed or restarted, this
/// process continues to serve. The calls above connect to the next broker as soon as it answers,
/// give the listeners back to it (for this the generation keeps descriptors of them until
/// `stopped`), and take the same place in the order, with the same number. Connecting and each
/// request of such an attempt take at most a second. A listener that the next broker does not take
/// back is left out, such as one whose UNIX path was removed: the broker's log and `list` name it.
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
    /// A timer, readable when there is work that the connection does not announce: a retry to
    /// connect is due, or this generation has been retired.
    due: OwnedFd,
    /// Whether `due` is set.
    is_set: bool,
    /// An epoll(7) instance that watches the connection and `due`: readable when either is.
    bell: OwnedFd,
}

impl Generation {
    /// Becomes the next generation of a service, at the broker's
    /// [default path](crate::default_socket).
    ///
    /// # Errors
    /// As [`join_at`](Self::join_at).
    pub fn join(service: &Name) -> Result<Self, Error> {
        Self::join_at(&default_socket(), service)
    }

    /// Joins, or works without a broker, for a program that is started in various ways. Takes the
    /// sockets that the starter passed (`LISTEN_FDS`: systemd, `bindonce run`, `bindonce exec`);
    /// else joins at the broker, as [`join`](Self::join) does; else, if no broker answers and no
    /// variable names one (see [`default_socket`](crate::default_socket)), binds sockets itself.
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
    pub fn join_or_bind(service: &Name) -> Result<Self, Error> {
        let path = default_socket();
        let mut generation = match Alone::passed()? {
            Some(passed) => Self::begin(&path, service, Some(passed))?,
            None => match Self::begin(&path, service, None) {
                Err(error) => Self::begin(&path, service, Some(Alone::instead(error)?))?,
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
    pub fn join_at(path: &Path, service: &Name) -> Result<Self, Error> {
        Self::begin(path, service, None)
    }

    fn begin(path: &Path, service: &Name, alone: Option<Alone>) -> Result<Self, Error> {
        let due =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).map_err(system)?;
        let bell = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system)?;
        watch(&bell, &due)?;
        let (client, membership) = if alone.is_some() {
            (None, Membership::alone(service, alone::number()))
        } else {
            let mut membership = Membership::new(service);
            let client = enter(Client::connect(path)?, &mut membership)?;
            watch(&bell, &client)?;
            (Some(client), membership)
        };
        let path = path.to_owned();
        Ok(Self { path, client, alone, tells: false, membership, due, is_set: false, bell })
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
    pub fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        if let Some(alone) = &mut self.alone {
            return alone.claim(claims);
        }
        let until = Instant::now() + DEFAULT_TIMEOUT;
        while self.client.is_none() {
            self.look()?;
            if self.client.is_none() && !wait_readable(&self.due, Some(until)).map_err(Error::Io)? {
                return Err(timed_out("claim", DEFAULT_TIMEOUT));
            }
        }
        let Some(client) = &mut self.client else {
            return Err(timed_out("claim", DEFAULT_TIMEOUT));
        };
        let leases = client.claim(&Membership::claims(claims));
        let leases = leases.inspect_err(|error| self.failed(error))?;
        self.membership.keep(&leases)?;
        self.look()?;
        Ok(leases)
    }

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an
    /// error and binds nothing.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[Claim::of_one(claim)?])?)
    }

    /// Reports that this generation is ready, and waits until it may accept. It may accept when the
    /// older generation has stopped, or when the broker's `retire_time` (5 seconds) has passed.
    /// From then on the claimed listeners stay. Without a deadline the wait has no limit. A
    /// generation that already serves returns at once.
    ///
    /// # Errors
    /// [`Error::Superseded`] if a newer generation is ready; [`Error::TimedOut`] when the deadline
    /// passes. After a timeout the call may be repeated, or the process may end: the older
    /// generation continues to serve. See [`Error`].
    pub fn ready(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        let begun = Instant::now();
        self.membership.ask_to_serve();
        self.say()?;
        loop {
            // Before the wait: a message that was read together with a reply no longer makes the
            // connection readable.
            self.look()?;
            if self.serves()? {
                return Ok(());
            }
            if !wait_readable(&self.bell, deadline).map_err(Error::Io)? {
                let waited = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(timed_out("ready", Duration::from_millis(waited)));
            }
        }
    }

    /// Whether this generation may accept now, for a program that must not block in
    /// [`ready`](Self::ready): call `ready` once with a deadline of now, and then this whenever the
    /// descriptor is readable.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    pub fn may_serve(&mut self) -> Result<bool, Error> {
        self.look()?;
        self.serves()
    }

    fn serves(&mut self) -> Result<bool, Error> {
        let serves = self.membership.may_serve()?;
        if serves && std::mem::take(&mut self.tells) {
            alone::tell_ready();
        }
        Ok(serves)
    }

    /// Waits until a newer generation is ready and this one must stop accepting. Returns false if
    /// the deadline passes first.
    ///
    /// # Errors
    /// [`Error::Refused`] if the broker was lost and the next one does not take this generation.
    /// The process may continue to serve, and the next call tries again; see [`Error`].
    pub fn retired(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        loop {
            if self.has_retired()? {
                return Ok(true);
            }
            if !wait_readable(&self.bell, deadline).map_err(Error::Io)? {
                return Ok(false);
            }
        }
    }

    /// Whether a newer generation is ready and this one must stop accepting. Does not wait, except
    /// that an attempt to reach the next broker may take a second for connecting and for each
    /// request.
    ///
    /// # Errors
    /// As [`retired`](Self::retired).
    pub fn has_retired(&mut self) -> Result<bool, Error> {
        if !self.is_to_stop() {
            self.look()?;
        }
        Ok(self.membership.is_retired())
    }

    /// Reports that this process accepts no more, whether or not it was told to retire. Drop every
    /// listener first: the broker now lets the newer generation accept. Returns
    /// [`Stopped::Retired`], or [`Stopped::Recalled`] if the newer generation has gone meanwhile.
    ///
    /// # Errors
    /// See [`Error`]. If the broker is lost, the call looks for the next one for at most 3 seconds.
    /// Finding none is no error: then no generation waits for this one.
    pub fn stopped(&mut self) -> Result<Stopped, Error> {
        self.membership.stop();
        if let Some(alone) = &mut self.alone {
            alone.stop();
            return Ok(self.membership.stopped());
        }
        let until = Instant::now() + FAREWELL;
        self.say()?;
        // An attempt that is due is made even if this process was stopped until then.
        let mut is_last = false;
        while self.client.is_none()
            && !is_last
            && wait_readable(&self.due, Some(until)).map_err(Error::Io)?
        {
            is_last = Instant::now() >= until;
            self.look()?;
        }
        let stopped = self.membership.stopped();
        // A message that was read together with the answer no longer makes the connection readable.
        self.look()?;
        Ok(stopped)
    }

    /// Waits until `finished` is readable. Returns false if the deadline passes first. Meanwhile it
    /// keeps this generation's place: if the broker is lost, the next broker and its `status` know
    /// that this generation drains. For `finished`, take one end of a socket pair or of a pipe, and
    /// give each connection's thread an [`Arc`](std::sync::Arc) of the other end: `finished`
    /// becomes readable when the last thread drops its `Arc`.
    ///
    /// # Errors
    /// [`Error::Io`] from poll(2).
    pub fn drain(&mut self, finished: impl AsFd, deadline: Option<Instant>) -> Result<bool, Error> {
        loop {
            match wait_readable_or_stop(&self.bell, &finished, deadline).map_err(Error::Io)? {
                Ready::Stop => return Ok(true),
                Ready::Deadline => return Ok(false),
                // A broker that refuses is asked again later; nothing else depends on it any more.
                Ready::Socket => drop(self.look()),
            }
        }
    }

    /// Ends this generation after its connections are finished. The same as dropping it.
    pub fn drained(self) {
        drop(self);
    }

    /// Reports this generation's state to the broker, if one is connected.
    fn say(&mut self) -> Result<(), Error> {
        let Some(client) = &mut self.client else { return Ok(()) };
        let told = client.ask(&verbs::enter(&self.membership.joining()));
        match told.and_then(|result| self.membership.joined(&result)) {
            Err(error) if is_over(&error) => {
                self.failed(&error);
                Ok(())
            }
            done => done,
        }
    }

    /// Reads the broker's messages, or tries to reach the next broker if a retry is due. Call this
    /// after every call on the connection, which may have read more than the reply.
    fn look(&mut self) -> Result<(), Error> {
        if self.client.is_none()
            && wait_readable(&self.due, Some(Instant::now())).map_err(Error::Io)?
        {
            match self.find_again() {
                Ok(client) => {
                    watch(&self.bell, &client)?;
                    self.client = Some(client);
                }
                Err(error) => {
                    let (wait, error) = after(error);
                    self.ring(Some(wait))?;
                    return error.map_or(Ok(()), Err);
                }
            }
        }
        // Also from the next broker: the message to retire may have come together with its reply.
        while let Some(client) = &mut self.client {
            match client.hear() {
                Ok(Some(notification)) => self.membership.notified(&notification),
                Ok(None) => break,
                // The next call of `look` tries to reach the next broker.
                Err(_) => return self.lose(),
            }
        }
        if self.is_to_stop() {
            self.ring(Some(Duration::ZERO))
        } else if self.is_set && self.client.is_some() {
            self.ring(None)
        } else {
            Ok(())
        }
    }

    fn find_again(&mut self) -> Result<Client, Error> {
        let mut client = Client::connect_within(&self.path, ATTEMPT)?;
        client.give_back(&self.membership.give(), || ATTEMPT)?;
        let mut client = enter(client, &mut self.membership)?;
        client.set_timeout(DEFAULT_TIMEOUT)?;
        Ok(client)
    }

    /// Drops the connection if this error has broken it.
    fn failed(&mut self, error: &Error) {
        if is_over(error) {
            // If the timer cannot be set, the next call that waits reports it.
            let _ = self.lose();
        }
    }

    /// Drops the broken connection and makes a retry due at once.
    fn lose(&mut self) -> Result<(), Error> {
        let Some(client) = self.client.take() else { return Ok(()) };
        // A forked child may still hold the connection; then closing it does not remove it from the
        // epoll set.
        epoll::delete(&self.bell, &client).map_err(system)?;
        self.ring(Some(Duration::ZERO))
    }

    /// Whether this generation was told to retire and has not reported that it stopped.
    fn is_to_stop(&self) -> bool {
        self.membership.is_retired() && !self.membership.is_over()
    }

    /// Makes `due` readable, for good, after this time; with None it is not readable.
    fn ring(&mut self, after: Option<Duration>) -> Result<(), Error> {
        // Zero would disarm the timer, so the shortest time is a nanosecond.
        let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let it_value =
            Timespec::try_from(after).map_err(|_| timed_out("reconnect", DEFAULT_TIMEOUT))?;
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.due, TimerfdTimerFlags::empty(), &once).map_err(system)?;
        self.is_set = !after.is_zero();
        Ok(())
    }
}

/// Readable when there is work for [`Generation::has_retired`]. The descriptor stays the same for
/// the life of this value.
impl AsFd for Generation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Adds a descriptor to the epoll set.
fn watch(bell: &OwnedFd, fd: impl AsFd) -> Result<(), Error> {
    epoll::add(bell, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(system)
}

fn system(error: rustix::io::Errno) -> Error {
    Error::Io(error.into())
}

/// Takes this generation's place in the order.
fn enter(mut client: Client, membership: &mut Membership) -> Result<Client, Error> {
    client.expect_notifications();
    let result = client.ask(&verbs::enter(&membership.joining()))?;
    membership.joined(&result)?;
    Ok(client)
}

fn timed_out(during: &'static str, after: Duration) -> Error {
    Error::TimedOut { during, after }
}
