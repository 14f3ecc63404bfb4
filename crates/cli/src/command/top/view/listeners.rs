//! The listeners, and how full their queues are.

use bindonce::{HolderInfo, ListenerInfo};

use super::canvas::{Area, Canvas, Column, PLAIN, Style};
use super::pane::{BAD, FAINT, GOOD, WARN, title, window};
use super::words;
use crate::command::list::queue;
use crate::command::top::model::{Model, Pane, fullness};

/// Width of a bar.
const BAR: u16 = 10;
/// Width of the numbers: how many wait, and how many may.
const NUMBERS: u16 = 11;

pub(super) fn draw(model: &Model, canvas: &mut Canvas, area: Area) {
    let listeners = model.listeners();
    let stale = model.lost.as_ref().map(|(since, _)| words::clock(*since));
    let aside = match &stale {
        Some(since) if !listeners.is_empty() => format!("as they were at {since}Z"),
        _ => format!("by {}", model.view.sort.word()),
    };
    let shown = window(listeners.len(), area.height - 1, model.view.listener);
    let (name, address) = columns(area.width);
    let mut heads = Vec::new();
    if shown.len() < listeners.len() {
        heads.push((11, format!("{} to {} of {}", shown.start + 1, shown.end, listeners.len())));
    }
    if address > 0 {
        let queue = name + 1 + address + 1;
        heads.push((queue, "QUEUE".to_owned()));
        heads.push((queue + BAR + 1 + NUMBERS + 1, "USED BY".to_owned()));
    }
    let pane = ("LISTENERS", model.view.pane == Pane::Listeners);
    title(canvas, area, pane, &heads, &aside);
    let y = area.y + 1;
    if listeners.is_empty() && y < area.bottom() && (model.looked || stale.is_some()) {
        let text = if stale.is_some() { "not known" } else { "none is held" };
        canvas.text(area.x, y, area.width, text, FAINT);
    }
    for (number, y) in shown.zip(y..) {
        let cells = cells(canvas, listeners[number], area.width, stale.is_some());
        let chosen = model.view.pane == Pane::Listeners && number == model.view.listener;
        canvas.row(Area { y, ..area }, &cells, chosen);
    }
}

/// Widths of name and address. Without room there is no address.
fn columns(width: u16) -> (u16, u16) {
    match width {
        100.. => (18, 30),
        72.. => (12, 21),
        _ => (8, 0),
    }
}

fn cells(canvas: &Canvas, listener: &ListenerInfo, width: u16, stale: bool) -> Vec<Column> {
    let style = |style: Style| if stale { FAINT } else { style };
    let (name, address) = columns(width);
    // An unnamed listener is called by its address, which is shown once.
    let mut cells = if address > 0 && listener.bound == listener.name {
        vec![(name + 1 + address, listener.name.clone(), style(PLAIN))]
    } else {
        vec![(name, listener.name.clone(), style(PLAIN))]
    };
    if address > 0 && listener.bound != listener.name {
        cells.push((address, listener.bound.clone(), style(PLAIN)));
    }
    let fullness = fullness(listener);
    let colour = match fullness {
        full if full >= 0.8 => BAD,
        half if half >= 0.5 => WARN,
        _ => GOOD,
    };
    cells.push((BAR, bar(canvas, fullness), style(colour)));
    cells.push((NUMBERS, queue(listener).unwrap_or_default(), style(PLAIN)));
    let (text, colour) = state(listener);
    cells.push((0, text, style(colour)));
    cells
}

/// A bar on which any waiting connection shows.
fn bar(canvas: &Canvas, fullness: f64) -> String {
    if fullness < 0.0 {
        return String::new();
    }
    let full = (0..BAR).filter(|cell| fullness * f64::from(BAR) > f64::from(*cell)).count();
    canvas.glyphs.full.repeat(full) + &canvas.glyphs.empty.repeat(usize::from(BAR) - full)
}

/// What is unusual, then the holders.
fn state(listener: &ListenerInfo) -> (String, Style) {
    let mut words = Vec::new();
    let mut style = PLAIN;
    if !listener.listening {
        words.push("NOT LISTENING".to_owned());
        style = BAD;
    }
    if !listener.exclusive {
        words.push("not exclusive".to_owned());
        style = if style == BAD { BAD } else { WARN };
    }
    if listener.tentative {
        words.push("tentative".to_owned());
    }
    if listener.repaired > 0 {
        words.push(format!("repaired {} times", listener.repaired));
    }
    words.extend(listener.holders.iter().map(holder));
    if listener.holders.is_empty() {
        words.push("no holder".to_owned());
    }
    (words.join(", "), style)
}

fn holder(holder: &HolderInfo) -> String {
    match (&holder.service, holder.generation) {
        (Some(service), Some(generation)) => format!("{service}/{generation}"),
        _ if holder.pid == 0 => format!("uid {}", holder.uid),
        _ => format!("pid {}", holder.pid),
    }
}
