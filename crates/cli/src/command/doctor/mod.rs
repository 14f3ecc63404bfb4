//! `bindonce doctor`: why clients see 503 or hang, on any host, in one screen.
//!
//! It only reads: the kernel's sock_diag and /proc in every network namespace that it may
//! enter, the broker if there is one, and the stats sockets of running haproxies.
//! What is wrong is decided in `bindonce_core::diagnosis`.

mod broker;
mod haproxy;
mod json;
mod look;
mod process;
mod target;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bindonce_core::diagnosis::{self, Facts, Finding, Look, Severity};

use crate::Globals;
use look::Observer;
use target::Target;

/// Find out why clients fail or hang, and say what to do about it
///
/// Reads sockets, processes and limits; changes nothing. Works with or without a broker, and
/// as root sees every process. Exits with 0 if all is well, with 3 if something was found,
/// with 1 if it could not look.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = crate::help::DOCTOR)]
pub(crate) struct Args {
    /// Only what concerns this address (as 80 or 10.0.0.1:443), service or listener
    #[arg(value_name = "ADDRESS|SERVICE")]
    target: Option<String>,
    /// Print findings and everything that was seen as JSON
    #[arg(long)]
    json: bool,
}

/// The exit code that says that something was found.
const FOUND: u8 = 3;

/// Looks, once or twice, and prints what is wrong.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { target, json } = args;
    let examined = Examination::of(target.as_deref(), globals.socket_path())?;
    if json {
        let value = examined.json();
        super::print_json(&serde_json::to_string_pretty(&value)?)?;
    } else {
        super::print(&examined.text())?;
    }
    Ok(if examined.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// What was seen, and what is wrong.
#[derive(Debug)]
pub(crate) struct Examination {
    look: Look,
    found: Vec<Finding>,
    target: Option<Target>,
    spent: Duration,
}

impl Examination {
    /// Looks at everything, and keeps what concerns `target`. A broker may listen at `socket`.
    pub(crate) fn of(target: Option<&str>, socket: PathBuf) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut observer = Observer::new(socket);
        let mut facts = Facts { earlier: None, now: observer.look()? };
        if let Some(interval) = diagnosis::look_again(&facts.now) {
            wait(interval);
            let earlier = std::mem::replace(&mut facts.now, observer.look()?);
            facts.earlier = Some(earlier);
        }
        let found = diagnosis::diagnose(&facts);
        observer.ask_more(&mut facts.now, &found);
        let target = target.map(|text| Target::find(text, &facts.now)).transpose()?;
        let mut found = diagnosis::diagnose(&facts);
        if let Some(target) = &target {
            found.retain(|finding| target.concerns(finding, &facts.now));
            found.extend(target.missing(&facts.now));
        }
        Ok(Self { look: facts.now, found, target, spent: begun.elapsed() })
    }

    /// Whether nothing is wrong; notes do not count.
    fn is_healthy(&self) -> bool {
        self.found.iter().all(|finding| finding.severity == Severity::Note)
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        text::report(&self.look, &self.found, self.target.as_ref(), self.spent)
    }

    fn json(&self) -> serde_json::Value {
        json::report(&self.look, &self.found, self.target.as_ref(), self.spent)
    }
}

/// The time between two looks is what is measured with: processor time, queues, what passes.
fn wait(interval: Duration) {
    std::thread::sleep(interval);
}
