//! `bindonce reload`: a new generation on the current files.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::{Name, service_option};
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::{Drained, ReloadParams, Reloaded};

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;
use crate::unanswered::Unanswered;

const HELP: &str = "\
Examples:
  bindonce reload
      A new generation of the service \"haproxy\"
  bindonce reload --name edge --timeout 1m && deploy-next
  bindonce reload --wait drained=1m --drain-idle 5s
      Waits until no older generation answers any more; connections that are idle for 5 s are closed

Exit codes:
  0  The new generation serves, and no older one accepts any more
  1  The reload failed, and haproxy's error is printed. The serving generation is unaffected,
      unless the message says that the new one serves, or that the old one does not accept again.
      Also: --timeout is over, or (--wait drained) an older generation has not drained in time
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
    /// Wait until the new generation serves, or until the older ones have drained, for TIME at most
    /// [default TIME: the value of --timeout]
    #[arg(long, value_name = "serving|drained[=TIME]", default_value = "serving", value_parser = Until::parse)]
    wait: Until,
    /// Close connections of older generations that have been idle for TIME. Requests in progress and tunnels stay
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    drain_idle: Option<Duration>,
    /// End older generations after TIME, with the connections that they have then [default: as `run --drain-timeout` says]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    drain_timeout: Option<Duration>,
}

/// What a reload waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Serving,
    /// For this long at most.
    Drained(Option<Duration>),
}

impl Until {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "serving" => Ok(Self::Serving),
            None if text == "drained" => Ok(Self::Drained(None)),
            Some(("drained", time)) => {
                let time = duration::parse(time).map_err(|error| error.to_string())?;
                Ok(Self::Drained(Some(time)))
            }
            _ => Err("`serving`, `drained` or `drained=TIME` is expected".to_owned()),
        }
    }
}

/// Asks the supervisor of the service, and prints its answer.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { name, timeout, allow_empty, wait, drain_idle, drain_timeout } = args;
    let drained = match wait {
        Until::Serving => None,
        Until::Drained(time) => Some(time.unwrap_or(timeout)),
    };
    let how = ReloadParams {
        allow_empty,
        wait_drained_ms: drained.map(milliseconds),
        drain_idle_ms: drain_idle.map(milliseconds),
        drain_timeout_ms: drain_timeout.map(milliseconds),
        ..ReloadParams::default()
    };
    let limit = timeout.saturating_add(drained.unwrap_or_default());
    let reloaded = call(&globals.socket_path(), &name, limit, &how)?;
    print(&text(&reloaded))?;
    match reloaded.drained {
        Some(Drained { left, .. }) if !left.is_empty() => Err(not_drained(&name, &left, drained)),
        _ => Ok(()),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Asks for a reload, which may take `limit`, and returns a text about its outcome.
pub(crate) fn ask(socket: &Path, name: &Name, limit: Duration) -> anyhow::Result<String> {
    Ok(text(&call(socket, name, limit, &ReloadParams::default())?))
}

fn call(
    socket: &Path,
    name: &Name,
    limit: Duration,
    how: &ReloadParams,
) -> anyhow::Result<Reloaded> {
    let path = control_socket(socket, name);
    let mut client = Client::connect(&path).map_err(|error| missing(socket, name, error))?;
    client.set_timeout(limit)?;
    let answer = client.call("reload", &how.json()?).map_err(|error| failure(name, error))?;
    Ok(serde_json::from_value(answer)?)
}

fn not_drained(name: &Name, left: &[u64], limit: Option<Duration>) -> anyhow::Error {
    let left: Vec<_> = left.iter().map(u64::to_string).collect();
    anyhow!(
        "generation {} of \"{name}\" has not drained within {}\nhint: `bindonce status` shows what keeps it; --drain-idle \
         closes idle connections, `bindonce retire{}` ends the oldest generation with those that it has",
        left.join(", "),
        duration::format(limit.unwrap_or_default()),
        service_option(name)
    )
}

/// What to print if the supervisor refused the reload, or did not answer.
pub(crate) fn failure(name: &Name, error: bindonce::Error) -> anyhow::Error {
    if let Some(refusal) = error.refusal() {
        // haproxy's own words come first, unchanged.
        let hint = refusal.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        return anyhow!("reload of \"{name}\" failed: {}{hint}", refusal.message);
    }
    let advice = format!("`bindonce status` and `bindonce events --name {name}` show its outcome");
    match error {
        bindonce::Error::TimedOut { after, .. } => anyhow!(
            "the supervisor of \"{name}\" has not finished the reload within {}; the reload \
             continues\nhint: {advice}",
            duration::format(after)
        ),
        bindonce::Error::Closed { .. } | bindonce::Error::Io(_) => {
            let source = std::error::Error::source(&error);
            let reason = source.map(|source| format!(" ({source})")).unwrap_or_default();
            anyhow!(
                "reload of \"{name}\": lost the connection to its supervisor{reason}; the outcome is \
                 not known\nhint: see `bindonce status` and the supervisor's log; if it is gone, \
                 start it again with `bindonce run --name {name}`, which takes over the generation \
                 that serves"
            )
        }
        error => anyhow!("reload of \"{name}\": {}\nhint: {advice}", Unanswered(error)),
    }
}

fn text(reloaded: &Reloaded) -> String {
    let Reloaded {
        generation,
        pid,
        ended,
        cut,
        left,
        none_kept,
        drained,
        read_otherwise,
        stopped_first,
        unseen,
        startup: _,
    } = reloaded;
    let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let mut text = format!("generation {generation} serves{pid}\n");
    if !ended.is_empty() {
        let ended: Vec<_> = ended.iter().map(u64::to_string).collect();
        text.push_str(&format!(
            "generation {} went on accepting and had to be ended; its connections are lost{}\n",
            ended.join(", "),
            if *cut > 0 { format!(": {cut}") } else { String::new() }
        ));
    }
    if *none_kept {
        text.push_str(&format!(
            "none of the listeners that served before is in the configuration any more: {}\n",
            left.join(", ")
        ));
    }
    for line in read_otherwise {
        text.push_str(&format!(
            "haproxy has bound {line}, which bindonce reads otherwise: it has the broker's socket there\n"
        ));
    }
    if !stopped_first.is_empty() {
        text.push_str(&format!(
            "older generations were told to stop before it accepted, not paused: haproxy had bound {}\n",
            stopped_first.join("; ")
        ));
    }
    if !unseen.is_empty() {
        text.push_str(&super::supervisors::unseen(unseen));
    }
    if let Some(Drained { left, idle_closed, cut }) = drained {
        let state = if left.is_empty() {
            "no older generation is left"
        } else {
            "older generations are left"
        };
        text.push_str(&format!(
            "{state}; idle connections closed: {idle_closed}, connections cut: {cut}\n"
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
            cut: 0,
            left: Vec::new(),
            none_kept: false,
            drained: None,
            read_otherwise: Vec::new(),
            stopped_first: Vec::new(),
            unseen: Vec::new(),
            startup: String::new(),
        };
        insta::assert_snapshot!("reloaded", text(&reloaded));
        (reloaded.ended, reloaded.cut) = (vec![40, 41], 3);
        (reloaded.left, reloaded.none_kept) = (vec!["0.0.0.0:80".into(), "[::]:443".into()], true);
        insta::assert_snapshot!("reloaded-with-losses", text(&reloaded));
        reloaded.unseen = vec!["127.0.0.1:8080".into()];
        reloaded.drained = Some(Drained { left: vec![41], idle_closed: 20, cut: 1 });
        let told = text(&reloaded);
        assert!(
            told.ends_with(
                "older generations are left; idle connections closed: 20, connections cut: 1\n"
            ),
            "{told}"
        );
    }

    #[test]
    fn what_is_waited_for_is_read_and_asked() {
        let minute = Duration::from_secs(60);
        let read =
            ["serving", "drained", "drained=1m", "serving=1m", "gone", "drained=", "drained=x"];
        let read = read.map(|text| Until::parse(text).ok());
        let drained = |time| Some(Until::Drained(time));
        assert_eq!(read[..3], [Some(Until::Serving), drained(None), drained(Some(minute))]);
        assert!(read[3..].iter().all(Option::is_none), "{read:?}");
        let how = ReloadParams::default();
        assert_eq!(how.json().expect("JSON"), serde_json::json!([]));
        let how = ReloadParams {
            allow_empty: true,
            wait_drained_ms: Some(milliseconds(minute)),
            drain_idle_ms: Some(milliseconds(minute / 60)),
            drain_timeout_ms: Some(milliseconds(minute / 30)),
            ..how
        };
        let wanted = serde_json::json!({"allow_empty": true, "wait_drained_ms": 60000, "drain_idle_ms": 1000,
            "drain_timeout_ms": 2000});
        assert_eq!(how.json().expect("JSON"), wanted);
    }

    #[test]
    fn failures() {
        let name = "web".parse().expect("a name");
        let late = not_drained(&name, &[3], Some(Duration::from_secs(60))).to_string();
        assert!(late.contains("has not drained within 1m\nhint: "), "{late}");
        assert!(late.contains("`bindonce retire --name web` ends the oldest"), "{late}");
        let refused = RpcError::new(
            ErrorCode::RELOAD_FAILED,
            "[ALERT] config : parsing [/etc/haproxy/haproxy.cfg:9] : unknown keyword 'bnid'\n\
             generation 41 still serves",
        );
        let refused = refused.with_hint("correct that, then run `bindonce reload` again");
        insta::assert_snapshot!("refused", failure(&name, Error::Refused(refused)));
        let lost = Error::Io(std::io::ErrorKind::ConnectionReset.into());
        insta::assert_snapshot!("connection-lost", failure(&name, lost));
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut client = Client::from_stream(near).expect("a client");
        client.set_timeout(Duration::from_millis(20)).expect("a timeout");
        let late = client.call("reload", &[0; 0]).expect_err("no answer");
        assert_eq!(
            failure(&name, late).to_string(),
            "the supervisor of \"web\" has not finished the reload within 20ms; the reload \
             continues\nhint: `bindonce status` and `bindonce events --name web` show its outcome"
        );
    }
}
