//! Idle connections of a generation that drains, closed after `--drain-idle`.
//!
//! At a soft stop haproxy closes the idle HTTP/1 connections itself, and answers with
//! `Connection: close` on the others. HTTP/2 connections are left: their clients got a GOAWAY and
//! may stay. With `close-spread-time` and `idle-close-on-response`, HTTP/1 connections are left
//! too. haproxy's CLI has no command that closes a connection, but it shows which are idle
//! (`show fd`). The supervisor ends the input of each of these, and haproxy then closes it as if
//! the client had.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_haproxy::cli::{Info, idle_connections, show_fds};
use bindonce_sys::{holders, silence, worker};

use crate::generations::admin::Admin;

/// Minimum and maximum time between two looks.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);
/// Number of connections that haproxy is asked about at once.
const AT_ONCE: usize = 64;
/// How long haproxy may take to report on these, and the supervisor to look at them.
const ANSWER: Duration = Duration::from_secs(5);

/// Closes the idle connections of one generation.
pub(crate) struct Closing {
    /// How long a connection must be idle. None: no connection is closed. It may be set later.
    after: Rc<Cell<Option<Duration>>>,
    /// When the generation had stopped accepting.
    begun: Instant,
    next: Instant,
}

impl Closing {
    /// Begins to count the time now.
    pub(crate) fn new(after: Rc<Cell<Option<Duration>>>) -> Self {
        let begun = Instant::now();
        Self { after, begun, next: begun }
    }

    /// Closes the connections that have been idle for long enough, if a look is due. Gives their
    /// number.
    ///
    /// # Errors
    /// `EPERM` without the right to trace haproxy. Then there is no further look.
    pub(crate) async fn look(&mut self, admin: &Admin, info: &Info, pid: i32) -> io::Result<u64> {
        let Some(after) = self.after.get() else { return Ok(0) };
        let now = Instant::now();
        if info.connections == 0 || now < self.begun + after || now < self.next {
            return Ok(0);
        }
        self.next = now + (after / 4).clamp(SHORTEST, LONGEST);
        let closed = self.close(admin, info, pid, after).await;
        if closed.is_err() {
            self.after = Rc::default();
        }
        closed
    }

    async fn close(
        &self,
        admin: &Admin,
        info: &Info,
        pid: i32,
        after: Duration,
    ) -> io::Result<u64> {
        let sockets = worker::within(ANSWER, move || holders::of_table(pid)).await?;
        let mut closed = 0;
        for some in sockets.chunks(AT_ONCE) {
            let some = some.to_vec();
            let silent = worker::within(ANSWER, move || silence::find(&some, after)).await??;
            if silent.is_empty() {
                continue;
            }
            // No descriptor is held meanwhile. If a number is another connection by then, nothing
            // is closed.
            let ask = show_fds(silent.iter().map(|one| one.fd));
            let Ok(answer) = admin.ask(ask, ANSWER).await else { break };
            let idle = idle_connections(&answer, info.version);
            for one in silent.iter().filter(|one| idle.contains(&one.fd)) {
                closed += u64::from(silence::end_input(one, after)?);
            }
        }
        Ok(closed)
    }
}
