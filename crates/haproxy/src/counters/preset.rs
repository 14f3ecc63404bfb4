//! A `stats-file`: what haproxy begins to count with. Its columns are those of `show stat`, which it reads by their place, as is
//! done here. Source: haproxy's management guide, 9.5; src/stats-file.c (3.0 to 3.5-dev5).

use super::columns::{COLUMNS, Sum};
use super::rows::{Counters, Kind, Row};
use super::table::MOST;
use crate::config::Guids;

/// Reads what such a file says about what `guids` names. Nothing of anything else: haproxy passes over it as well.
pub fn preset(text: &str, guids: &Guids) -> Counters {
    let mut counters = Counters::default();
    let mut section = None;
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('#') {
            section = columns(header);
            continue;
        }
        let Some((frontends, columns)) = &section else { continue };
        let mut fields = line.split(',');
        let Some((proxy, server)) = fields.next().and_then(|guid| guids.get(guid)) else {
            continue;
        };
        let kind = match (frontends, server) {
            (true, None) => Kind::Frontend,
            (false, None) => Kind::Backend,
            (false, Some(_)) => Kind::Server,
            (true, Some(_)) => continue,
        };
        if counters.0.len() >= MOST {
            break;
        }
        let server = server.as_deref().unwrap_or_default();
        let row = Row { kind, proxy: proxy.as_str().into(), server: server.into() };
        let values = counters.0.entry(row).or_default();
        for (column, field) in columns.iter().zip(fields) {
            if let (Some(column), Ok(value)) = (column, field.parse()) {
                values.set(*column, value);
            }
        }
    }
    counters
}

/// Whether a header is that of frontends, and its columns that are counters; none if haproxy knows no such section.
fn columns(header: &str) -> Option<(bool, Vec<Option<usize>>)> {
    let (name, columns) = header.split_once(" guid,")?;
    let frontends = match name {
        "fe" => true,
        "be" => false,
        _ => return None,
    };
    let place = |name: &str| {
        COLUMNS.iter().position(|column| column.name == name && column.sum == Sum::Counter)
    };
    Some((frontends, columns.split(',').map(place).collect()))
}
