//! The `bindonce` binary. Everything it does is in the library beside it, so that manual pages and
//! completions come from the same definition as `--help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bindonce_cli::main()
}
