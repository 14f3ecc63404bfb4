//! `bindonce top`: a screen of services, generations, listeners and events, with keys to reload and
//! to retire.
//!
//! One thread draws and decides; the others bring the news (`sources.rs`). It draws when there is
//! news, but only as often as a person can follow.

#[cfg(test)]
mod fixture;
mod keys;
mod lives;
mod model;
mod overview;
mod screen;
mod sources;
mod view;

use std::io::{self, IsTerminal as _};
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bindonce_core::duration;
use bindonce_sys::clock::now;
use bindonce_sys::signals::{Signal, SignalFd};
use nix::sys::signal::raise;

use crate::globals::Globals;
use crate::output;
use model::{Effect, Input, Model};
use screen::{Painter, Screen};
use sources::News;
use view::{ASCII, Canvas, Setting, UNICODE};

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(33);
/// How long a displayed time may stand still while no source answers.
const TICK: Duration = Duration::from_secs(1);
/// News that may be queued. A sender waits for room.
const WAITING: usize = 64;

const HELP: &str = "\
Keys:
  j, k, arrows    Choose a service or a generation; PgUp, PgDn, g, G go far
  r               Reload the chosen service
  x, R            End the chosen draining generation, after a question
  s               Sort the listeners: by name, queue or users
  +, -, 0         A shorter or longer time line, or one that fits
  Tab             The next pane: services, listeners, events
  ?, h            Help
  q, Esc, Ctrl-C  End

Examples:
  bindonce top
  bindonce top --interval 250ms
      Updates four times a second; events are shown at once in any case

Environment:
  NO_COLOR                  If it is set, no colours
  LC_ALL, LC_CTYPE, LANG    Bars are drawn in ASCII unless the first that is set says UTF-8

Exit codes:
  0  Ended by a key or a signal, or the terminal is gone
  1  There is no terminal, or it cannot be used
  2  Wrong usage";

/// Watch services, generations, listeners and events on one screen, and reload or retire by a key
///
/// The screen shows when a broker or a supervisor is gone, and continues when it is back. Press ? for the keys.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The time between two updates; events are shown at once
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    interval: Duration,
}

/// Shows the screen until a key or a signal ends it, or the terminal is gone.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let interval = args.interval.max(sources::SHORTEST);
    require_terminal()?;
    let socket = globals.socket_path();
    let variable = |name| std::env::var(name).unwrap_or_default();
    let setting = Setting {
        glyphs: if is_utf8(variable) { &UNICODE } else { &ASCII },
        interval: duration::format(interval),
    };
    // Before any thread exists, because threads inherit the mask.
    let signals = SignalFd::new(&sources::SIGNALS).context("cannot hear signals")?;
    let (sender, news) = sync_channel(WAITING);
    let screen = Arc::new(Screen::default());
    leave_before_panic(Arc::clone(&screen), sender.clone());
    let painter = Painter::new(variable("NO_COLOR").is_empty());
    let left = Leave(&screen);
    screen.enter().context("cannot use this terminal")?;
    let (look, looks) = sync_channel(1);
    sources::hear(signals, sender.clone());
    sources::watch(&socket, interval, looks, sender.clone());
    sources::follow(&socket, sender.clone());
    let mut show =
        Show { model: Model::new(now()), setting, socket: &socket, screen: &screen, sender, look };
    let shown = show.run(painter, &news);
    drop(left);
    match shown {
        // A terminal that is gone is an end like any other.
        Err(error) if error.downcast_ref().is_some_and(is_gone) => {}
        shown => shown?,
    }
    if let Some((action, _)) = &show.model.doing {
        output::print(&format!("{} continues; see `bindonce events`\n", action.gerund()))?;
    }
    Ok(())
}

/// Gives the terminal back at the end, however it comes.
struct Leave<'a>(&'a Screen);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn require_terminal() -> anyhow::Result<()> {
    let hint = "hint: use `bindonce status --watch`, or `bindonce status --json` in scripts";
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("`bindonce top` needs a terminal for its input and its output\n{hint}");
    }
    match std::env::var("TERM").unwrap_or_default().as_str() {
        "" => bail!("`bindonce top` needs to know the terminal, and TERM is not set\n{hint}"),
        "dumb" => bail!("`bindonce top` needs a terminal that can do more than TERM=dumb\n{hint}"),
        _ => Ok(()),
    }
}

/// Leaves the screen before a panic prints its message, which would be lost with the screen.
fn leave_before_panic(screen: Arc<Screen>, news: SyncSender<News>) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        screen.leave();
        before(panic);
        // If the queue is full, the loop is not told.
        let _ = news.try_send(News::Panicked);
    }));
}

/// Whether the locale says that the terminal shows more than ASCII (setlocale(3)).
fn is_utf8(variable: impl Fn(&'static str) -> String) -> bool {
    let values = ["LC_ALL", "LC_CTYPE", "LANG"].map(variable);
    let locale = values.into_iter().find(|value| !value.is_empty()).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.ends_with("utf-8") || locale.ends_with("utf8")
}

fn is_gone(error: &io::Error) -> bool {
    let hung_up = error.raw_os_error() == Some(nix::errno::Errno::EIO as i32);
    hung_up || error.kind() == io::ErrorKind::BrokenPipe
}

/// The state of the screen, and what its effects need.
struct Show<'a> {
    model: Model,
    setting: Setting,
    socket: &'a Path,
    screen: &'a Screen,
    sender: SyncSender<News>,
    look: SyncSender<()>,
}

impl Show<'_> {
    fn run(&mut self, mut painter: Painter, news: &Receiver<News>) -> anyhow::Result<()> {
        loop {
            let mut canvas = Canvas::new(screen::size(), self.setting.glyphs);
            view::draw(&self.model, &self.setting, &mut canvas);
            painter.paint(&canvas)?;
            let next = Instant::now() + FRAME;
            let mut came = match news.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => News::Input(Input::Time),
                came => came?,
            };
            // Everything that arrives before the next frame, up to a limit.
            for _ in 0..WAITING {
                if !self.take(came, &mut painter)? {
                    return Ok(());
                }
                came = match news.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(came) => came,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                };
            }
        }
    }

    /// Handles one piece of news. Returns whether to continue.
    fn take(&mut self, news: News, painter: &mut Painter) -> anyhow::Result<bool> {
        let effects = match news {
            News::Input(input) => self.model.on(now(), input),
            // The next frame reads the size.
            News::Resized => Vec::new(),
            News::Continued => {
                self.screen.enter()?;
                vec![Effect::Redraw]
            }
            News::End => vec![Effect::Quit],
            News::Panicked => bail!("a part of `bindonce top` has failed; this is a bug"),
        };
        for effect in effects {
            match effect {
                Effect::Act(action) => sources::act(self.socket, action, self.sender.clone()),
                // One pending request is enough.
                Effect::Look => drop(self.look.try_send(())),
                Effect::Redraw => painter.clear(),
                Effect::Suspend => {
                    self.screen.leave();
                    // Without a shell to go to, nothing happens.
                    raise(Signal::SIGTSTP)?;
                    self.screen.enter()?;
                    painter.clear();
                }
                Effect::Quit => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::is_utf8;

    #[test]
    fn the_locale_tells_which_characters_there_are() {
        let locale = |all: &'static str, lang: &'static str| {
            is_utf8(|name| match name {
                "LC_ALL" => all.to_owned(),
                "LANG" => lang.to_owned(),
                _ => String::new(),
            })
        };
        assert!(locale("", "de_DE.UTF-8"));
        assert!(locale("C.utf8", "C"));
        assert!(!locale("C", "de_DE.UTF-8"));
        assert!(!locale("", ""));
    }
}
