//! What happens in both ways: the reloads, which of them overlap, and what clients see.

use std::time::{Duration, Instant};

use anyhow::bail;
use bindonce_core::address::Address;
use bindonce_sys::diag;

use super::client::{self, Answer, Tally};
use super::stage::{READY, Stage};
use crate::output::print_now;

/// The host that every configuration knows.
pub(super) const KNOWN: &str = "old.example";
/// The host that only the newest configuration knows.
pub(super) const NEW: &str = "new.example";
/// Requests in the table.
pub(super) const TABLE: usize = 30;
/// Requests from which the share of stale answers is computed.
const SAMPLE: u64 = 1000;
/// Pause between two requests during the reloads.
const PACE: Duration = Duration::from_millis(5);
/// Pause between two attempts, where no event announces that a haproxy answers.
const AGAIN: Duration = Duration::from_millis(10);

/// Number and interval of the reloads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// Number of reloads. The last one brings the new host.
    pub(super) reloads: u64,
    /// Time from one reload to the next.
    pub(super) every: Duration,
}

/// How haproxy is started and reloaded.
pub(super) trait Way {
    /// Starts haproxy with the current configuration.
    fn start(&mut self, stage: &mut Stage) -> anyhow::Result<()>;
    /// Reloads haproxy with the current configuration.
    fn reload(&mut self, stage: &mut Stage) -> anyhow::Result<()>;
    /// Makes two reloads at the same time, each with a configuration of its own.
    fn reload_twice(&mut self, stage: &mut Stage, first: &str, second: &str) -> anyhow::Result<()>;
}

/// What clients saw.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Reloads made.
    pub(super) reloads: u64,
    /// Requests made during the reloads.
    pub(super) during: Tally,
    /// For each request for the new host, whether it was answered.
    pub(super) table: Vec<bool>,
    /// Requests for a known host, afterwards.
    pub(super) sample: Tally,
    /// Sockets that listen on the address, afterwards.
    pub(super) sockets: usize,
}

impl Schedule {
    /// The first of the two reloads that overlap: a third of the way, so that others follow.
    pub(super) fn overlap(&self) -> u64 {
        (self.reloads / 3).max(2)
    }

    /// Runs the schedule, and prints the number of sockets after each reload.
    pub(super) fn run(&self, stage: &mut Stage, way: &mut impl Way) -> anyhow::Result<Seen> {
        let mut during = Tally::default();
        stage.configure(&configuration(stage, 0, false))?;
        way.start(stage)?;
        answered_by(stage, 0)?;
        print_now(&format!("    sockets on {}, after each reload: ", stage.address))?;
        let mut next = Instant::now();
        let mut number = 0;
        while number < self.reloads {
            if number + 1 == self.overlap() {
                let [first, second] =
                    [number + 1, number + 2].map(|number| self.configuration(stage, number));
                way.reload_twice(stage, &first, &second)?;
                number += 2;
                next += 2 * self.every;
            } else {
                number += 1;
                stage.configure(&self.configuration(stage, number))?;
                way.reload(stage)?;
                next += self.every;
            }
            answered_by(stage, number)?;
            while Instant::now() < next {
                during.count(&client::ask(stage.address, KNOWN), number);
                stage.pause(PACE)?;
            }
            print_now(&format!(" {}", sockets(stage)?))?;
        }
        print_now("\n")?;
        let table = (0..TABLE)
            .map(|_| matches!(client::ask(stage.address, NEW), Answer::Configuration(_)))
            .collect();
        let mut sample = Tally::default();
        for _ in 0..SAMPLE {
            stage.check()?;
            sample.count(&client::ask(stage.address, KNOWN), number);
        }
        Ok(Seen { reloads: self.reloads, during, table, sample, sockets: sockets(stage)? })
    }

    fn configuration(&self, stage: &Stage, number: u64) -> String {
        configuration(stage, number, number == self.reloads)
    }
}

/// A configuration that answers with its number, readable by any haproxy since 1.5. A request for
/// an unknown host gets 503, because there is no backend.
fn configuration(stage: &Stage, number: u64, with_new: bool) -> String {
    let mut hosts = KNOWN.to_owned();
    if with_new {
        hosts = format!("{hosts} {NEW}");
    }
    format!(
        "global\n    maxconn 200\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 10s\n    \
         timeout server 10s\nfrontend web\n    bind {}\n    http-request redirect location /{number} code 302 \
         if {{ hdr(host) -i {hosts} }}\n",
        stage.address
    )
}

/// Waits until the configuration with this number has answered once. It asks repeatedly, because a
/// stale process answers some of the requests.
fn answered_by(stage: &mut Stage, number: u64) -> anyhow::Result<()> {
    let until = Instant::now() + READY;
    while client::ask(stage.address, KNOWN) != Answer::Configuration(number) {
        stage.all_run()?;
        if Instant::now() >= until {
            bail!(
                "configuration {number} did not answer on {} within {} s\n{}",
                stage.address,
                READY.as_secs(),
                stage.last_words()
            );
        }
        stage.pause(AGAIN)?;
    }
    Ok(())
}

/// Number of sockets that listen on the address, as the kernel lists them.
fn sockets(stage: &Stage) -> anyhow::Result<usize> {
    let address = Address::Tcp(stage.address);
    Ok(diag::tcp()?.iter().filter(|socket| socket.address == address).count())
}
