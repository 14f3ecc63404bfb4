//! A canvas of characters, written a column at a time.

use unicode_width::UnicodeWidthChar as _;

/// How a character is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) colour: Option<Colour>,
    pub(crate) bold: bool,
    pub(crate) dim: bool,
    pub(crate) reversed: bool,
}

/// The colours in use, with their codes for Select Graphic Rendition (ECMA-48).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

pub(crate) const PLAIN: Style = Style { colour: None, bold: false, dim: false, reversed: false };

/// The characters used to draw.
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

/// For terminals that know these characters.
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

/// For all other terminals.
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

/// A rectangle of a canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(super) x: u16,
    pub(super) y: u16,
    pub(super) width: u16,
    pub(super) height: u16,
}

impl Area {
    pub(super) fn right(self) -> u16 {
        self.x.saturating_add(self.width)
    }

    pub(super) fn bottom(self) -> u16 {
        self.y.saturating_add(self.height)
    }
}

/// One place on a canvas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    /// None in the second half of a wide character.
    pub(crate) character: Option<char>,
    pub(crate) style: Style,
}

/// A column of a row: its width, its text, and how that is shown.
pub(super) type Column = (u16, String, Style);

/// What a screen shows.
#[derive(Debug)]
pub(crate) struct Canvas {
    width: u16,
    height: u16,
    cells: Vec<Cell>,
    pub(super) glyphs: &'static Glyphs,
}

impl Canvas {
    pub(crate) fn new((width, height): (u16, u16), glyphs: &'static Glyphs) -> Self {
        let blank = Cell { character: Some(' '), style: PLAIN };
        let cells = vec![blank; usize::from(width) * usize::from(height)];
        Self { width, height, cells, glyphs }
    }

    /// The whole canvas.
    pub(super) fn area(&self) -> Area {
        Area { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// The lines, from the top.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(usize::from(self.width).max(1))
    }

    /// The cells of a line from one column up to another, as far as there are any.
    fn places(&mut self, y: u16, from: u16, to: u16) -> &mut [Cell] {
        let line = usize::from(y) * usize::from(self.width);
        let (from, to) = (from.min(self.width), to.min(self.width));
        let places = line + usize::from(from)..line + usize::from(to);
        self.cells.get_mut(places).unwrap_or_default()
    }

    /// Writes a text in at most `width` columns from `x` on, cut visibly if it is longer, and
    /// returns the column where it ends. Nothing is written outside the canvas. Characters that
    /// control the terminal, or that have no width of their own (marks, changes of direction), are
    /// left out.
    pub(in crate::command::top) fn text(
        &mut self,
        x: u16,
        y: u16,
        width: u16,
        text: &str,
        style: Style,
    ) -> u16 {
        let cut = self.glyphs.cut.chars().next();
        let places = self.places(y, x, x.saturating_add(width));
        let width = |character: char| character.width().unwrap_or(0);
        let shown = || text.chars().filter(|character| width(*character) > 0);
        let fits = shown().map(width).sum::<usize>() <= places.len();
        let room = if fits { places.len() } else { places.len().saturating_sub(1) };
        let mut at = 0;
        for character in shown() {
            let end = at + width(character);
            if end > room {
                break;
            }
            let mut character = Some(character);
            for place in &mut places[at..end] {
                *place = Cell { character: character.take(), style };
            }
            at = end;
        }
        if !fits && let Some(place) = places.get_mut(at) {
            *place = Cell { character: cut, style };
            at += 1;
        }
        x.saturating_add(u16::try_from(at).unwrap_or(u16::MAX))
    }

    /// Writes columns a space apart. The last one gets the rest of the area's width.
    pub(super) fn row(&mut self, area: Area, columns: &[Column], chosen: bool) {
        let right = area.right().min(self.width);
        let mut at = area.x;
        for (number, (width, text, style)) in columns.iter().enumerate() {
            let left = right.saturating_sub(at);
            let width = if number + 1 == columns.len() { left } else { left.min(*width) };
            self.text(at, area.y, width, text, *style);
            at = at.saturating_add(width).saturating_add(1).min(right);
        }
        if chosen {
            for place in self.places(area.y, area.x, right) {
                place.style.reversed = true;
            }
        }
    }
}
