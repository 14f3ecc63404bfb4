//! Explains why clients see 503 or hang, on any host, with or without a broker: for engineers who
//! were paged, and for `bindonce doctor`, which prints the report.
//!
//! [`examine`] looks at a host once, or twice where a condition may be normal for a moment, and
//! reports what is wrong, the worst first, each finding with its numbers. It only reads, and every
//! wait has a limit. It has three parts, each independent of the next:
//! - `survey` collects facts: from sock_diag and /proc in every network namespace that it may
//!   enter, from the broker, and from the stats sockets of running haproxies;
//! - `diagnosis` decides what the facts mean: a function of `facts`, without a system call;
//! - `text` renders the report for people ([`screen()`]) and as JSON for programs ([`json()`]).

#![forbid(unsafe_code)]

mod diagnosis;
mod error;
mod examination;
mod facts;
mod survey;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;
use std::time::Instant;

pub use error::Error;
pub use examination::Examination;
pub use facts::{Answered, Answers};
pub use text::{json, screen};

/// Looks at the whole host, and keeps the findings about `target`: an address, a service, a
/// listener or a program. A broker may listen at `broker`; `answers` asks the supervisors, with a
/// limit on every wait.
///
/// # Errors
/// [`Error::Look`] if the sockets of this network namespace cannot be read; [`Error::Target`] if
/// the target is neither an address nor a name that was seen.
pub fn examine(
    target: Option<&str>,
    broker: &Path,
    answers: impl FnOnce() -> Vec<Answers>,
) -> Result<Examination, Error> {
    let begun = Instant::now();
    let mut survey = survey::Survey::new(broker.to_owned());
    let answers = answers();
    let first = Instant::now();
    let mut look = survey.look(&answers)?;
    let mut found = diagnosis::examine(&look, None);
    if let Some(interval) = diagnosis::look_again(&look, &found) {
        // Rates are measured over this time: processor time, queues, drops. It lies between the
        // beginnings of the two looks, and so between equal steps of them.
        std::thread::sleep(interval.saturating_sub(first.elapsed()));
        let earlier = std::mem::replace(&mut look, survey.look(&answers)?);
        found = diagnosis::examine(&look, Some((&earlier, &found)));
    }
    let details = survey.ask(&look, &diagnosis::questions(&found));
    let mut found = diagnosis::settle(&look, found, &details);
    let target = target.map(|text| {
        let unknown = || Error::Target { text: text.to_owned() };
        diagnosis::Target::find(text, &look).ok_or_else(unknown)
    });
    let target = target.transpose()?;
    if let Some(target) = &target {
        found.retain(|finding| target.concerns(finding, &look));
        found.extend(target.absent(&look));
    }
    Ok(Examination { look, found, target, spent: begun.elapsed() })
}
