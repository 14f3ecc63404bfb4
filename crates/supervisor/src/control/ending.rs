//! How a supervisor ends: what the timeline has decided, and by which signal it was told to.

use bindonce_core::generation::Ending;
use bindonce_sys::signals::Signal;

use crate::report::cause::Cause;

/// How a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and every generation is gone.
    Shutdown,
    /// The same, by a signal that ends it at once.
    AtOnce {
        /// The signal.
        signal: Signal,
        /// Whether haproxy would have a master.
        is_master: bool,
    },
    /// The first generation failed.
    NeverServed {
        /// Why.
        story: String,
        /// Whether haproxy has said it on standard error.
        in_its_words: bool,
    },
}

/// How a supervisor is about to end.
#[derive(Default)]
pub(crate) struct End {
    /// What the timeline has decided: it has nothing left to do.
    pub(crate) decided: Option<Ending>,
    /// The signal that ends it at once, and whether haproxy would have a master.
    by: Option<(Signal, bool)>,
}

impl End {
    /// This signal ends it at once; the first one counts.
    pub(crate) fn at_once(&mut self, signal: Signal, is_master: bool) {
        self.by.get_or_insert((signal, is_master));
    }

    /// How it ends; with why the last generation failed.
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
