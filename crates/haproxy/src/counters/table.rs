//! Reads and writes the table of `show stat`.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::columns::COLUMNS;
use super::rows::{Counters, Kind, Row, Values};

/// The command for frontends, backends and servers; [`read`] takes the answer.
pub const QUESTION: &str = "show stat -1 7 -1";

/// Limit on the number of frontends, backends and servers; further ones are left out.
pub(super) const MOST: usize = 20_000;
/// Limit on the length of a name in bytes; longer ones are left out. A name in haproxy is shorter
/// than a line.
const LONGEST: usize = 256;
/// The columns that identify a row.
const WHICH: [&str; 3] = ["pxname", "svname", "type"];

/// Reads an answer, or the text from [`Counters::table`]. None if the text is something else or is
/// incomplete.
pub fn read(text: &str) -> Option<Counters> {
    let mut fields = Fields(text.strip_prefix("# ")?);
    let mut header = Vec::new();
    loop {
        let field = fields.next()?;
        header.push(field.text);
        if field.ends_line {
            break;
        }
    }
    let place = |name: &str| header.iter().position(|column| column == name);
    let [proxy_at, server_at, type_at] = WHICH.map(place);
    let (proxy_at, server_at, type_at) = (proxy_at?, server_at?, type_at?);
    let columns: Vec<_> =
        header.iter().map(|name| COLUMNS.iter().position(|column| column.name == name)).collect();
    let mut counters = Counters::default();
    // An empty line ends the table.
    while !fields.0.trim_end().is_empty() {
        let (mut proxy, mut server, mut kind) = (Cow::default(), Cow::default(), None);
        let mut values = Values::default();
        for at in 0.. {
            let Field { text, ends_line } = fields.next()?;
            match columns.get(at) {
                Some(Some(column)) => {
                    if let Ok(value) = text.parse() {
                        values.set(*column, value);
                    }
                }
                _ if at == proxy_at => proxy = text,
                _ if at == server_at => server = text,
                _ if at == type_at => kind = kind_of(&text),
                _ => {}
            }
            if ends_line {
                break;
            }
        }
        let Some(kind) = kind else { continue };
        if proxy.len().max(server.len()) > LONGEST || counters.0.len() >= MOST {
            continue;
        }
        let server = if kind == Kind::Server { &*server } else { "" };
        counters.0.insert(Row { kind, proxy: (&*proxy).into(), server: server.into() }, values);
    }
    Some(counters)
}

fn kind_of(text: &str) -> Option<Kind> {
    match text {
        "0" => Some(Kind::Frontend),
        "1" => Some(Kind::Backend),
        "2" => Some(Kind::Server),
        _ => None,
    }
}

impl Counters {
    /// Writes the table as `show stat` does, for [`read`].
    pub fn table(&self) -> String {
        let mut text = format!("# {}", WHICH.join(","));
        for column in COLUMNS {
            text.push(',');
            text.push_str(column.name);
        }
        for (row, values) in &self.0 {
            // Writing to a String does not fail.
            let _ =
                write!(text, "\n{},{},{}", quoted(&row.proxy), quoted(&row.server), row.kind as u8);
            for column in 0..COLUMNS.len() {
                text.push(',');
                if let Some(value) = values.get(column) {
                    let _ = write!(text, "{value}");
                }
            }
        }
        text.push('\n');
        text
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The fields of a table, separated by commas. A field may be in quotes; two quotes in it stand for
/// one (RFC 4180).
struct Fields<'a>(&'a str);

struct Field<'a> {
    text: Cow<'a, str>,
    ends_line: bool,
}

impl<'a> Fields<'a> {
    /// The next field; None if the text ends in the middle of one.
    fn next(&mut self) -> Option<Field<'a>> {
        let text = match self.0.strip_prefix('"') {
            Some(quoted) => {
                let mut end = 0;
                loop {
                    end += quoted.get(end..)?.find('"')?;
                    if !quoted.get(end + 1..)?.starts_with('"') {
                        break;
                    }
                    end += 2;
                }
                self.0 = quoted.get(end + 1..)?;
                let text = quoted.get(..end)?;
                if text.contains('"') { text.replace("\"\"", "\"").into() } else { text.into() }
            }
            None => {
                let end = self.0.find([',', '\n'])?;
                let (text, rest) = self.0.split_at(end);
                self.0 = rest;
                text.into()
            }
        };
        let ends_line = self.0.starts_with('\n');
        if !ends_line && !self.0.starts_with(',') {
            return None;
        }
        self.0 = self.0.get(1..)?;
        Some(Field { text, ends_line })
    }
}
