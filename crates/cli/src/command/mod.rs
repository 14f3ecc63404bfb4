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
mod ping;
mod release;
mod reload;
mod render;
mod retire;
mod run;
pub(crate) mod serve;
pub(crate) mod shim;
mod status;
mod supervisors;
mod top;
mod upgrade;

use std::io::{self, Write as _};
use std::process::ExitCode;

use bindonce_core::text::{is_obeyed, printable_lines};

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;
use bindonce_core::listener::Listener;

use crate::Globals;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Serve(serve::Args),
    Run(run::Args),
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
}

/// Does it.
pub(crate) fn run(command: Command, globals: &Globals) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(args, globals),
        Command::Run(args) => run::run(args, globals),
        Command::Reload(args) => reload::run(args, globals),
        Command::Retire(args) => retire::run(args, globals),
        Command::Exec(args) => exec::run(args, globals),
        Command::Render(args) => render::run(args, globals),
        Command::Check(args) => check::run(args, globals),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::List(args) => list::run(args, globals),
        Command::Bind(args) => bind::run(args, globals),
        Command::Adopt(args) => adopt::run(&args, globals),
        Command::Release(args) => release::run(args, globals),
        Command::Status(args) => status::run(args, globals),
        Command::Top(args) => top::run(args, globals),
        Command::Ping(args) => ping::run(args, globals),
        Command::Doctor(args) => doctor::run(args, globals),
        Command::Demo(args) => demo::run(args, globals),
        Command::Events(args) => events::run(args, globals),
        Command::Upgrade(args) => upgrade::run(args, globals),
    }
}

/// Reads what `--metrics` says: a listener that takes connections.
pub(crate) fn metrics_listener(text: &str) -> Result<Listener, String> {
    let listener: Listener = text.parse().map_err(|error: Invalid| error.to_string())?;
    match listener.address {
        Address::Tcp(_) | Address::Unix(_) | Address::Abstract(_) => Ok(listener),
        Address::Udp(_) => {
            Err("metrics are scraped over a connection: give a TCP address or a UNIX path".into())
        }
    }
}

/// Writes a result to standard output, and nothing that a terminal would obey. A reader that has
/// closed it has read enough.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(printable_lines(text).as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// The same of a value in JSON, which stays the same value. serde_json escapes what is below a
/// space; a terminal obeys some characters above as well.
pub(crate) fn print_json(text: &str) -> anyhow::Result<()> {
    print(&(json_printable(text) + "\n"))
}

fn json_printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_obeyed(c) {
            out.push(c);
        } else {
            // All of them are in the first plane: one unit of UTF-16.
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::json_printable;

    #[test]
    fn json_for_a_terminal_is_the_same_value() {
        let value = serde_json::json!({"command": "\u{9b}2J\x1b[0m\u{202e}\x7fé\n"});
        let text = json_printable(&serde_json::to_string_pretty(&value).expect("text"));
        assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read, value);
    }
}
