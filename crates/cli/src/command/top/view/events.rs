//! The events, newest last.

use bindonce_core::event::{Kind, Severity};

use super::canvas::{Area, Canvas, PLAIN};
use super::pane::{BAD, FAINT, GOOD, WARN, title, window};
use super::words;
use crate::command::top::model::{Model, Pane};
use crate::events::SourcedEvent;

pub(super) fn draw(model: &Model, canvas: &mut Canvas, area: Area) {
    if area.height == 0 {
        return;
    }
    let count = model.events.len();
    let aside =
        if model.view.back > 0 { format!("{} newer", model.view.back) } else { String::new() };
    title(canvas, area, ("EVENTS", model.view.pane == Pane::Events), &[], &aside);
    let at = count.saturating_sub(model.view.back + 1);
    // The newest is at the bottom.
    let height = area.height - 1;
    let shown = if model.view.back == 0 {
        count.saturating_sub(usize::from(height))..count
    } else {
        window(count, height, at)
    };
    for (number, y) in shown.zip(area.y + 1..) {
        let chosen = model.view.pane == Pane::Events && model.view.back > 0 && number == at;
        event(canvas, Area { y, ..area }, &model.events[number], chosen);
    }
}

fn event(canvas: &mut Canvas, area: Area, sourced: &SourcedEvent, chosen: bool) {
    let event = &sourced.event;
    let about = match (&event.service, event.generation) {
        (Some(service), Some(generation)) => format!("{service}/{generation}"),
        (Some(service), None) => service.to_string(),
        (None, _) => sourced.source.to_string(),
    };
    let style = match Kind::from_word(&event.kind).map(Kind::severity) {
        Some(Severity::Good) => GOOD,
        Some(Severity::Warning) => WARN,
        Some(Severity::Error) => BAD,
        Some(Severity::Normal) | None => PLAIN,
    };
    let mut cells = vec![(8, words::clock(event.time), FAINT)];
    if area.width >= 56 {
        cells.push((12, about, PLAIN));
        cells.push((19, event.kind.to_string(), style));
        cells.push((0, event.text.lines().collect::<Vec<_>>().join(" "), PLAIN));
    } else {
        cells.push((8, about, PLAIN));
        cells.push((0, event.kind.to_string(), style));
    }
    canvas.row(area, &cells, chosen);
}
