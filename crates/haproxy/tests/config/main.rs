//! Reading and rendering configurations, against answers on file and against the
//! haproxy that is installed.

mod golden;
mod messages;
mod properties;
#[path = "../../../../tests/harness/skip.rs"]
mod skip;
mod support;
mod words;
