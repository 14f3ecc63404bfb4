//! How a supervisor ends: the timeline's decision, and the signal that asked for it.

use bindonce_core::generation::Ending;
use bindonce_sys::signals::Signal;
use tokio::sync::oneshot;

use crate::control::Answer;
use crate::report::cause::Cause;

/// How a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to shut down, and every generation is gone, or left to the next supervisor.
    Shutdown,
    /// The same, by a signal that ends the supervisor at once.
    AtOnce {
        /// The signal.
        signal: Signal,
        /// Whether haproxy would run with a master.
        is_master: bool,
    },
    /// The first generation failed.
    NeverServed {
        /// The reason.
        story: String,
        /// Whether haproxy itself wrote the reason to standard error.
        in_its_words: bool,
    },
}

/// The planned end of a supervisor.
#[derive(Default)]
pub(crate) struct End {
    /// The timeline's decision that nothing is left to do.
    pub(crate) decided: Option<Ending>,
    /// The next supervisor takes over what drains. It waits for the end of this connection.
    pub(crate) leaves: Option<oneshot::Sender<Answer>>,
    /// Others that wait for the end.
    pub(crate) asked: Vec<oneshot::Sender<Answer>>,
    /// The signal that ends the supervisor at once, and whether haproxy would run with a master.
    by: Option<(Signal, bool)>,
}

impl End {
    /// Notes the signal that ends the supervisor at once; the first one counts.
    pub(crate) fn at_once(&mut self, signal: Signal, is_master: bool) {
        self.by.get_or_insert((signal, is_master));
    }

    /// Whether a signal ends the supervisor at once.
    pub(crate) fn is_at_once(&self) -> bool {
        self.by.is_some()
    }

    /// The kind of end. `failure` is why the last generation failed.
    pub(crate) fn how(&self, ending: Ending, failure: &Cause) -> Ended {
        match (ending, self.by) {
            (Ending::Shutdown, None) => Ended::Shutdown,
            (Ending::Shutdown, Some((signal, is_master))) => Ended::AtOnce { signal, is_master },
            (Ending::NeverServed, _) => {
                let in_its_words = failure.in_its_words;
                Ended::NeverServed { story: failure.below_its_words(), in_its_words }
            }
        }
    }
}
