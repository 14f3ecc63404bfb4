//! Reads and renders configurations, and compares with expected results and with the installed
//! haproxy.

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
