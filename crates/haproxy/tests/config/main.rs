//! Reading and rendering configurations, against answers on file and against the
//! haproxy that is installed.

mod devices;
mod golden;
mod messages;
#[path = "../../../../tests/fuzz/src/one.rs"]
mod one;
mod properties;
#[path = "../../../../tests/harness/skip.rs"]
mod skip;
mod support;
mod words;
