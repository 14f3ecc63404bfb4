//! `bindonce __shim COUNT [PID] [service] -- PROGRAM [ARG]...`: the small process between a
//! supervisor and its program. Hidden, because only [`bindonce_sys::spawn`] calls it;
//! [`bindonce_sys::shim`] does the work.

use std::process::ExitCode;

use bindonce_sys::shim::Order;

/// A shell's exit code for a program that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;

/// Becomes the program. Returns only on failure, after one line on standard error, which is the
/// supervisor's only way to learn the reason. The words are parsed by hand, because this runs at
/// every start of a supervisor's program.
pub(crate) fn run() -> ExitCode {
    if let Some(order) = Order::parse(std::env::args_os().skip(2)) {
        let error = order.carry_out();
        match error.hint() {
            Some(hint) => eprintln!("bindonce: {error} ({hint})"),
            None => eprintln!("bindonce: {error}"),
        }
    } else {
        eprintln!("bindonce: __shim is for bindonce itself: it starts programs for `bindonce run`");
    }
    ExitCode::from(CANNOT_EXECUTE)
}
