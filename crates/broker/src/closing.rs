//! How sockets are closed: released, given up with a claim that failed, or at the end.

use bindonce_core::event::Kind;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::registry::{Action, Closing, ConnectionId, Event, Refusal};
use bindonce_observe::Happening;
use bindonce_sys::listen::{self, UnixPath};

use crate::socket::Socket;
use crate::state::{State, now};

/// More listeners than this that are opened or closed at once get one line in the log.
pub(crate) const LOGGED_ONE_BY_ONE: usize = 16;

impl State {
    /// Closes listeners; gives their names.
    pub(crate) fn release(
        &mut self,
        id: ConnectionId,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<String>, Refusal> {
        let mut outcome = Ok(Vec::new());
        let mut rest = Vec::new();
        for action in self.registry.on(now(), Event::Release(id, wanted)) {
            match action {
                Action::Released(_, names) => outcome = Ok(names),
                Action::Refuse(_, refusal) => outcome = Err(refusal),
                other => rest.push(other),
            }
        }
        self.perform(rest);
        outcome
    }

    /// Gives up every listener, and removes the UNIX paths: an orderly end. What a
    /// service manager keeps, or others use, stays as it is for the next broker.
    pub(crate) fn close_everything(&mut self) {
        if let Some(store) = &self.store {
            store.end();
        }
        let used = self.end_records();
        if self.store.is_none() && used.is_empty() {
            self.journal.remove();
        }
        for held in std::mem::take(&mut self.registry).into_held() {
            if self.store.is_none() && !used.contains(&held.opened.inode) {
                unlink(held.opened.handle.path.as_ref());
            }
        }
    }
}

impl State {
    /// Closes the sockets of every `Close`, and lets claims be tried again that have waited; other
    /// actions have been dealt with. A few closed sockets get a line each in the log, many that end
    /// for one reason get one line.
    pub(crate) fn perform(&self, actions: Vec<Action<Socket>>) {
        let mut closed: Vec<(Closing, Listener, u32)> = Vec::new();
        let mut decided = false;
        for action in actions {
            match action {
                Action::Close(socket, listener, why) => {
                    unlink(socket.path.as_ref());
                    let uid = socket.owned.as_ref().map_or(0, |owned| owned.uid);
                    closed.push((why, listener, uid));
                }
                Action::Retry(_) => decided = true,
                _ => {}
            }
        }
        if decided {
            self.decided.notify_waiters();
        }
        self.counts.borrow_mut().closed += closed.len() as u64;
        for group in closed.chunk_by(|one, other| one.0 == other.0) {
            match group {
                [(why, first, uid), .., (_, last, _)] if group.len() > LOGGED_ONE_BY_ONE => {
                    let (first, last) = (first.label(), last.label());
                    let (count, why) = (group.len(), reason(*why));
                    let Some(left_out) = self.worth_a_line(*uid, "closed") else { continue };
                    tracing::info!(first, last, count, why, left_out, "listeners closed");
                    let text = format!("{count} listeners closed, {first} to {last}: {why}");
                    self.journal.record(Happening::new(Kind::ListenerReleased, text));
                }
                few => {
                    few.iter().for_each(|(why, listener, uid)| self.closed(*why, listener, *uid));
                }
            }
        }
    }

    fn closed(&self, why: Closing, listener: &Listener, uid: u32) {
        let Some(left_out) = self.worth_a_line(uid, "closed") else { return };
        let (listener, reason) = (listener.label(), reason(why));
        match why {
            Closing::Replaced => {
                tracing::warn!(listener, why = reason, left_out, "listener closed");
            }
            _ => tracing::info!(listener, why = reason, left_out, "listener closed"),
        }
        let text = format!("{listener} closed: {reason}");
        self.journal.record(Happening::new(Kind::ListenerReleased, text));
    }
}

fn reason(why: Closing) -> &'static str {
    match why {
        Closing::Released => "released",
        Closing::Unconfirmed => "its claim was never confirmed",
        Closing::Replaced => "its socket was of no use any more, and another replaces it",
        Closing::NeverHeld => "the rest of its claim failed",
    }
}

/// Removes the file of a UNIX listener that is closed for good.
pub(crate) fn unlink(path: Option<&UnixPath>) {
    if let Some(path) = path
        && let Err(error) = listen::unlink_if_ours(path)
    {
        tracing::warn!(path = %path.path.display(), %error, "cannot remove a UNIX path");
    }
}
