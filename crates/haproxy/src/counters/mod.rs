//! haproxy's own counters: read from `show stat`, summed over the generations of a service, and written under the names and
//! labels of haproxy's own exporter.
//!
//! A sum never goes down, whatever the generations say: what one has counted stays in it when that one is gone, has
//! cleared its counters, or answers no more.
//!
//! Source: haproxy's management guide, section 9.1, "CSV format"; its exporter's README for the names.

mod columns;
mod lately;
mod page;
mod preset;
mod rows;
mod table;
mod totals;

pub use lately::{Lately, Unit};
pub use page::write;
pub use preset::preset;
pub use rows::{Counters, Kind, Row};
pub use table::{QUESTION, read};
pub use totals::Totals;

#[cfg(test)]
mod tests;
