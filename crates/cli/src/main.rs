//! The `bindonce` binary. Everything it does is in the library beside it, so that the manual
//! pages and completions are made from the very definition that `--help` prints.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bindonce_cli::main()
}
