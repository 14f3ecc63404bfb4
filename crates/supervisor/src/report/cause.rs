//! Why a generation failed: as text for the client, the log and the next status, and as one word
//! for metrics.

use bindonce_core::generation::Failure;

/// Why a generation failed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cause {
    /// The failure in one sentence.
    pub(crate) text: String,
    /// The last lines of the ended program. They were already passed on to our standard error.
    pub(crate) words: String,
    /// The remedy, where more is needed than correcting the configuration.
    pub(crate) hint: Option<String>,
    /// The supervisor ended the generation, for this reason.
    pub(crate) ours: bool,
    /// haproxy itself reported it, also on standard error.
    pub(crate) in_its_words: bool,
    /// An intercepted program has not listened on an intercepted address.
    pub(crate) unseen: Option<Unseen>,
}

/// The hint for a process that SIGKILL does not end.
pub(crate) fn does_not_end(pid: i32) -> String {
    format!(
        "see what it waits for (`cat /proc/{pid}/stack`: a disk or a network file system, say), or whether its cgroup \
         is frozen; it ends by itself when that is over"
    )
}

impl Cause {
    pub(crate) fn new(text: String, hint: Option<String>) -> Self {
        Self { text, words: String::new(), hint, ours: false, in_its_words: false, unseen: None }
    }

    /// The failure and the program's own lines, for a reader who sees no log.
    pub(crate) fn with_words(&self) -> String {
        match self.words.as_str() {
            "" => self.text.clone(),
            words => format!("{}:\n{words}", self.text),
        }
    }

    /// The message with its hint, for a reader who sees only text.
    pub(crate) fn whole(&self) -> String {
        self.hinted(self.with_words())
    }

    /// The same for a reader of our standard error, which already has the program's own lines.
    pub(crate) fn below_its_words(&self) -> String {
        self.hinted(match self.words.as_str() {
            "" => self.text.clone(),
            _ => format!("{}; its own message is above", self.text),
        })
    }

    fn hinted(&self, text: String) -> String {
        match &self.hint {
            Some(hint) => format!("{text}\nhint: {hint}"),
            None => text,
        }
    }
}

/// Why nothing shows when an intercepted program is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// It has bound no intercepted address.
    Bind,
    /// It has bound one, but has not called listen(2) on it.
    Listen,
}

impl Unseen {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Bind => "it has listened on nothing that is intercepted",
            Self::Listen => "it has bound what is intercepted, and not called listen(2) on it",
        }
    }

    /// The remedy.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Bind => {
                "a port that the kernel chooses (port 0) is not intercepted, nor an address that --intercept does not name. Give the \
                 program an address with a fixed port; if --intercept has addresses, name it there. If the program never binds one, \
                 add --ready-check or --ready-delay. If it binds late, raise --ready-timeout"
            }
            Self::Listen => {
                "the broker's socket already listens, so a program that looks may never call listen(2), as haproxy. Let it send READY=1 \
                 (haproxy -Ws does), or add --ready-check or --ready-delay. If it listens late, raise --ready-timeout"
            }
        }
    }
}

/// The remedy where haproxy says that its configuration has nothing to listen on.
pub(crate) fn nothing_to_listen_on(words: &str) -> Option<String> {
    words.contains("No enabled listener found").then(|| {
        "nothing in the files of -f is there for clients to connect to: add a `bind` line to a frontend or a listen \
         section, name the file that has one with another -f, or see whether `disabled` or an `.if` takes it out"
            .to_owned()
    })
}

/// Why a generation failed, as one word, also for metrics.
pub(crate) fn word(failure: Failure) -> &'static str {
    match failure {
        Failure::NotStarted => "not-started",
        Failure::Exited => "exited",
        Failure::NotReady => "not-ready",
        Failure::DiedInHandover => "died-in-handover",
        Failure::StoppedInHandover => "stopped-in-handover",
    }
}
