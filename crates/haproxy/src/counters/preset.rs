//! Reads a `stats-file`, from which haproxy initializes its counters. Its columns are those of
//! `show stat`. haproxy and this module read them by position. Source: haproxy's management guide,
//! 9.5; src/stats-file.c (3.0 to 3.5-dev5).

use super::columns::{COLUMNS, Sum};
use super::rows::{Counters, Kind, Row};
use super::table::MOST;
use crate::config::Guids;

/// Reads the counters of the objects in `guids`. Everything else is ignored, as in haproxy.
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

/// Whether a header is the one of frontends, and the index of each column that is a counter. None
/// for a section that haproxy does not know.
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
