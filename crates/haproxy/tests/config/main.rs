//! Reading and rendering configurations, against answers on file and against the
//! haproxy that is installed.

mod golden;
mod messages;
mod properties;
mod support;
mod words;
