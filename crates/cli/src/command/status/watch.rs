//! `bindonce status --watch`: prints the status repeatedly, whatever ends or begins meanwhile.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_core::duration;
use bindonce_core::text::printable_lines;
use bindonce_sys::terminal;

use super::snapshot::Snapshot;
use crate::command::list;

/// Shortest interval. A shorter one would keep the broker and the supervisors from their work.
const SHORTEST: Duration = Duration::from_millis(100);
/// The assumed size of a terminal that does not report its size.
const SIZE: (u16, u16) = (80, 24);

/// Shows the status until the reader goes away or a signal ends this process.
pub(super) fn run(socket: &Path, json: bool, interval: Duration) -> anyhow::Result<()> {
    let interval = interval.max(SHORTEST);
    let screen = !json && io::stdout().is_terminal();
    let mut first = true;
    loop {
        let begun = Instant::now();
        let snapshot = Snapshot::take(socket);
        let shown = if json {
            format!("{}\n", line(&snapshot)?)
        } else if screen {
            let header = format!("every {}, Ctrl-C ends", duration::format(interval));
            let text = format!("bindonce status  {}  {header}\n\n{}", now(), text(&snapshot));
            frame(&text, terminal::size(io::stdout()).unwrap_or(SIZE), first)
        } else {
            format!("--- {}\n{}", now(), text(&snapshot))
        };
        first = false;
        let mut out = io::stdout();
        match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            done => done?,
        }
        // A snapshot shows the state at its moment; there is nothing else to wait for.
        std::thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
}

fn text(snapshot: &Snapshot) -> String {
    let missing = snapshot.no_broker().map(|line| line + "\n").unwrap_or_default();
    // Escaped before the frame's own control sequences are added.
    printable_lines(&(missing + &snapshot.text())).into_owned()
}

/// One object on one line. If the broker does not answer, `error` says why.
fn line(snapshot: &Snapshot) -> anyhow::Result<String> {
    let mut all = snapshot.json()?;
    all["time"] = now().into();
    if let Some(missing) = snapshot.no_broker() {
        all["error"] = missing.into();
    }
    Ok(serde_json::to_string(&all)?)
}

fn now() -> String {
    list::seconds(&bindonce_sys::clock::now().to_string())
}

/// Draws the text over the terminal's contents without a flicker: every line is written over the
/// old one and the rest erased (ECMA-48 CUP, EL, ED). Lines that do not fit are left out, because
/// the terminal would scroll.
fn frame(text: &str, (width, height): (u16, u16), first: bool) -> String {
    let (width, height) = (usize::from(width), usize::from(height).max(1));
    let mut lines: Vec<String> =
        text.lines().map(|line| line.chars().take(width).collect()).collect();
    if lines.len() > height {
        let hidden = lines.len() - (height - 1);
        lines.truncate(height - 1);
        lines.push(format!("... {hidden} more lines").chars().take(width).collect());
    }
    let begin = if first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
    format!("{begin}{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_stays_within_the_screen() {
        assert_eq!(frame("abc\ndef\n", (2, 5), true), "\x1b[2J\x1b[Hab\x1b[K\r\nde\x1b[K\x1b[J");
        let long = (0..30).map(|n| format!("line {n}\n")).collect::<String>();
        let shown = frame(&long, (80, 10), false);
        insta::assert_snapshot!("frame", shown.escape_debug().to_string().replace("\\r\\n", "\n"));
        assert_eq!(frame("", (80, 0), false), "\x1b[H\x1b[K\x1b[J");
    }
}
