//! `bindonce-load`: the load generator as a command. It runs until its duration
//! has passed, its number of connections is reached, standard input ends
//! (`--until-eof`) or SIGTERM or SIGINT comes, then prints what happened.
//! Exit code 1 when a connection failed or a replaced generation answered.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bindonce_load::{MAX_DURATION, Plan};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

/// Opens a new connection for every request, without pause, and accounts for each.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to connect: a loopback address.
    #[arg(long)]
    target: SocketAddr,
    /// How many clients at once.
    #[arg(long, default_value_t = 20)]
    clients: usize,
    /// How long, at most an hour [default: 10s, or an hour with another end].
    #[arg(long, value_parser = bindonce_core::duration::parse)]
    duration: Option<Duration>,
    /// Stop when standard input ends.
    #[arg(long)]
    until_eof: bool,
    /// Stop after this many connections.
    #[arg(long)]
    connections: Option<u64>,
    /// The most connections per second, all clients together.
    #[arg(long)]
    rate: Option<u32>,
    /// How long one request may take.
    #[arg(long, value_parser = bindonce_core::duration::parse, default_value = "10s")]
    timeout: Duration,
    /// The Host header to send.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// The response header that names the generation.
    #[arg(long, default_value = "x-generation")]
    token_header: String,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bindonce-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True when every connection was answered and none by a replaced generation.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    // Blocked before any thread starts, so that every thread inherits it.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("blocking SIGTERM and SIGINT")?;
    let mut plan = Plan::new(arguments.target);
    plan.clients = arguments.clients;
    plan.timeout = arguments.timeout;
    plan.rate = arguments.rate;
    plan.connections = arguments.connections;
    plan.host.clone_from(&arguments.host);
    plan.token_header.clone_from(&arguments.token_header);
    let load = plan.start().context("starting the clients")?;

    let stopper = load.stopper();
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            stopper.stop();
        }
    });
    if arguments.until_eof {
        let stopper = load.stopper();
        std::thread::spawn(move || {
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
            stopper.stop();
        });
    }
    let bounded_otherwise = arguments.until_eof || arguments.connections.is_some();
    let default = if bounded_otherwise { MAX_DURATION } else { Duration::from_secs(10) };
    load.wait_over(arguments.duration.unwrap_or(default).min(MAX_DURATION));
    let report = load.stop();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", report.to_json())?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(report.failed() == 0 && report.stale == 0)
}
