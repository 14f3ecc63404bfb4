//! `bindonce __shim COUNT -- PROGRAM [ARG]...`: the small process between a
//! supervisor and its program. Hidden, because only [`bindonce_sys::spawn`] calls it.

use std::ffi::OsString;
use std::process::ExitCode;

use bindonce_sys::spawn;

/// What a shell answers for a program that cannot be executed.
const CANNOT_EXECUTE: u8 = 127;

/// What the supervisor says.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many descriptors come over standard input.
    count: usize,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the program. Returns only if it cannot, and has then said so in one
/// line on standard error, which is the supervisor's only way to know why.
///
/// # Errors
/// None: a message of `main` would be a second line.
pub(crate) fn run(args: Args, _globals: &crate::Globals) -> anyhow::Result<ExitCode> {
    let Args { count, command } = args;
    if let Some((program, args)) = command.split_first() {
        let error = spawn::become_program(count, program, args);
        match error.hint() {
            Some(hint) => eprintln!("bindonce: {error} ({hint})"),
            None => eprintln!("bindonce: {error}"),
        }
    }
    Ok(ExitCode::from(CANNOT_EXECUTE))
}
