//! The requests of master CLI clients to the loop, and its answers.

use std::collections::HashMap;
use std::path::PathBuf;

use bindonce_haproxy::cli::Version;
use bindonce_haproxy::cli::master::Processes;
use tokio::sync::oneshot;

use crate::generations::output::Tail;
use crate::generations::spares::Spares;

/// A client's request to the loop.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Asks for a [`Seen`].
    Look(oneshot::Sender<Seen>),
    /// The same, after the first start of the service has ended.
    Begun(oneshot::Sender<Seen>),
    /// Reload; with `hard`, older generations end at once.
    Reload { hard: bool, pid: Option<i32>, reply: oneshot::Sender<Reloaded> },
}

/// The processes and state that the master CLI shows.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(super) processes: Processes,
    /// The version of the serving haproxy.
    pub(super) version: Version,
    /// The route to each process.
    pub(super) routes: HashMap<i32, Route>,
    pub(super) startup: Startup,
}

/// The route to a generation.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// Its admin socket, if it accepts there.
    pub(super) socket: Option<PathBuf>,
    pub(super) spares: Spares,
}

/// The result of a reload.
#[derive(Debug)]
pub(crate) struct Reloaded {
    pub(super) success: bool,
    pub(super) startup: String,
}

/// The messages of the last start or reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Startup {
    pub(super) before: String,
    pub(super) tail: Option<Tail>,
    pub(super) after: String,
}

impl Startup {
    /// The messages that an earlier supervisor saved.
    pub(super) fn restored(text: String) -> Self {
        Self { before: text, tail: None, after: String::new() }
    }

    pub(crate) fn text(&self) -> String {
        let said = self.tail.as_ref().map(Tail::startup).unwrap_or_default();
        [self.before.as_str(), &said, &self.after].concat()
    }
}
