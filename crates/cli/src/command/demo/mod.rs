//! `bindonce demo`: the problem and its solution, shown on this host with its installed haproxy.
//!
//! First the old way: haproxy is reloaded with `-sf`, two reloads overlap, one process is never
//! told to stop, and a share of the requests for a new host fails. `doctor` explains why. Then the
//! same schedule runs under bindonce.
//!
//! The demonstration touches nothing on the host: as root it works in its own network namespace,
//! else on a free loopback port. All processes that it starts have ended when it ends, however it
//! ends, and every wait has a deadline.

mod client;
mod schedule;
mod stage;
mod text;
mod ways;

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use bindonce_core::duration;
use bindonce_doctor::{examine as look, screen};
use bindonce_sys::executable;

use crate::globals::Globals;
use crate::output::print_now;
use schedule::Schedule;
use stage::Stage;
use ways::{Plain, Supervised};

const HELP: &str = "\
Examples:
  bindonce demo
      With the installed haproxy; Ctrl-C ends the demo and everything that it started
  bindonce demo --haproxy /opt/haproxy-3.2/sbin/haproxy

Exit codes:
  0  Both ways were shown
  1  haproxy is missing or did not start, or a signal ended the demo
  2  Wrong usage";

/// Show on this host what goes wrong without bindonce, and what bindonce changes
///
/// Takes about 35 seconds and needs haproxy. The demo reloads haproxy the old way with one lost signal,
/// lets `doctor` explain why requests fail, and repeats this under bindonce. It does not touch what
/// runs on this host, and leaves nothing behind.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The haproxy to use [default: the one in $PATH, /usr/sbin or /usr/local/sbin]
    #[arg(long, value_name = "PROGRAM")]
    haproxy: Option<PathBuf>,
    /// How many reloads each way sees
    #[arg(long, hide = true, value_name = "COUNT", default_value_t = 15, value_parser = clap::value_parser!(u64).range(4..=100))]
    reloads: u64,
    /// From one reload to the next
    #[arg(long, hide = true, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    every: Duration,
}

/// Shows both ways.
pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<()> {
    let Args { haproxy, reloads, every } = args;
    let haproxy = find(haproxy)?;
    match show(haproxy, &Schedule { reloads, every }) {
        // The reader has closed the pipe; everything that was started has ended.
        Err(error) if is_closed_pipe(&error) => Ok(()),
        Err(error) => {
            // The output may have stopped in the middle of a line.
            let _ = print_now("\n");
            Err(error)
        }
        shown => shown,
    }
}

fn show(haproxy: PathBuf, schedule: &Schedule) -> anyhow::Result<()> {
    let mut stage = Stage::set(haproxy)?;
    print_now(&text::opening(&stage, schedule))?;

    print_now(&text::old_way(&stage, schedule))?;
    let before = schedule.run(&mut stage, &mut Plain::default())?;
    print_now(&text::outcome(&before))?;

    print_now(&text::doctor(&stage))?;
    print_now(&text::indented(&examine(&stage)?))?;
    stage.end_all();

    print_now(&text::under_bindonce(&stage))?;
    let after = schedule.run(&mut stage, &mut Supervised)?;
    print_now(&text::outcome(&after))?;
    print_now(&text::doctor_again(&stage))?;
    print_now(&text::indented(&examine(&stage)?))?;
    stage.end_all();

    print_now(&text::closing(&stage, &before, &after))
}

/// What `bindonce doctor ADDRESS` prints now.
fn examine(stage: &Stage) -> anyhow::Result<String> {
    stage.check()?;
    Ok(screen(&look(Some(&stage.address.to_string()), &stage.socket(), Vec::new)?))
}

/// The haproxy for the demonstration.
fn find(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return Ok(executable::find(given.as_os_str())?);
    }
    // Includes where packages put haproxy, which an ordinary user's PATH lacks.
    let places = ["haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"];
    let found = places.iter().find_map(|place| executable::find(place.as_ref()).ok());
    let Some(found) = found else {
        bail!(
            "there is no haproxy in $PATH, /usr/sbin or /usr/local/sbin to show this with\n\
             hint: install one (`apt-get install haproxy` on Debian and Ubuntu, `dnf install haproxy` on \
             Fedora and RHEL, `apk add haproxy` on Alpine), or say where one is with --haproxy PROGRAM; \
             `bindonce doctor` needs none"
        );
    };
    Ok(found)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
