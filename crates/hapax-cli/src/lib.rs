//! The command line of hapax. Its interface is the binary `hapax`; this library
//! is for that binary and the fuzzer alone, and may change at any time.
#![forbid(unsafe_code)]

mod action;
mod args;
mod child;
mod commands;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod output;
mod run;
mod sealed;
mod settings;
mod signals;
mod streams;
mod terminal;
mod top;
mod units;
mod usage;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

/// Reads the command line, runs one command, and says in one line how it failed if it did.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    let (json, flags) = (cli.global.json, cli.global.flags());
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let line = if json { failure.json(&flags) } else { format!("hapax: {}", failure.line(&flags)) };
            terminal::complain(&line);
            ExitCode::from(failure.code)
        }
    }
}
