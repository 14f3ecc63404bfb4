//! The loop's state for the master CLI.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::rc::Rc;

use bindonce_core::generation::{Caller, GenerationId};
use bindonce_core::time::Timestamp;
use bindonce_haproxy::config::{Command, MasterAddress, MasterSocket};
use bindonce_sys::clock;
use bindonce_sys::listen::Accounts;
use tokio::sync::oneshot;

use super::ask::{Seen, Startup};
use super::client::Hub;
use super::seats::Seats;
use super::sockets::Socket;
use crate::context::Context;
use crate::disk::saved::{Saved, SavedHistory};
use crate::disk::take_over::Inheritance;
use crate::error::Error;
use crate::generations::output::Tail;
use crate::passed::Passed;
use crate::settings::Settings;

/// The loop's state for the master CLI.
#[derive(Default)]
pub(crate) struct Master {
    pub(crate) sockets: Vec<Socket>,
    /// Sockets that still belong to the haproxy being replaced.
    late: Vec<MasterSocket>,
    /// The users and groups that the sockets name.
    accounts: Accounts,
    pub(crate) history: History,
    /// The service begins: its first start is no reload.
    pub(super) begins: bool,
    /// Clients that wait for the first start to end.
    pub(super) beginning: Vec<oneshot::Sender<Seen>>,
    hub: Option<(Hub, Rc<Seats>)>,
    /// The generation that failed, and its output.
    pub(crate) failing: Option<(GenerationId, Tail)>,
    /// Clients that wait for a reload, each with its startup messages.
    pub(super) waiting: HashMap<Caller, Rc<OnceCell<Startup>>>,
    /// The version seen last, in haproxy's notation.
    pub(super) release: String,
}

/// What the master CLI tells its clients about this process and its reloads.
#[derive(Default)]
pub(crate) struct History {
    /// When this process began.
    pub(super) began: Timestamp,
    /// Number of reloads, including failed ones.
    pub(crate) reloads: u64,
    /// Number of failed reloads since the last success.
    pub(super) failed: u64,
    /// The messages of the last reload, or of the start.
    pub(super) startup: Startup,
}

impl History {
    /// Continues the history of an earlier supervisor.
    fn resume(saved: &SavedHistory, same_process: bool) -> Self {
        Self {
            began: if same_process { Timestamp(saved.began) } else { clock::now() },
            reloads: saved.reloads,
            failed: saved.failed_reloads,
            startup: Startup::restored(saved.startup_logs.clone()),
        }
    }

    /// The form saved for the next supervisor.
    pub(crate) fn saved(&self) -> SavedHistory {
        SavedHistory {
            began: self.began.0,
            reloads: self.reloads,
            failed_reloads: self.failed,
            startup_logs: self.startup.text(),
        }
    }
}

impl Master {
    pub(crate) async fn open(
        settings: &Settings,
        saved: &Saved,
        left: &mut Inheritance,
        passed: &Passed,
    ) -> Result<Self, Error> {
        let mut accounts = Accounts::default();
        for wanted in &settings.master_cli {
            if let MasterAddress::Listen(listener) = &wanted.at
                && !left.master_cli.contains_key(&wanted.text)
            {
                accounts.add(&listener.options);
            }
        }
        // Off this thread: a name service may never answer.
        accounts.find().await;
        let (mut sockets, mut late) = (Vec::new(), Vec::new());
        let replaces = !settings.first.replaced.pids.is_empty();
        for wanted in &settings.master_cli {
            match Socket::open(wanted, &mut left.master_cli, passed, &accounts, replaces)? {
                Some(socket) => sockets.push(socket),
                None => late.push(wanted.clone()),
            }
        }
        let same_process = left.control.is_some() && saved.history.began > 0;
        let history = History::resume(&saved.history, same_process);
        Ok(Self { sockets, late, accounts, history, ..Self::default() })
    }

    /// The service begins: no earlier generation serves.
    pub(crate) fn begin(&mut self) {
        self.begins = true;
        (self.history.reloads, self.history.failed) = (0, 0);
    }

    /// The first socket that a command names and that this process does not have. Sockets are
    /// opened at its start alone.
    pub(crate) fn lacks<'a>(&self, command: &'a Command) -> Option<&'a OsString> {
        let has = |word: &OsString| {
            let mut known = self.sockets.iter().map(|socket| &socket.wanted).chain(&self.late);
            known.any(|known| *word == *known.text)
        };
        command.master_sockets.iter().find(|&word| !has(word))
    }

    /// Closes the connection opened in advance, because a generation ends or is about to.
    pub(crate) fn forget(&self) {
        self.hub.iter().for_each(|(hub, _)| hub.forget());
    }

    /// Serves all open sockets.
    pub(crate) fn serve(&mut self, cx: &Context) -> Result<(), Error> {
        let (hub, seats) = (Hub::new(cx.clone()), Rc::new(Seats::default()));
        self.sockets.iter().try_for_each(|socket| socket.serve(&hub, &seats))?;
        self.hub = Some((hub, seats));
        Ok(())
    }

    /// Binds and serves the sockets of the replaced haproxys.
    pub(crate) fn serve_late(&mut self, replaced: &[i32]) {
        let Some((hub, seats)) = &self.hub else { return };
        for wanted in std::mem::take(&mut self.late) {
            let taken = Socket::take(&wanted, &self.accounts, replaced).and_then(|socket| {
                socket.iter().try_for_each(|socket| socket.serve(hub, seats))?;
                Ok(socket)
            });
            match taken {
                Ok(socket) => self.sockets.extend(socket),
                Err(error) => {
                    let text =
                        "no master CLI here until a reload after the older haproxy has ended";
                    tracing::error!(address = wanted.text, "{text}: {error}");
                    self.late.push(wanted);
                }
            }
        }
    }
}
