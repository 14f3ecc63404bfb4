//! What the fuzz targets check, as plain functions of bytes.
//!
//! Each takes any bytes, gives them to one reader of input from outside, and panics where it
//! breaks a promise: not only by crashing, but by giving something else for the same
//! bytes in other pieces, or by not reading again what it has written. fuzz/ calls them
//! under libFuzzer; tests/corpus.rs replays fuzz/seeds through them, so that what was found
//! once stays found without a fuzzer.

#![forbid(unsafe_code)]

mod address;
mod configuration;
mod file;
mod manifest;
mod request;

pub use address::address;
pub use configuration::configuration;
pub use file::file;
pub use manifest::manifest;
pub use request::request;

/// A target: it returns if the bytes break no promise.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its seeds' directory in fuzz/seeds.
pub const TARGETS: [(&str, Target); 5] = [
    ("address", address),
    ("configuration", configuration),
    ("file", file),
    ("manifest", manifest),
    ("request", request),
];
