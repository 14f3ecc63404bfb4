//! What people and programs read: the report on one screen, and as JSON.
//!
//! [`words::words`] gives a finding in words: what it is, the cause, and what to do. Its sentences are
//! there and nowhere else; docs/findings-*.md show them, and a test compares the two.

mod json;
mod process;
pub(crate) mod screen;
mod units;
pub(crate) mod words;

pub use json::json;
pub use screen::screen;
