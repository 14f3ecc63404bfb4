//! Writes counters as OpenMetrics, under the names of haproxy's own exporter.

use std::fmt::Write as _;

use super::columns::{COLUMNS, Column, Sum};
use super::rows::{Counters, Kind, Row};

/// Writes each family that has a sample. `common` is a label on every sample.
pub fn write(text: &mut String, counters: &Counters, common: (&str, &str)) {
    let common = format!("{}=\"{}\"", common.0, escaped(common.1));
    for (kind, prefix) in [
        (Kind::Frontend, "haproxy_frontend"),
        (Kind::Backend, "haproxy_backend"),
        (Kind::Server, "haproxy_server"),
    ] {
        let rows: Vec<_> = counters.0.iter().filter(|(row, _)| row.kind == kind).collect();
        let rows: Vec<_> =
            rows.into_iter().map(|(row, values)| (labels(row, &common), values)).collect();
        let mut written = "";
        for (at, column) in COLUMNS.iter().enumerate() {
            for (labels, values) in &rows {
                let Some(value) = values.get(at) else { continue };
                if written != column.metric {
                    head(text, prefix, column);
                    written = column.metric;
                }
                let total = if column.sum == Sum::Counter { "_total" } else { "" };
                // Writing to a String does not fail.
                let _ = write!(text, "{prefix}_{}{total}{{{labels}", column.metric);
                if let Some(code) = column.code {
                    let _ = write!(text, ",code=\"{code}\"");
                }
                let _ = writeln!(text, "}} {value}");
            }
        }
    }
}

fn head(text: &mut String, prefix: &str, column: &Column) {
    let Column { metric, help, .. } = column;
    let kind = if column.sum == Sum::Counter { "counter" } else { "gauge" };
    // Writing to a String does not fail.
    let _ = writeln!(text, "# HELP {prefix}_{metric} {help}\n# TYPE {prefix}_{metric} {kind}");
    if metric.ends_with("_seconds") {
        let _ = writeln!(text, "# UNIT {prefix}_{metric} seconds");
    }
}

fn labels(row: &Row, common: &str) -> String {
    let mut labels = format!("{common},proxy=\"{}\"", escaped(&row.proxy));
    if row.kind == Kind::Server {
        // Writing to a String does not fail.
        let _ = write!(labels, ",server=\"{}\"", escaped(&row.server));
    }
    labels
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
