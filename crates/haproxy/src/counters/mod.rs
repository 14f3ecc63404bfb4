//! haproxy's own counters: read from `show stat`, summed over the generations of a service, and
//! written under the names and labels of haproxy's own exporter.
//!
//! A sum never goes down. The counts of a generation stay in it when the generation is gone, has
//! cleared its counters, or no longer answers.
//!
//! Source: haproxy's management guide, section 9.1, "CSV format"; the README of its exporter for
//! the names.

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
