//! Renders the report: for people on one screen, and for programs as JSON.
//!
//! [`words::words`] turns a finding into text: the summary, the cause, and the remedy. Its
//! sentences are there and nowhere else; docs/findings-*.md quote them, and a test compares the
//! two.

mod json;
mod process;
pub(crate) mod screen;
mod units;
pub(crate) mod words;

pub use json::json;
pub use screen::screen;
