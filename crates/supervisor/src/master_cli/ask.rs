//! What the clients of the master CLI ask the loop, and what it answers.

use std::collections::HashMap;
use std::path::PathBuf;

use bindonce_haproxy::cli::Version;
use bindonce_haproxy::cli::master::Processes;
use tokio::sync::oneshot;

use crate::generations::output::Tail;
use crate::generations::spares::Spares;

/// What a client wants of the loop.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Tell what there is.
    Look(oneshot::Sender<Seen>),
    /// The same, when the first start of the service has ended.
    Begun(oneshot::Sender<Seen>),
    /// Reload; older generations end at once if it is `hard`.
    Reload { hard: bool, pid: Option<i32>, reply: oneshot::Sender<Reloaded> },
}

/// What there is.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(super) processes: Processes,
    /// Of the haproxy that serves.
    pub(super) version: Version,
    /// How to reach each process.
    pub(super) routes: HashMap<i32, Route>,
    pub(super) startup: Startup,
}

/// How to reach a generation.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// Its admin socket, if it accepts there.
    pub(super) socket: Option<PathBuf>,
    pub(super) spares: Spares,
}

/// What came of a reload.
#[derive(Debug)]
pub(crate) struct Reloaded {
    pub(super) success: bool,
    pub(super) startup: String,
}

/// What was said at the last start or reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Startup {
    pub(super) before: String,
    pub(super) tail: Option<Tail>,
    pub(super) after: String,
}

impl Startup {
    /// What an earlier supervisor has kept.
    pub(super) fn said(text: String) -> Self {
        Self { before: text, tail: None, after: String::new() }
    }

    pub(crate) fn text(&self) -> String {
        let said = self.tail.as_ref().map(Tail::startup).unwrap_or_default();
        [self.before.as_str(), &said, &self.after].concat()
    }
}
