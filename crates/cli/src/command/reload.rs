//! `bindonce reload`: a new generation on the files as they are now.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::Name;
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::Reloaded;

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;

const HELP: &str = "\
Examples:
  bindonce reload
      A new generation of the service \"haproxy\"
  bindonce reload --name edge --timeout 1m && deploy-next

Exit codes:
  0  The new generation serves, and no older one accepts any more
  1  It failed; the serving generation is unaffected, and haproxy's error is printed
  2  Wrong usage";

/// Start a new generation and wait until it serves and no older one accepts
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The service
    #[arg(long, value_name = "SERVICE", default_value = "haproxy")]
    name: Name,
    /// How long to wait; after that the reload continues without this command
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
    /// Accept a configuration without listeners, and close every listener that serves
    #[arg(long)]
    allow_empty: bool,
}

/// Asks the supervisor of the service, and tells what it answers.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { name, timeout, allow_empty } = args;
    print(&ask(&globals.socket_path(), &name, timeout, allow_empty)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for a reload, and prints which generation serves after it.
pub(crate) fn ask(
    socket: &Path,
    name: &Name,
    timeout: Duration,
    allow_empty: bool,
) -> anyhow::Result<String> {
    let path = control_socket(socket, name);
    let mut client = Client::connect(&path).map_err(|error| missing(socket, name, error))?;
    client.set_timeout(timeout)?;
    // Nothing where it says nothing: an older supervisor takes no parameters.
    let wanted = match allow_empty {
        true => serde_json::json!({ "allow_empty": true }),
        false => serde_json::json!([]),
    };
    let answer = client.call("reload", &wanted).map_err(|error| failure(name, &error))?;
    Ok(text(&serde_json::from_value(answer)?))
}

fn failure(name: &Name, error: &bindonce::Error) -> anyhow::Error {
    if let Some(refusal) = error.refusal() {
        // haproxy's own words come first, as they are.
        let hint = refusal.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        return anyhow!("reload of \"{name}\" failed: {}{hint}", refusal.message);
    }
    let source = std::error::Error::source(error);
    anyhow!(
        "reload of \"{name}\": lost the connection to its supervisor ({}); the serving generation \
         is unaffected\nhint: see `bindonce status` and the supervisor's log; if it is gone, start it \
         again with `bindonce run --name {name}`, which takes over the serving generation",
        source.map_or_else(|| error.to_string(), ToString::to_string)
    )
}

fn text(reloaded: &Reloaded) -> String {
    let Reloaded { generation, pid, ended, left, none_kept } = reloaded;
    let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let mut text = format!("generation {generation} serves{pid}\n");
    if !ended.is_empty() {
        let ended: Vec<_> = ended.iter().map(u64::to_string).collect();
        text.push_str(&format!(
            "generation {} went on accepting and had to be ended; its connections are lost\n",
            ended.join(", ")
        ));
    }
    if *none_kept {
        text.push_str(&format!(
            "none of the listeners that served before is in the configuration any more: {}\n",
            left.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use bindonce::{Error, ErrorCode, RpcError};

    use super::*;

    #[test]
    fn outcomes() {
        let mut reloaded = Reloaded {
            generation: 42,
            pid: Some(1234),
            ended: Vec::new(),
            left: Vec::new(),
            none_kept: false,
        };
        insta::assert_snapshot!("reloaded", text(&reloaded));
        reloaded.ended = vec![40, 41];
        (reloaded.left, reloaded.none_kept) = (vec!["0.0.0.0:80".into(), "[::]:443".into()], true);
        insta::assert_snapshot!("reloaded-with-losses", text(&reloaded));
    }

    #[test]
    fn failures() {
        let name = "web".parse().expect("a name");
        let refused = RpcError::new(
            ErrorCode::RELOAD_FAILED,
            "[ALERT] config : parsing [/etc/haproxy/haproxy.cfg:9] : unknown keyword 'bnid'\n\
             generation 41 serves on",
        );
        let refused = refused.with_hint("correct that, then run `bindonce reload` again");
        insta::assert_snapshot!("refused", failure(&name, &Error::Refused(refused)));
        let lost = Error::Io(std::io::ErrorKind::ConnectionReset.into());
        insta::assert_snapshot!("connection-lost", failure(&name, &lost));
    }
}
