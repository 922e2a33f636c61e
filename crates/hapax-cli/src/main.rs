//! The binary `hapax`: see the library beside it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hapax_cli::main()
}
