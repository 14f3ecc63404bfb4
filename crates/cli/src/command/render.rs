//! `bindonce render FILE...`: the copy of a configuration that haproxy is started on, or what
//! happens to each of its addresses.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bindonce_core::duration;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::patience::Patience;
use bindonce_haproxy::config::{Command, Rendering, Supplied, System};
use bindonce_sys::worker;

use super::list::columns;
use crate::globals::Globals;
use crate::output;
use crate::stand_in;

const HELP: &str = "\
Examples:
  bindonce render /etc/haproxy/haproxy.cfg | diff /etc/haproxy/haproxy.cfg -
      What bindonce changes for haproxy
  bindonce render --explain /etc/haproxy
      What happens to each address, for a directory of files
  bindonce render --explain -- /opt/haproxy/sbin/haproxy -L lb1 -f /etc/haproxy/haproxy.cfg
      The same for this haproxy with these options

Exit codes:
  0  Printed
  1  The configuration cannot be read; the message names the file and the line
  2  Wrong usage";

/// How long reading the configuration may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Print the copy of a haproxy configuration that bindonce gives to haproxy
///
/// Only the addresses of bind lines are replaced. If there are several files, a comment with the name of the
/// file precedes each copy; together they are one configuration that haproxy can read.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Print a table instead: what happens to each address, and why
    #[arg(long)]
    explain: bool,
    /// A listener for `fd@${NAME}` in the configuration; may be given again
    #[arg(long, value_name = "NAME=ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    /// Configuration files, or directories of *.cfg files, in haproxy's order
    #[arg(required_unless_present = "command", conflicts_with = "command", value_name = "FILE")]
    files: Vec<OsString>,
    /// The haproxy command instead of files, as for `run`: the options and the version of haproxy affect how it
    /// reads its configuration. Default: the haproxy in PATH
    #[arg(last = true, value_name = "HAPROXY")]
    command: Vec<OsString>,
}

/// Prints the copy or the table.
pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<()> {
    let words =
        |files| ["haproxy", "--"].map(OsString::from).into_iter().chain::<Vec<_>>(files).collect();
    let command = if args.command.iter().any(|word| word == "-f" || word == "--") {
        stand_in::command(args.command)?
    } else {
        // Only files, which may also stand behind a `--`.
        stand_in::command(words(if args.files.is_empty() { args.command } else { args.files }))?
    };
    let listeners = super::run::named(args.listen)?;
    let world = System::new(&command.program).context("cannot tell the current directory")?;
    let rendering = read(&command, listeners, world, LIMIT)?;
    if args.explain {
        return output::print(&table(&rendering));
    }
    // Not text: a configuration may contain any bytes.
    match io::stdout().write_all(&copy(&rendering)) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        done => done.context("cannot write to standard output")?,
    }
    Ok(())
}

/// Reads a configuration on another thread, which is abandoned if a file system or a name server
/// does not answer.
pub(super) fn read(
    command: &Command,
    listeners: Vec<Listener>,
    world: System,
    limit: Duration,
) -> anyhow::Result<Rendering> {
    let (command, (send, done)) = (command.clone(), mpsc::channel());
    worker::start("configuration", move || {
        let supplied = Supplied { listeners: &listeners, keep: &[] };
        // The caller may have stopped waiting.
        let _ = send.send(Rendering::of(&command, supplied, &world));
    })
    .context("cannot start a thread")?;
    let mut patience = Patience::new(limit);
    while let Some(wait) = patience.next_wait(Instant::now()) {
        match done.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            read => return Ok(read.context("the thread that reads the configuration has ended")??),
        }
    }
    bail!(
        "the configuration was not read within {}: a file of it, or a name server, does not answer",
        duration::format(limit)
    )
}

fn copy(rendering: &Rendering) -> Vec<u8> {
    let mut out = Vec::new();
    for file in &rendering.files {
        if rendering.files.len() > 1 {
            let why = if file.injected { " (put before it)" } else { "" };
            let name = file.user_path.display().to_string();
            out.extend(format!("# {}{why}\n", name.escape_debug()).into_bytes());
        }
        out.extend_from_slice(&file.text);
        if rendering.files.len() > 1 && !file.text.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
    out
}

/// One line for each address, in the order of the files.
pub(super) fn table(rendering: &Rendering) -> String {
    let mut rows = Vec::new();
    for variable in &rendering.variables {
        let bindings = &rendering.bindings[variable.bindings.clone()];
        let (Some(first), Some(last)) = (bindings.first(), bindings.last()) else { continue };
        let mut what = format!("claimed as {}", first.listener);
        // Writing to a String does not fail.
        if bindings.len() > 1 {
            let _ = write!(what, " to {}", last.listener);
        }
        let _ = write!(what, ", in ${}", variable.name);
        if let Some(device) = &first.device {
            let _ = write!(what, "; interface {device} does not exist: on every interface");
        }
        rows.push((&first.place, &first.section, first.text.clone(), what));
        for place in &first.also {
            let what = format!("shares the socket of line {}", first.place.line);
            rows.push((place, &first.section, first.text.clone(), what));
        }
    }
    for left in &rendering.left_alone {
        let what = format!("left alone: {}", left.reason);
        rows.push((&left.place, &left.section, left.text.clone(), what));
    }
    let number = |path| rendering.files.iter().position(|file| &file.user_path == path);
    rows.sort_by_key(|(place, ..)| (number(&place.file), place.line));
    let mut text = vec![["LINE", "SECTION", "ADDRESS", "WHAT HAPPENS"].map(str::to_owned)];
    text.extend(rows.into_iter().map(|(place, section, address, what)| {
        [place.to_string(), section.clone(), address, what]
    }));
    for name in &rendering.unused {
        let what = "nothing in the configuration uses it".to_owned();
        text.push(["--listen".to_owned(), "-".to_owned(), name.to_string(), what]);
    }
    let mut text = columns(&text);
    let lost: Vec<_> = rendering.loses_tickets().iter().map(ToString::to_string).collect();
    if !lost.is_empty() {
        let _ = writeln!(
            text,
            "\n{}: after a reload clients cannot resume their TLS sessions, since haproxy makes the keys of tickets anew at each \
             start; `tls-ticket-keys FILE` keeps them (docs/haproxy-draining.md, \"TLS sessions\")",
            lost.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use bindonce_haproxy::config::Command;

    use super::*;

    fn render(files: &[(&str, &str)], listen: &[&str]) -> Rendering {
        let folder = std::env::temp_dir().join(format!(
            "bindonce-render-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&folder).expect("folder");
        for (name, text) in files {
            std::fs::write(folder.join(name), text).expect("write");
        }
        let names = files.iter().map(|(name, _)| *name);
        let command = ["haproxy", "-C", folder.to_str().expect("path"), "--"].into_iter();
        let command = Command::parse(command.chain(names)).expect("command");
        let wanted = listen.iter().map(|text| text.parse().expect("listen")).collect();
        let listeners = super::super::run::named(wanted).expect("named");
        let supplied = Supplied { listeners: &listeners, keep: &[] };
        let world = System::new("haproxy".as_ref()).expect("world");
        let rendering = Rendering::of(&command, supplied, &world).expect("rendering");
        std::fs::remove_dir_all(folder).expect("remove");
        rendering
    }

    #[test]
    fn several_files_become_one_configuration() {
        let files = [("a.cfg", "frontend a\n bind :80"), ("b.cfg", "frontend b\n bind :81\n")];
        let rendering = render(&files, &[]);
        let paths: Vec<_> = rendering.files.iter().map(|file| file.user_path.clone()).collect();
        assert_eq!(paths, [Path::new("a.cfg"), Path::new("b.cfg")].map(PathBuf::from));
        assert_eq!(
            String::from_utf8(copy(&rendering)).expect("utf-8"),
            "# a.cfg\nfrontend a\n bind \"fd@${BINDONCE_0_0_0_0_80}\"\n\
             # b.cfg\nfrontend b\n bind \"fd@${BINDONCE_0_0_0_0_81}\"\n"
        );
    }

    #[test]
    fn the_table_follows_the_lines() {
        let text = "global\n stats socket /run/s\nfrontend a\n bind ipx@:443\n bind :80-81\n bind :444 ssl crt c\n";
        let table = table(&render(&[("a.cfg", text)], &["spare=:9"]));
        insta::assert_snapshot!("explained", table);
    }
}
