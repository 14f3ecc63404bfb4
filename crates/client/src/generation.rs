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

/// This process as one generation of a service whose order the broker keeps.
///
/// The life of one, each step a call:
///
/// 1. [`join`](Self::join): it gets a [number](Self::number) that only grows.
/// 2. [`claim`](Self::claim): the listeners, and whatever else the start takes. If it fails
///    here, drop it: nobody was disturbed, and a listener that it created goes with it.
/// 3. [`ready`](Self::ready): the older generation is told to retire. This returns when that
///    one accepts no more: from here on this process accepts, alone.
/// 4. [`retired`](Self::retired): waits until a newer one is ready.
/// 5. Stop accepting (drop every listener), then say so: [`stopped`](Self::stopped). The newer one
///    waits for this; who does not say it within the broker's `retire_time` (5 seconds) is cut off.
///    Should the newer one have died meanwhile, this returns [`Stopped::Recalled`]: claim the
///    listeners again and serve on.
/// 6. Finish what is connected ([`drain`](Self::drain) waits for it), then [`drained`](Self::drained).
///
/// If the process ends at any point, or drops this, the broker takes that for the end of the
/// generation.
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
/// # No thread, and what follows from it
/// Nothing happens behind the caller's back: the connection is looked at only in calls of this
/// type. So wait for its descriptor ([`AsFd`]) beside your listeners, or have a thread of your own
/// wait in [`retired`](Self::retired). The descriptor becomes readable when there is something to
/// do, and [`has_retired`](Self::has_retired) does it, without waiting.
///
/// # When the broker is lost
/// An upgrade of the broker in place is not noticed. If the broker is killed or restarted, this process
/// serves on; the calls above connect to the next broker as soon as one answers, give back the
/// listeners (of which this keeps descriptors for the purpose, until `stopped`) and take the same place in
/// the order again, with the same number. An attempt takes a second at most.
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
    /// Readable when there is something to do that the connection does not tell of: when it is
    /// time to try again to connect, and once this is retired.
    due: OwnedFd,
    /// Whether `due` is set.
    is_set: bool,
    /// Watches the connection and `due` (epoll(7)): readable when one of them is.
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

    /// Whether no broker keeps the order of this generation; see [`join_or_bind`](Self::join_or_bind).
    pub fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Becomes the next generation of a service.
    ///
    /// # Errors
    /// [`Error::Connect`] without a broker; [`Error::Refused`] where the service is another user's
    /// or a supervisor's, or the broker is too old to keep an order; see [`Error`].
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
    pub fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        if let Some(alone) = &mut self.alone {
            return alone.claim(claims);
        }
        let until = Instant::now() + DEFAULT_TIMEOUT;
        while self.client.is_none() {
            self.look()?;
            if self.client.is_none() && !wait_readable(&self.due, Some(until)).map_err(Error::Io)? {
                return Err(timed_out("claim"));
            }
        }
        let Some(client) = &mut self.client else { return Err(timed_out("claim")) };
        let leases = client.claim(&Membership::claims(claims));
        let leases = leases.inspect_err(|error| self.failed(error))?;
        self.membership.keep(&leases)?;
        self.look()?;
        Ok(leases)
    }

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an error.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[claim.into()])?)
    }

    /// Says that this generation is ready, and waits until it may accept: until the older one
    /// accepts no more, which is as soon as that one has said so, or the broker's `retire_time`
    /// (5 seconds) has passed. From then on what was claimed is there to stay. With no deadline it waits for
    /// as long as that takes; one that serves already is told so at once.
    ///
    /// # Errors
    /// [`Error::Superseded`] if a newer generation is ready; [`Error::TimedOut`] when the deadline passes, after
    /// which the call may be made again, or the process may just end: the older one serves on. See [`Error`].
    pub fn ready(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        self.membership.ask_to_serve();
        self.say()?;
        loop {
            // Before the wait: what came together with a reply does not make the connection readable.
            self.look()?;
            if self.serves()? {
                return Ok(());
            }
            if !wait_readable(&self.bell, deadline).map_err(Error::Io)? {
                return Err(timed_out("ready"));
            }
        }
    }

    /// Whether this generation may accept by now, for a program that does not wait in [`ready`](Self::ready): it calls that
    /// with a deadline of now, and this whenever the descriptor is readable.
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

    /// Waits until a newer generation is ready, and this one must stop accepting; false if the
    /// deadline passes before.
    ///
    /// # Errors
    /// Those of the next broker, where this one was lost and the next does not take this generation
    /// ([`Error::Refused`]). The process may serve on, and the next call tries again; see [`Error`].
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

    /// Whether a newer generation is ready, and this one must stop accepting. Does not wait,
    /// except that an attempt to reach the next broker may take a second.
    ///
    /// # Errors
    /// As [`retired`](Self::retired).
    pub fn has_retired(&mut self) -> Result<bool, Error> {
        if !self.is_to_stop() {
            self.look()?;
        }
        Ok(self.membership.is_retired())
    }

    /// Says that this process accepts no more, whether it was told to or not: every listener has
    /// been dropped. The newer generation is let in at this, and it is [`Stopped::Retired`]; if
    /// that one has gone meanwhile, it was [`Stopped::Recalled`].
    ///
    /// # Errors
    /// See [`Error`]. If the broker is lost meanwhile the next one is sought for at most 3 seconds,
    /// and that none is found is no error: nobody waits for this generation then.
    pub fn stopped(&mut self) -> Result<Stopped, Error> {
        self.membership.stop();
        if let Some(alone) = &mut self.alone {
            alone.stop();
            return Ok(self.membership.stopped());
        }
        let until = Instant::now() + FAREWELL;
        self.say()?;
        while self.client.is_none()
            && wait_readable(&self.due, Some(until)).map_err(Error::Io)?
            && Instant::now() < until
        {
            self.look()?;
        }
        let stopped = self.membership.stopped();
        // What came with the answer does not make the connection readable.
        self.look()?;
        Ok(stopped)
    }

    /// Waits until `finished` is readable, and meanwhile keeps this generation's place: should the broker be lost, the
    /// next one, and its `status`, know of a generation that drains. False if the deadline passes before. For
    /// `finished` take one end of a pair of connected sockets or of a pipe, and give each connection's thread an
    /// [`Arc`](std::sync::Arc) of the other end: when the last one drops it, all is finished.
    ///
    /// # Errors
    /// [`Error::Io`] of poll(2).
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

    /// Ends this generation: what was connected is finished. The same as dropping it.
    pub fn drained(self) {
        drop(self);
    }

    /// Says to the broker where this generation is, if there is a broker.
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

    /// Looks at what the broker has said, or for the next broker if it is time. After every call on
    /// the connection, which may have read more than the reply.
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
        // Of the next broker as well: the word to retire may have come together with its reply.
        while let Some(client) = &mut self.client {
            match client.hear() {
                Ok(Some(notification)) => self.membership.heard(&notification),
                Ok(None) => break,
                // The next look is for the next broker.
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
        client.store(&self.membership.give())?;
        let mut client = enter(client, &mut self.membership)?;
        client.set_timeout(DEFAULT_TIMEOUT)?;
        Ok(client)
    }

    /// After an error: the connection may be of no use any more.
    fn failed(&mut self, error: &Error) {
        if is_over(error) {
            // If the clock cannot be set, the next call that waits says so.
            let _ = self.lose();
        }
    }

    /// The connection is of no use any more: it is time to look for the next broker.
    fn lose(&mut self) -> Result<(), Error> {
        let Some(client) = self.client.take() else { return Ok(()) };
        // A process that was forked may have it still, and then closing it does not take it out.
        epoll::delete(&self.bell, &client).map_err(system)?;
        self.ring(Some(Duration::ZERO))
    }

    /// Whether it was told to retire and has not said that it stopped.
    fn is_to_stop(&self) -> bool {
        self.membership.is_retired() && !self.membership.is_over()
    }

    /// Makes `due` readable after this time, for good; with none it is not readable.
    fn ring(&mut self, after: Option<Duration>) -> Result<(), Error> {
        // A time of zero disarms it.
        let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let it_value = Timespec::try_from(after).map_err(|_| timed_out("reconnect"))?;
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.due, TimerfdTimerFlags::empty(), &once).map_err(system)?;
        self.is_set = !after.is_zero();
        Ok(())
    }
}

/// Readable when there is something to do: [`Generation::has_retired`] does it. The same descriptor for the life of
/// this handle.
impl AsFd for Generation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Has the bell ring when this is readable.
fn watch(bell: &OwnedFd, fd: impl AsFd) -> Result<(), Error> {
    epoll::add(bell, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(system)
}

fn system(error: rustix::io::Errno) -> Error {
    Error::Io(error.into())
}

/// Takes its place in the order.
fn enter(mut client: Client, membership: &mut Membership) -> Result<Client, Error> {
    client.expect_notifications();
    let result = client.ask(&verbs::enter(&membership.joining()))?;
    membership.joined(&result)?;
    Ok(client)
}

fn timed_out(during: &'static str) -> Error {
    Error::TimedOut { during, after: DEFAULT_TIMEOUT }
}
