//! What clap has to say, in the manner of hapax: help on standard output and
//! code 0, a mistake as one line (or one JSON object) and code 64.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use crate::args::Cli;
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
    let body = body.strip_prefix("error: ").unwrap_or(body).replace("\n\n  tip:", "; tip:");
    let words: Vec<&str> = body.split_whitespace().collect();
    let help = match subcommand() {
        Some(name) => format!("hapax {name} --help"),
        None => "hapax --help".into(),
    };
    format!("{}; see `{help}`", words.join(" "))
}

/// The subcommand that the line names, as far as one can tell from a line with a mistake.
fn subcommand() -> Option<String> {
    let known = Cli::command();
    std::env::args_os().skip(1).take_while(|arg| arg != "--").find_map(|arg| {
        let name = arg.to_str()?;
        known.get_subcommands().any(|c| c.get_name() == name).then(|| name.to_string())
    })
}
