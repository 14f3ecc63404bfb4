//! Writes on a buffer, a column at a time.

use ratatui_core::buffer::Buffer;
use ratatui_core::style::Style;
use ratatui_core::text::Span;

/// The characters that are drawn.
#[derive(Debug)]
pub(crate) struct Glyphs {
    pub(super) starting: &'static str,
    pub(super) serving: &'static str,
    pub(super) draining: &'static str,
    pub(super) broke: &'static str,
    pub(super) full: &'static str,
    pub(super) empty: &'static str,
    pub(super) rule: &'static str,
    pub(super) cut: &'static str,
}

/// For terminals that know them.
pub(crate) const UNICODE: Glyphs = Glyphs {
    starting: "░",
    serving: "█",
    draining: "▒",
    broke: "x",
    full: "█",
    empty: "░",
    rule: "─",
    cut: "…",
};

/// For all others.
pub(crate) const ASCII: Glyphs = Glyphs {
    starting: "o",
    serving: "#",
    draining: "=",
    broke: "x",
    full: "#",
    empty: ".",
    rule: "-",
    cut: "~",
};

/// A buffer, and what is drawn with.
#[derive(Debug)]
pub(super) struct Pen<'a> {
    buffer: &'a mut Buffer,
    pub(super) glyphs: &'static Glyphs,
}

/// A column of a row: its width, what stands in it, and how.
pub(super) type Cell = (u16, String, Style);

impl<'a> Pen<'a> {
    pub(super) fn new(buffer: &'a mut Buffer, glyphs: &'static Glyphs) -> Self {
        Self { buffer, glyphs }
    }

    /// Writes a text in at most `width` columns from `x` on, cut visibly if it is longer, and
    /// gives where it ends. Nothing is written outside the buffer.
    pub(super) fn text(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let area = self.buffer.area;
        let width = width.min(area.right().saturating_sub(x));
        if width == 0 || x < area.x || y < area.y || y >= area.bottom() {
            return x;
        }
        if Span::raw(text).width() <= usize::from(width) {
            return self.buffer.set_stringn(x, y, text, usize::from(width), style).0;
        }
        let (end, _) = self.buffer.set_stringn(x, y, text, usize::from(width) - 1, style);
        self.buffer.set_stringn(end, y, self.glyphs.cut, 1, style).0
    }

    /// Writes columns with a space between; the last one gets what is left of `width`.
    pub(super) fn row(&mut self, x: u16, y: u16, width: u16, cells: &[Cell], over: Style) {
        let right = x.saturating_add(width).min(self.buffer.area.right());
        let mut at = x;
        for (number, (width, text, style)) in cells.iter().enumerate() {
            let left = right.saturating_sub(at);
            let width = if number + 1 == cells.len() { left } else { left.min(*width) };
            self.text(at, y, width, text, *style);
            at = at.saturating_add(width).saturating_add(1).min(right);
        }
        if over != Style::new() {
            for x in x..right {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.set_style(over);
                }
            }
        }
    }
}
