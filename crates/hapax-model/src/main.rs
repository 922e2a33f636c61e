//! `hapax-model`: checks the protocol in every state it can reach, and the stores by histories, at length.
//!
//! The tests do the same in short. Exit code 0: every promise holds;
//! 1: one is broken, and the way there is printed.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use hapax_model::check::check;
use hapax_model::protocol::OnDoubt::{Refuse, RunAgain, Verify};
use hapax_model::protocol::{OnDoubt, Protocol};

const HELP: &str = "\
Checks the protocol in every state it can reach, and prints how many there were.

  hapax-model [--attempts N]              attempts that can be told apart at a time: 1 to 4 [default: 3]
  hapax-model histories [COUNT [SEED]]    in place of that, histories of four handles each on a Redis and on a
                                          PostgreSQL, two of which lose their connections over and over; whether an
                                          order explains each [default: 1000 from seed 0, some minutes]

3 attempts are about 4 million states and a minute or two on two cores; 2 are a second.
4 take hours, and more memory than most machines have.";

const CALLERS: [&[OnDoubt]; 7] = [
    &[Refuse, Refuse],
    &[Refuse, Refuse, Refuse],
    &[RunAgain, RunAgain],
    &[Refuse, RunAgain],
    &[Verify, Verify],
    &[Refuse, Verify],
    &[Verify, RunAgain],
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["client", orders] = args.as_slice() {
        return match hapax_model::fleet::client(orders) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("hapax-model: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if let ["histories", rest @ ..] = args.as_slice() {
        let number = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |n| n.parse());
        if let (Ok(count), Ok(seed), true) = (number(0, 1000), number(1, 0), rest.len() <= 2) {
            return histories(seed, count);
        }
    }
    let attempts = match args.as_slice() {
        [] => Some(3),
        ["--attempts", n] => n.parse().ok().filter(|n| (1..=4).contains(n)),
        _ => None,
    };
    let Some(attempts) = attempts else {
        println!("{HELP}");
        return if args.contains(&"--help") { ExitCode::SUCCESS } else { ExitCode::from(64) };
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut sum = 0;
    for callers in CALLERS {
        let report = check(Protocol { attempts, ..Protocol::of(callers) }, threads);
        println!("{callers:?}: {} states, depth {}, {:.1} s", report.states, report.depth, report.took.as_secs_f64());
        sum += report.states;
        if let Some((name, trace)) = report.broken.first() {
            println!("BROKEN: {name}\n{trace}");
            return ExitCode::FAILURE;
        }
    }
    println!("every promise holds in all {sum} states");
    ExitCode::SUCCESS
}

fn histories(seed: u64, count: u64) -> ExitCode {
    let began = Instant::now();
    let told = hapax_model::cut::judge_servers(seed, count, |server, judged| {
        let (calls, silent, cuts) = (judged.calls, judged.unanswered, judged.cuts);
        let took = began.elapsed().as_secs();
        println!(
            "{server}: {} histories, {calls} calls, {silent} of them without an answer, {cuts} cuts; {took} s",
            judged.histories
        );
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(story) => {
            println!("{story}");
            ExitCode::FAILURE
        }
    }
}
