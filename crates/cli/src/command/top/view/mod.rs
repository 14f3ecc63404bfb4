//! Draws a [`Model`]: header, services, listeners, events, messages and keys, each in the room that
//! there is. A terminal that is too small shows less, from the top.
//!
//! No state is shown by colour or by a drawn character alone, and every text is cut at its column.

mod canvas;
mod events;
mod listeners;
mod pane;
mod services;
#[cfg(test)]
mod tests;
mod words;

use bindonce_core::text::count;
use bindonce_core::time::Timestamp;

use super::model::{Message, Model};
use canvas::Area;
pub(super) use canvas::{ASCII, Canvas, Cell, Glyphs, PLAIN, Style, UNICODE};
pub(super) use pane::BAD;
use pane::{FAINT, STRONG, WARN};

/// Settings that do not change.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) glyphs: &'static Glyphs,
    /// Time from one snapshot to the next, as people write it.
    pub(super) interval: String,
}

/// Draws the whole screen.
pub(super) fn draw(model: &Model, setting: &Setting, canvas: &mut Canvas) {
    let area = canvas.area();
    let Some((top, rest)) = cut(area, 1) else { return };
    header(model, setting, canvas, top);
    let (below, foot) = match cut(rest, rest.height.saturating_sub(1)) {
        Some((body, foot)) if foot.height > 0 => (body, foot),
        _ => return,
    };
    footer(model, canvas, foot);
    if model.view.help {
        return help(canvas, below);
    }
    let mut notices = notices(model, usize::from(area.width));
    let most = usize::from(below.height / 3).max(1);
    if notices.len() > most {
        let hidden = notices.len() - (most - 1);
        notices.truncate(most - 1);
        notices.push((format!("{hidden} more lines; `bindonce events` has them"), FAINT));
    }
    let height = below.height.saturating_sub(u16::try_from(notices.len()).unwrap_or(0));
    let Some((body, messages)) = cut(below, height) else { return };
    for (line, (text, style)) in (messages.y..messages.bottom()).zip(&notices) {
        canvas.text(messages.x, line, messages.width, text, *style);
    }
    panes(model, canvas, body);
}

/// The first `height` lines of an area, and the rest; None if the first part is empty.
fn cut(area: Area, height: u16) -> Option<(Area, Area)> {
    let height = height.min(area.height);
    let first = Area { height, ..area };
    let rest = Area { y: area.y + height, height: area.height - height, ..area };
    (height > 0 && area.width > 0).then_some((first, rest))
}

/// Services and listeners get what they need if there is room; events get at least a quarter.
fn panes(model: &Model, canvas: &mut Canvas, body: Area) {
    let lines = |count: usize| u16::try_from(count.max(1) + 1).unwrap_or(u16::MAX);
    let (services, listeners) = (lines(model.rows().len()), lines(model.listeners().len()));
    let rest = body.height - body.height / 4;
    let services = services.min((rest / 2).max(rest.saturating_sub(listeners)));
    let listeners = listeners.min(rest - services);
    let Some((area, below)) = cut(body, services) else { return };
    services::draw(model, canvas, area);
    let Some((area, below)) = cut(below, listeners) else { return };
    listeners::draw(model, canvas, area);
    events::draw(model, canvas, below);
}

fn header(model: &Model, setting: &Setting, canvas: &mut Canvas, area: Area) {
    let mut clock = format!("{}Z", words::clock(model.now));
    if area.width >= 100 {
        clock = format!("every {}  {clock}", setting.interval);
    }
    let aside = u16::try_from(clock.len()).unwrap_or(u16::MAX);
    let roomy = area.width >= aside + 50;
    let width = if roomy { area.width - aside - 1 } else { area.width };
    let at = canvas.text(area.x, area.y, width, "bindonce top  ", STRONG);
    let left = width.saturating_sub(at - area.x);
    match (&model.lost, &model.broker) {
        (Some((since, _)), _) => {
            let text = format!("broker does not answer since {}Z", words::clock(*since));
            canvas.text(at, area.y, left, &text, BAD);
        }
        (None, Some(broker)) => {
            let since = Timestamp::parse(&broker.since).unwrap_or(model.now);
            let up = words::since(since, model.now);
            let text = format!(
                "broker {} pid {}, up {up}, {}, {}",
                broker.version,
                broker.pid,
                count(model.services.len(), "service"),
                count(broker.listeners, "listener"),
            );
            canvas.text(at, area.y, left, &text, PLAIN);
        }
        (None, None) => {
            canvas.text(at, area.y, left, "asking the broker", FAINT);
        }
    }
    if roomy {
        canvas.text(area.right() - aside, area.y, aside, &clock, FAINT);
    }
}

/// The lines between the panes and the keys: why the broker does not answer, more about the chosen
/// line, the running action, and the outcome of the last one.
fn notices(model: &Model, width: usize) -> Vec<(String, Style)> {
    let mut lines = Vec::new();
    let mut tell = |text: &str, style: Style| {
        let parts = text.lines().flat_map(|line| words::wrapped(line, width));
        lines.extend(parts.map(|part| (part, style)));
    };
    if let Some((_, reason)) = &model.lost {
        tell(&format!("the broker does not answer: {reason}"), FAINT);
    }
    if let Some(text) = services::detail(model) {
        tell(&text, FAINT);
    }
    if let Some((action, since)) = &model.doing {
        tell(&format!("{}, {}", action.gerund(), words::since(*since, model.now)), WARN);
    }
    match &model.message {
        Some(Message::Notice(_, text)) => tell(text, STRONG),
        Some(Message::Failed(text)) => tell(text, BAD),
        None => {}
    }
    lines
}

fn footer(model: &Model, canvas: &mut Canvas, area: Area) {
    if let Some((service, number)) = &model.asking {
        let text = services::question(model, service, *number);
        canvas.text(area.x, area.y, area.width, &text, Style { bold: true, ..WARN });
        return;
    }
    let keys = [
        ("q", "quit"),
        ("?", "help"),
        ("r", "reload"),
        ("x", "retire"),
        ("s", "sort"),
        ("Tab", "pane"),
        ("j/k", "choose"),
        ("+/-", "time"),
    ];
    let mut x = area.x;
    for (key, what) in keys {
        // Shown whole or not at all.
        let needed = u16::try_from(key.len() + what.len() + 3).unwrap_or(u16::MAX);
        if area.right().saturating_sub(x) < needed - 2 {
            break;
        }
        let at = canvas.text(x, area.y, needed, key, STRONG);
        canvas.text(at + 1, area.y, needed, what, FAINT);
        x += needed;
    }
}

fn help(canvas: &mut Canvas, area: Area) {
    let glyphs = canvas.glyphs;
    let time_line = format!(
        "time line: {} starting, {} serving, {} draining, {} failed or died",
        glyphs.starting, glyphs.serving, glyphs.draining, glyphs.broke
    );
    let lines = [
        "j k, arrows  choose a service or a generation; PgUp PgDn g G go far",
        "Tab          services, listeners, events: where the arrows move",
        "r            reload the chosen service: a new generation on its files as they are",
        "x R          end the chosen generation that drains (of a service: the oldest), after y",
        "s            sort the listeners by name, queue or users",
        "+ - 0        a shorter or longer time line, or one that fits",
        "Ctrl-L       draw anew; Ctrl-Z  to the shell and back with `fg`",
        "Esc          close this, or a message; else, as q and Ctrl-C, end",
        &time_line,
        "A service's own line shows when any of its generations served.",
    ];
    for (y, text) in (area.y..area.bottom()).zip(lines) {
        canvas.text(area.x, y, area.width, text, PLAIN);
    }
}
