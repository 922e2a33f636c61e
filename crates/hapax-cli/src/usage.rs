//! What clap has to say, in the manner of hapax: help on standard output and
//! code 0, a mistake as one line (or one JSON object) and code 64.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::{Failure, USAGE};
use crate::terminal;

/// Prints help or the mistake, and gives the exit code.
pub fn answer(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that is gone, as in `hapax --help | head -1`, is no failure.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(USAGE);
        }
        _ => {}
    }
    let failure = Failure::usage(one_sentence(error));
    let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
    terminal::complain(&if json { failure.json("") } else { format!("hapax: {}", failure.line("")) });
    ExitCode::from(USAGE)
}

/// clap's message without its paragraphs.
fn one_sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let body = text.split("\n\nUsage:").next().unwrap_or(&text);
    let body = body.split("\n\nFor more information").next().unwrap_or(body);
    let words: Vec<&str> = body.strip_prefix("error: ").unwrap_or(body).split_whitespace().collect();
    // clap gives the usage of the subcommand that was on its way: its first words name it.
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let usage = usage.trim_start_matches("Usage:").trim();
    let name: Vec<&str> =
        usage.split_whitespace().take_while(|w| w.chars().all(|c| c.is_ascii_lowercase() || c == '-')).collect();
    let name = if name.is_empty() { "hapax".into() } else { name.join(" ") };
    format!("{}; see `{name} --help`", words.join(" "))
}
