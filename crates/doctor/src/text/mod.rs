//! What people and programs read: the report on one screen, and as JSON.
//!
//! [`words::words`] says of one finding what it is, why it is so, and what to do. Its sentences are
//! there and nowhere else; docs/failure-modes.md shows them, and a test compares the two.

mod json;
mod process;
pub(crate) mod screen;
mod units;
pub(crate) mod words;

pub use json::json;
pub use screen::screen;
