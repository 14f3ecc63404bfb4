//! The services with their generations, and when each of them served. The time line ends now.

use bindonce_core::history::{Activity, Life};
use bindonce_core::text::count;
use bindonce_core::time::Timestamp;

use super::canvas::{Area, Canvas, PLAIN, Style};
use super::pane::{BAD, FAINT, GOOD, STRONG, WARN, title, window};
use super::words;
use crate::command::top::model::{Model, Pane, Row};
use crate::command::top::overview::{Generation, Service, Supervision};

/// The columns before the time line, for a terminal's width.
struct Columns {
    name: u16,
    /// Process, age, connections, memory: as many as there is room for.
    shown: &'static [Column],
}

#[derive(Debug, Clone, Copy)]
enum Column {
    Pid,
    Age,
    Connections,
    Memory,
}

impl Column {
    fn head(self) -> (u16, &'static str) {
        match self {
            Self::Pid => (7, "PID"),
            Self::Age => (6, "AGE"),
            Self::Connections => (5, "CONN"),
            Self::Memory => (6, "MEM"),
        }
    }
}

const STATE: u16 = 8;

impl Columns {
    fn of(width: u16) -> Self {
        use Column::{Age, Connections, Memory, Pid};
        match width {
            100.. => Self { name: 18, shown: &[Pid, Age, Connections, Memory] },
            72.. => Self { name: 12, shown: &[Pid, Age, Connections, Memory] },
            56.. => Self { name: 12, shown: &[Age, Connections] },
            _ => Self { name: 10, shown: &[] },
        }
    }

    /// Width from the beginning of the state to the time line.
    fn middle(&self) -> u16 {
        STATE + self.shown.iter().map(|column| column.head().0 + 1).sum::<u16>()
    }
}

pub(super) fn draw(model: &Model, canvas: &mut Canvas, area: Area) {
    let columns = Columns::of(area.width);
    let x = area.x + columns.name + columns.middle() + 3;
    let line = Area { x, width: area.right().saturating_sub(x), ..area };
    let (from, seconds) = model.span();
    let span = format!("last {}", words::since(Timestamp(0), Timestamp(seconds * 1000)));
    let mut at = columns.name + STATE + 2;
    let heads = columns.shown.iter().map(|column| {
        let (width, head) = column.head();
        let begin = at + width - u16::try_from(head.len()).unwrap_or(width);
        at += width + 1;
        (begin, head.to_owned())
    });
    let heads: Vec<_> = heads.collect();
    title(canvas, area, ("SERVICES", model.view.pane == Pane::Services), &heads, &span);
    let rows = model.rows();
    if rows.is_empty() && model.looked {
        let text = "no service; start one with `bindonce run -- haproxy -f FILE`";
        canvas.text(area.x, area.y + 1, area.width, if area.height > 1 { text } else { "" }, FAINT);
    }
    let chosen = rows.iter().position(|row| Some(row) == model.chosen()).unwrap_or(0);
    for (number, y) in window(rows.len(), area.height - 1, chosen).zip(area.y + 1..) {
        let row = &rows[number];
        let chosen = number == chosen;
        let text = Area { y, width: (line.x - area.x).saturating_sub(1).min(area.width), ..area };
        let service = model.services.iter().find(|service| service.name == row.0);
        let lives: Vec<&Life> = match row.1 {
            None => model.lives.of(&row.0).map(|(_, life)| life).collect(),
            Some(number) => model.lives.get(&row.0, number).into_iter().collect(),
        };
        match (service, row.1) {
            (Some(service), None) => head(canvas, text, service, &columns, chosen),
            _ => generation(model, canvas, text, (row, service), &columns, chosen),
        }
        time_line(canvas, Area { y, ..line }, &lives, row.1.is_none(), (from, model.now));
    }
}

fn head(canvas: &mut Canvas, area: Area, service: &Service, columns: &Columns, chosen: bool) {
    let (text, style) = match &service.supervision {
        Supervision::By { pid, program, reloads, failed, draining } => {
            let reloads = count(*reloads, "reload");
            let text = match draining {
                0 => format!("{program} by {pid}, {reloads}, {failed} failed"),
                // First, because there may be no room for more.
                percent => format!(
                    "{percent} % answered by older, {reloads}, {failed} failed, {program} by {pid}"
                ),
            };
            (text, if *failed > 0 || *draining > 0 { WARN } else { PLAIN })
        }
        Supervision::Silent(_) => ("its supervisor does not answer".to_owned(), BAD),
        Supervision::Nobody => ("has no supervisor".to_owned(), FAINT),
    };
    let cells = [(columns.name, service.name.clone(), STRONG), (columns.middle(), text, style)];
    canvas.row(area, &cells, chosen);
}

fn generation(
    model: &Model,
    canvas: &mut Canvas,
    area: Area,
    ((name, number), service): (&Row, Option<&Service>),
    columns: &Columns,
    chosen: bool,
) {
    let number = number.unwrap_or_default();
    let life = model.lives.get(name, number);
    let known =
        service.and_then(|service| service.generations.iter().find(|known| known.number == number));
    let gone = Generation::default();
    let (state, style) = match (known, life) {
        (Some(known), _) => (known.state.as_str(), state_style(&known.state)),
        (None, life) => {
            life.and_then(|life| life.broke).map_or(("gone", FAINT), |broke| (broke, BAD))
        }
    };
    let known = known.unwrap_or(&gone);
    let started = known.started.or(life.and_then(Life::begin));
    let until = life.and_then(|life| life.ended).unwrap_or(model.now);
    let mut cells =
        vec![(columns.name, format!("  {number}"), PLAIN), (STATE, state.to_owned(), style)];
    cells.extend(columns.shown.iter().map(|column| {
        let (width, _) = column.head();
        let text = match column {
            Column::Pid => known.pid.map(|pid| pid.to_string()),
            Column::Age => started.map(|started| words::since(started, until)),
            Column::Connections => known.connections.map(|count| count.to_string()),
            Column::Memory => known.memory.map(words::bytes),
        };
        let text = text.unwrap_or_else(|| "-".to_owned());
        (width, format!("{text:>0$}", usize::from(width)), PLAIN)
    }));
    canvas.row(area, &cells, chosen);
}

fn state_style(state: &str) -> Style {
    match state {
        "serving" => GOOD,
        "draining" => WARN,
        _ => PLAIN,
    }
}

/// One character for each part of the time. For a service: whether any generation served.
fn time_line(
    canvas: &mut Canvas,
    area: Area,
    lives: &[&Life],
    service: bool,
    (from, now): (Timestamp, Timestamp),
) {
    let cells = u64::from(area.width);
    let length = now.0.saturating_sub(from.0);
    let begin = |cell: u64| Timestamp(from.0 + length * cell / cells);
    for (cell, x) in (0..cells).zip(area.x..) {
        // The last part includes this very moment.
        let to = if cell + 1 == cells { Timestamp(now.0 + 1) } else { begin(cell + 1) };
        let phases = lives.iter().filter_map(|life| life.activity(begin(cell), to));
        let phases = phases.filter(|phase| !service || *phase >= Activity::Serving);
        // A service that continued to serve has not broken, whatever one of its starts did.
        let phase = if service { phases.min() } else { phases.max() };
        let (glyph, style) = match phase {
            Some(Activity::Starting) => (canvas.glyphs.starting, PLAIN),
            Some(Activity::Serving) => (canvas.glyphs.serving, GOOD),
            Some(Activity::Draining) => (canvas.glyphs.draining, WARN),
            Some(Activity::Broke) => (canvas.glyphs.broke, BAD),
            None => continue,
        };
        canvas.text(x, area.y, 1, glyph, style);
    }
}

/// More about the chosen line.
pub(super) fn detail(model: &Model) -> Option<String> {
    let service = model.service()?;
    let (_, number) = model.chosen()?;
    let known = service.generations.iter().find(|known| Some(known.number) == *number);
    match (known, &service.supervision) {
        (Some(Generation { number, kept_by, .. }), _) if !kept_by.is_empty() => {
            let more = match kept_by.len() - 1 {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            Some(format!("generation {number} is kept by {}{more}", kept_by[0]))
        }
        (_, Supervision::Silent(reason)) => {
            Some(format!("the supervisor of \"{}\" does not answer: {reason}", service.name))
        }
        (
            Some(Generation { number, version: Some(version), .. }),
            Supervision::By { program, .. },
        ) => Some(format!("generation {number} of \"{}\" is {program} {version}", service.name)),
        _ => None,
    }
}

/// The question whether to end a generation.
pub(super) fn question(model: &Model, name: &str, number: u64) -> String {
    let service = model.services.iter().find(|service| service.name == name);
    let known =
        service.and_then(|service| service.generations.iter().find(|known| known.number == number));
    let lost = match known.and_then(|known| known.connections) {
        Some(0) => String::new(),
        Some(connections) => format!(", with its {}", count(connections, "connection")),
        None => ", with its connections".to_owned(),
    };
    // The keys come first: a long name must not push them out of view.
    format!("End it? y/n  generation {number} of \"{name}\"{lost}")
}
