//! `bindonce upgrade --name SERVICE`: this process becomes the new binary, in place.
//!
//! The pid stays the same, so that every generation stays our child. The control socket, the admin
//! connections, the listeners and the generations' standard error stay open; the rest comes from
//! the saved state, as after a crash. The signal mask stays too, so signals sent meanwhile wait.
//!
//! No request is lost. The steps are: the new binary proves in a child that it reads the state and
//! this process's command line; no more clients are accepted, and those that were can send their
//! requests; no message waits for the loop. If by then something is in progress, or the state is not
//! the one that the binary has read, the upgrade begins again when that is over. From the last check
//! to the exec nothing else runs.

use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::name::Name;
use bindonce_daemon::reexec::{self, Installed};
use bindonce_daemon::{Happening, state};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::control::Answer;
use crate::control::upgrades::ProvedBinary;
use crate::disk::directory::STATE;
use crate::disk::place::service_directory;
use crate::disk::saved::{self, Inherited, Saved};
use crate::error::Error;
use crate::generations::admin::Admin;
use crate::handover::compare;
use crate::message::Message;
use crate::settings::Settings;
use crate::supervisor::Supervisor;

/// The hidden subcommand by which a binary proves that it reads the state, and the command line
/// that follows.
pub const CHECK: &str = "__check-state";

/// How long the new binary may take to prove it.
const PROOF: Duration = Duration::from_secs(10);
/// How long each admin connection may take to become quiet.
const QUIET: Duration = Duration::from_secs(1);
/// How long a client that was accepted may take to send its request. No event shows that it will
/// send none: a connection may stay open for its next request. Such a connection ends at the exec.
const LAST_CALL: Duration = Duration::from_millis(100);

/// Checks the saved state `text` from `path`, for [`CHECK`], and that a supervisor with these
/// settings could begin with it. Returns the answer for standard output.
///
/// # Errors
/// What is wrong with the state or the settings.
pub fn check(path: &Path, text: &[u8], settings: Option<&Settings>) -> Result<String, Error> {
    let saved = saved::parse(path, text)?;
    if let Some(haproxy) = settings.and_then(|settings| settings.kind.haproxy()) {
        haproxy.version()?;
        saved.caller.clone().map(|caller| haproxy.of(caller)).transpose()?;
    }
    Ok(reexec::answer(saved.generations.len(), text))
}

/// Whether this process supervises the service already, and has just become another binary. What
/// its command line says about a start is done then.
pub fn is_next_image(socket: &Path, service: &Name) -> bool {
    let path = service_directory(socket, service).join(STATE);
    let text = state::read(&path, state::LARGEST).ok().flatten();
    let saved = text.and_then(|text| saved::parse(&path, &text).ok());
    saved.and_then(|saved| saved.inherited).is_some_and(|left| left.is_ours())
}

impl Supervisor {
    /// Called when no message waits for the loop: begins a requested upgrade when nothing else is
    /// in progress, and completes it.
    pub(crate) fn maybe_upgrade(&mut self) {
        if let Some(proved) = self.upgrade.ready.take() {
            self.upgrade_now(&proved);
        }
        if self.is_busy() || !self.upgrade.begin() {
            return;
        }
        let (cx, state) = (self.cx.clone(), self.saved(None));
        crate::tasks::spawn(async move { cx.send(Message::Proved(prove(state).await)) });
    }

    /// A client wants this process to become the installed binary.
    pub(crate) fn want_upgrade(&mut self, reply: oneshot::Sender<Answer>) {
        self.upgrade.want(reply);
        if self.timeline.is_shutting_down() {
            self.refuse_upgrade();
        }
    }

    /// Answers the clients that wait for an upgrade, because the supervisor ends.
    pub(crate) fn refuse_upgrade(&mut self) {
        let text = "not upgraded: the supervisor is ending";
        let hint = "its next start, with `bindonce run`, runs the installed binary";
        let error = RpcError::new(ErrorCode::UPGRADE_FAILED, text).with_hint(hint);
        self.upgrade.refuse(&Err(error));
    }

    /// Whether something is in progress that the next image would not end. While nothing serves, a
    /// start is planned, of which the next image would not know.
    fn is_busy(&self) -> bool {
        !self.timeline.is_idle()
            || self.timeline.serving().is_none()
            || self.timeline.reloads_waiting() > 0
            || self.requests.some_wait()
    }

    /// Whether the upgrade is still wanted, and the next image would find the state that its binary
    /// has read, and nothing else.
    fn is_as_proved(&self, proved: &ProvedBinary) -> bool {
        self.upgrade.is_wanted() && !self.is_busy() && self.saved(None) == proved.state
    }

    /// The installed binary has proved itself, or has not.
    pub(crate) fn binary_proved(&mut self, proved: Result<Box<ProvedBinary>, String>) {
        match proved {
            Ok(proved) if self.is_as_proved(&proved) => self.become_quiet(proved),
            Ok(_) => self.put_off_upgrade(),
            Err(story) => self.upgrade_failed(&story),
        }
    }

    /// Accepts no more clients, and ends the tasks that ask generations: no question may be in
    /// progress when the connections change hands. From here on [`Self::go_on`] is needed where
    /// there is no exec.
    fn become_quiet(&mut self, proved: Box<ProvedBinary>) {
        tracing::info!(binary = %proved.binary.path().display(), "the binary has proved itself");
        self.cx.gate.close();
        let serving = self.timeline.serving().and_then(|id| self.generations.get(&id));
        let resuming = serving.filter(|one| one.tasks.ask_whether_it_resumed());
        self.upgrade.resuming = resuming.map(|one| one.id);
        let mut admins = Vec::new();
        for generation in self.generations.iter_mut() {
            generation.tasks.end();
            admins.extend(generation.cli.all());
        }
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            tokio::time::sleep(LAST_CALL).await;
            let mut asked = JoinSet::new();
            for admin in admins {
                // Either answered, or so slow that the next image will get no answer either.
                asked.spawn_local(async move { drop(admin.info(QUIET).await) });
            }
            while asked.join_next().await.is_some() {}
            cx.send(Message::Quiet(proved));
        });
    }

    /// Becomes the new binary, if the supervisor is still as it was when the binary proved itself.
    /// Returns only if there was no exec.
    fn upgrade_now(&mut self, proved: &ProvedBinary) {
        if self.is_as_proved(proved) {
            let error = self.become_binary(&proved.binary);
            self.upgrade_failed(&error);
        } else {
            self.put_off_upgrade();
        }
        self.go_on();
    }

    /// A request came before the exec, or a generation has changed. The upgrade begins again when
    /// that is over, with another proof.
    fn put_off_upgrade(&mut self) {
        if self.upgrade.is_wanted() {
            tracing::info!("the upgrade begins again: something has changed since the proof");
        }
        self.upgrade.put_off();
    }

    fn upgrade_failed(&mut self, error: &str) {
        self.upgrade.put_off();
        if !self.upgrade.is_wanted() {
            return;
        }
        tracing::error!("upgrade failed, nothing has changed: {error}");
        let text = format!("nothing has changed: {error}");
        self.cx.journal.record(Happening::new(event::Kind::UpgradeFailed, text));
        self.upgrade.refuse(&Err(reexec::failed(error)));
        self.save();
    }

    /// Accepts clients again, and begins the tasks again that were ended for the exec, except where
    /// another task was begun since.
    fn go_on(&mut self) {
        self.cx.gate.open();
        let ended = self.generations.iter().filter(|one| !one.tasks.are_begun());
        let ended: Vec<_> = ended.map(|one| one.id).collect();
        for id in ended {
            self.watch(id);
        }
        if let Some(id) = self.upgrade.resuming.take()
            && self.timeline.serving() == Some(id)
            && let Some(generation) = self.generations.get_mut(&id)
        {
            compare::watch_resumed(&self.cx, generation);
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
        let control = self.control.socket.try_clone().map_err(lost("the control socket"))?;
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

/// Opens the installed binary, and lets a child process prove that it can take over.
async fn prove(state: Saved) -> Result<Box<ProvedBinary>, String> {
    let binary = Installed::open()?;
    let text = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
    // The child's standard input, and the command line that the next image has. A binary of before
    // reads the state alone.
    let arguments = [CHECK, "/proc/self/fd/0"].map(OsString::from).into_iter();
    let arguments = arguments.chain(std::env::args_os()).collect();
    binary.prove(arguments, state.generations.len(), &text, PROOF).await?;
    Ok(Box::new(ProvedBinary { binary, state }))
}
