//! `bindonce __shim COUNT [PID] [service] -- PROGRAM [ARG]...`: the small process between a
//! supervisor and its program. Hidden, because only [`bindonce_sys::spawn`] calls it; [`bindonce_sys::shim`] is what it does.

use std::process::ExitCode;

use bindonce_sys::shim::Order;

/// What a shell answers for a program that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;

/// Becomes the program. Returns only if it cannot, and has then said so in one
/// line on standard error, which is the supervisor's only way to know why. The words are
/// read by hand: this stands between a supervisor and every start of its program.
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
