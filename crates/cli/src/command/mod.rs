//! The commands, one file each.

mod adopt;
mod bind;
mod check;
mod check_config;
mod demo;
mod doctor;
mod events;
mod exec;
mod list;
mod metrics;
mod ping;
mod release;
pub(crate) mod reload;
mod render;
mod retire;
pub(crate) mod run;
pub(crate) mod serve;
mod services;
pub(crate) mod shim;
mod status;
mod supervisors;
mod top;
mod upgrade;

use std::process::ExitCode;

use crate::globals::Globals;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Serve(serve::Args),
    Run(Box<run::Args>),
    Reload(reload::Args),
    Retire(retire::Args),
    Exec(exec::Args),
    Render(render::Args),
    Check(check::Args),
    CheckConfig(check_config::Args),
    List(list::Args),
    Bind(bind::Args),
    Adopt(adopt::Args),
    Release(release::Args),
    Status(status::Args),
    Top(top::Args),
    Ping(ping::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Events(events::Args),
    Upgrade(upgrade::Args),
    #[command(hide = true)]
    Services(services::Args),
}

/// Runs the command. A command with outcomes besides success and failure has its own exit code.
pub(crate) fn run(command: Command, globals: &Globals) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => return run::run(*args, globals),
        Command::Check(args) => return check::run(args, globals),
        Command::Adopt(args) => return adopt::run(&args, globals),
        Command::Doctor(args) => return doctor::run(args, globals),
        Command::Serve(args) => serve::run(args, globals),
        Command::Reload(args) => reload::run(args, globals),
        Command::Retire(args) => retire::run(args, globals),
        Command::Exec(args) => exec::run(args, globals),
        Command::Render(args) => render::run(args, globals),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::List(args) => list::run(args, globals),
        Command::Bind(args) => bind::run(args, globals),
        Command::Release(args) => release::run(args, globals),
        Command::Status(args) => status::run(args, globals),
        Command::Top(args) => top::run(args, globals),
        Command::Ping(args) => ping::run(args, globals),
        Command::Demo(args) => demo::run(args, globals),
        Command::Events(args) => events::run(args, globals),
        Command::Upgrade(args) => upgrade::run(args, globals),
        Command::Services(args) => services::run(args, globals),
    }?;
    Ok(ExitCode::SUCCESS)
}
