//! `bindonce upgrade --name SERVICE`: this process becomes the new binary, in place.
//!
//! The pid stays the same, so that every generation stays our child. The control socket, the admin
//! connections, the listeners and the generations' standard error stay open; the rest comes from
//! the saved state, as after a crash. The signal mask stays too, so signals sent meanwhile wait.

use std::collections::btree_map::Entry;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use bindonce_core::event;
use bindonce_daemon::Happening;
use bindonce_daemon::reexec::{self, Installed};

use crate::disk::saved::{self, Inherited, Saved};
use crate::generations::admin::Admin;
use crate::message::Message;
use crate::supervisor::Supervisor;

/// The hidden subcommand by which a binary proves that it reads the state.
pub const CHECK: &str = "__check-state";

/// How long the new binary may take to prove it.
const PROOF: Duration = Duration::from_secs(5);
/// How long each admin connection may take to become quiet.
const QUIET: Duration = Duration::from_secs(1);

/// Checks the saved state `text` from `path`, for [`CHECK`]. Returns the answer for standard
/// output.
///
/// # Errors
/// What is wrong with the state.
pub fn check(path: &std::path::Path, text: &[u8]) -> Result<String, crate::error::Error> {
    let saved = saved::parse(path, text)?;
    Ok(reexec::answer(saved.generations.len(), text))
}

impl Supervisor {
    /// Called when the loop has nothing to do: begins a requested upgrade.
    pub(crate) fn maybe_upgrade(&mut self) {
        let waited_for =
            !self.requests.retirements.is_empty() || self.timeline.reloads_waiting() > 0;
        let busy = !self.timeline.is_idle() || waited_for;
        if busy || !self.upgrade.begin() {
            return;
        }
        let saved = self.saved(None);
        let cx = self.cx.clone();
        let admins: Vec<_> = self
            .generations
            .iter_mut()
            .flat_map(|generation| {
                // No question may be in progress when the connections change hands.
                generation.tasks.end();
                generation.cli.all()
            })
            .collect();
        crate::tasks::spawn(async move {
            let proved = prove(&saved).await;
            for admin in admins {
                // Either answered, or so slow that the next image will get no answer either.
                let _ = admin.info(QUIET).await;
            }
            cx.send(Message::Proved(proved));
        });
    }

    /// Becomes the new binary if it has proved itself; else reports the failure.
    pub(crate) fn upgrade_now(&mut self, proved: Result<Installed, String>) {
        let Some(reply) = self.upgrade.end() else { return };
        let error = match proved {
            Ok(binary) => self.become_binary(&binary),
            Err(story) => story,
        };
        tracing::error!("upgrade failed, nothing has changed: {error}");
        let text = format!("nothing has changed: {error}");
        self.cx.journal.record(Happening::new(event::Kind::UpgradeFailed, text));
        let _ = reply.send(Err(reexec::failed(&error)));
        self.save();
        for id in self.draining() {
            self.watch_stop(id);
        }
    }

    /// The descriptors for the new binary, by number. They are `copies`, so that a failed exec
    /// leaves everything here unchanged.
    fn inherited(&self, copies: &mut Vec<OwnedFd>) -> Result<Inherited, String> {
        let (pid, start_time) = reexec::this_process();
        let pid = pid.cast_signed();
        let mut inherited = Inherited { pid, start_time, ..Inherited::default() };
        let mut leave = |fd: OwnedFd| {
            let number = fd.as_raw_fd();
            copies.push(fd);
            number
        };
        let lost = |what: &'static str| move |error| format!("{what} cannot be kept: {error}");
        let control = self.upgrade.control.try_clone().map_err(lost("the control socket"))?;
        inherited.control = leave(control);
        for socket in &self.master.sockets {
            let fd = socket.fd.try_clone().map_err(lost("a socket of the master CLI"))?;
            inherited.master_cli.insert(socket.wanted.text.clone(), leave(fd));
        }
        for (number, fd) in self.cx.passed.descriptors() {
            let fd = fd.try_clone().map_err(lost("an inherited descriptor"))?;
            inherited.passed.insert(number, leave(fd));
        }
        for generation in self.generations.iter() {
            let id = generation.id;
            if let Some(calls) = &generation.own.intercept {
                inherited.calls.insert(id.0, calls.unanswered());
                let fd = calls.as_fd().try_clone_to_owned();
                let fd = fd.map_err(lost("an intercepted program"))?;
                inherited.intercept.insert(id.0, leave(fd));
            }
            // The broker may not answer the new image for a while.
            let listeners = generation.listeners.iter();
            inherited.listeners.insert(id.0, listeners.map(|held| held.saved()).collect());
            for held in &generation.listeners {
                if let Entry::Vacant(place) = inherited.sockets.entry(held.inode)
                    && let Ok(copy) = held.fd.try_clone()
                {
                    place.insert(leave(copy));
                }
            }
            let admin = generation.cli.admin.as_ref().and_then(Admin::connection);
            inherited.admin.extend(admin.map(|fd| (id.0, leave(fd))));
            let spares = generation.cli.spares.connections();
            let spares = spares.into_iter().map(|(level, fd)| (level, leave(fd)));
            inherited.spares.insert(id.0, spares.collect());
            if let Some(pipe) = &generation.output.pipe
                && let Ok(pipe) = pipe.try_clone()
            {
                inherited.stderr.insert(id.0, leave(pipe));
            }
        }
        Ok(inherited)
    }

    /// Executes the binary. Returns only on failure, with the reason.
    fn become_binary(&mut self, binary: &Installed) -> String {
        let mut copies = Vec::new();
        let inherited = match self.inherited(&mut copies) {
            Ok(inherited) => inherited,
            Err(error) => return error,
        };
        let _left = match reexec::leave(copies.iter().map(|copy| copy.as_fd())) {
            Ok(left) => left,
            Err(error) => return format!("descriptors cannot be kept: {error}"),
        };
        self.upgrade.count += 1;
        let saved = self.saved(Some(inherited));
        let error = match self.cx.directory.save(saved) {
            Ok(()) => {
                tracing::info!(binary = %binary.path().display(), "becoming the new binary");
                binary.take_over(None)
            }
            Err(error) => error,
        };
        self.upgrade.count -= 1;
        format!("{} cannot take over: {error}", binary.path().display())
    }
}

/// Opens the installed binary, and lets a child process prove that it reads the state.
async fn prove(saved: &Saved) -> Result<Installed, String> {
    let binary = Installed::open()?;
    let state = serde_json::to_vec(saved).map_err(|error| error.to_string())?;
    // The child's standard input.
    let arguments = vec![CHECK.into(), "/proc/self/fd/0".into()];
    binary.prove(arguments, saved.generations.len(), &state, PROOF).await?;
    Ok(binary)
}
