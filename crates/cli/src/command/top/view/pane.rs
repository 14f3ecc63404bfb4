//! What the panes share: their styles, their titles, and which of their lines are shown.

use super::canvas::{Area, Canvas, Colour, PLAIN, Style};

pub(super) const STRONG: Style = Style { bold: true, ..PLAIN };
pub(super) const FAINT: Style = Style { dim: true, ..PLAIN };
pub(super) const GOOD: Style = Style { colour: Some(Colour::Green), ..PLAIN };
pub(super) const WARN: Style = Style { colour: Some(Colour::Yellow), ..PLAIN };
pub(in crate::command::top) const BAD: Style = Style { colour: Some(Colour::Red), ..STRONG };

/// A pane's title: its name, the heads of columns where they have room, and a text on the right.
pub(super) fn title(
    canvas: &mut Canvas,
    area: Area,
    (name, chosen): (&str, bool),
    heads: &[(u16, String)],
    aside: &str,
) {
    let length = |text: &str| u16::try_from(text.chars().count()).unwrap_or(u16::MAX);
    for x in area.x..area.right() {
        canvas.text(x, area.y, 1, canvas.glyphs.rule, FAINT);
    }
    let style = if chosen { STRONG } else { FAINT };
    let mut at = canvas.text(area.x, area.y, area.width, name, style);
    at = canvas.text(at, area.y, area.right() - at, " ", PLAIN);
    let right = area.right().saturating_sub(length(aside).saturating_add(1));
    for (x, head) in heads {
        // With a space on both sides, over the rule.
        let begin = (area.x + x).saturating_sub(1);
        if begin + 1 >= at && begin + length(head) + 2 <= right {
            at = canvas.text(begin, area.y, area.width, &format!(" {head} "), FAINT);
        }
    }
    if !aside.is_empty() && right >= at {
        canvas.text(right, area.y, length(aside) + 1, &format!(" {aside}"), FAINT);
    }
}

/// Which of `count` lines are shown in `height`, so that `at` is in view.
pub(super) fn window(count: usize, height: u16, at: usize) -> std::ops::Range<usize> {
    let height = usize::from(height).min(count);
    let first = at.saturating_sub(height / 2).min(count - height);
    first..first + height
}
