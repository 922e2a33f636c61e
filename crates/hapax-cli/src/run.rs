//! `hapax run`: claims the key, runs the command or replays its record.
//!
//! Invariant: every way out says what became of the key: recorded, free, or in
//! doubt. The key is free only if nothing ran, or the command said by a nonzero
//! exit that it failed.

mod report;
mod waiting;

use std::process::Stdio;
use std::time::Duration;

use hapax::{AttemptId, Claim, Claimed, Error, Hapax, Json, Key, OnDoubt, PolicyPatch, Record, State};
use rustix::io::Errno;

use self::report::Report;
use self::waiting::Waiting;
use crate::action::{Planned, reads_stdin};
use crate::args::{DoubtChoice, Run};
use crate::child::{self, Ended, Fate, Stopped, Terms};
use crate::commands::{close, manager};
use crate::failure::{Failure, IN_DOUBT};
use crate::output::Output;
use crate::settings::{Chosen, From, Settings};
use crate::signals::{Caught, Signals, name_of};
use crate::streams::{self, Kept};
use crate::terminal::print;
use crate::units::say;
use crate::verify::verifier;

/// How long a claim that a signal interrupts may take to say whether it was made.
const LAST_CALL: Duration = Duration::from_millis(200);
/// How long expired records are cleared away after a run.
const TIDY_LIMIT: Duration = Duration::from_millis(200);

/// Our own output could not be written.
const LOST_OUTPUT: u8 = 1;
/// How the program that could not be started is answered, as shells do.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;

/// Runs or replays; gives the exit code.
pub async fn run(args: Run, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let planned = Planned::new(&args.action, &args.command, settings)?;
    let report = Report { json, verbose: args.verbose };
    let waiting = Waiting::new(json, args.verbose);
    let mut signals = Signals::listen()?;
    let hook = waiting.clone();
    // What is wrong with the choices is said before there is a store.
    let policy = policy(&planned.chosen, settings)?;
    let hapax = manager(settings)
        .await?
        .policy(policy)
        .on_wait(move |record, waited| hook.show(record, waited))
        .build()
        .await?;
    let answer = answer(&hapax, &args, planned, settings, report, &waiting, &mut signals).await;
    // The answer stands; what cannot be counted any more is not worth another one.
    close(&hapax).await;
    answer
}

fn policy(chosen: &Chosen, settings: &Settings) -> Result<PolicyPatch, Failure> {
    let patch = chosen.patch();
    match (chosen.on_doubt.value, &chosen.verify.value) {
        (DoubtChoice::Verify, Some(command)) => {
            Ok(patch.on_doubt(OnDoubt::Verify(verifier(command.clone(), settings.max_output.value.0))))
        }
        (DoubtChoice::Verify, None) => {
            let from = From("on_doubt", chosen.on_doubt.source);
            Err(Failure::usage(format!("on_doubt is verify ({from}), but there is nobody to ask: give --verify CMD")))
        }
        (DoubtChoice::Refuse | DoubtChoice::Rerun, _) => Ok(patch),
    }
}

async fn answer(
    hapax: &Hapax,
    args: &Run,
    planned: Planned,
    settings: &Settings,
    report: Report,
    waiting: &Waiting,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let claimed = claim(hapax, &planned, signals).await;
    waiting.clear();
    match claimed? {
        Claimed::Replay(record) if record.state == State::Failed => Err(Error::Failed {
            key: record.key.clone(),
            message: record.error.clone().unwrap_or_default(),
            at: record.executed_at.unwrap_or(record.started_at),
        }
        .into()),
        Claimed::Replay(record) => replay(&record, report),
        Claimed::Started(claim) => {
            let code = execute(hapax, claim, args, &planned.chosen, settings, report, signals).await?;
            if settings.auto_cleanup.value {
                // Bounded, and safe to cut short: the next run goes on with it.
                let _ = tokio::time::timeout(TIDY_LIMIT, hapax.cleanup_expired()).await;
            }
            Ok(code)
        }
    }
}

/// Answers from the record; gives the exit code.
fn replay(record: &Record, report: Report) -> Result<u8, Failure> {
    report.note_replay(record);
    let recorded = record.result.as_ref().and_then(|r| Output::from_json(r.as_str()));
    let foreign = record.result.as_ref().filter(|_| recorded.is_none());
    let output = recorded.or_else(|| foreign.map(Output::of_foreign)).unwrap_or_default();
    if report.json {
        print(&report.replayed(record, &output, foreign)?)?;
    } else if let Err(e) = streams::replay(&output.stdout, &output.stderr) {
        report.lost_output(&e, true);
        return Ok(LOST_OUTPUT);
    }
    Ok(output.exit_code)
}

/// Claims the key. Until that is done nothing has run, and a signal ends it all.
async fn claim(hapax: &Hapax, planned: &Planned, signals: &mut Signals) -> Result<Claimed, Failure> {
    let claim = hapax.claim(&planned.action);
    tokio::pin!(claim);
    let caught = tokio::select! {
        // A signal that came while the store was opened is older than the claim.
        biased;
        caught = signals.next() => caught,
        claimed = &mut claim => return Ok(claimed?),
    };
    // A claim that is being made just now is given back rather than left in doubt.
    if let Ok(Ok(Claimed::Started(claim))) = tokio::time::timeout(LAST_CALL, claim).await {
        let _ = claim.release().await;
    }
    Err(interrupted(caught))
}

fn interrupted(caught: Caught) -> Failure {
    // As shells say it: 128 and the signal's number.
    let code = 128 + u8::try_from(caught.signal.as_raw()).unwrap_or(0);
    Failure::new(
        code,
        "interrupted",
        format!("ended by SIG{} while waiting; the command was not started: run the same line again", caught.name),
    )
}

/// Runs the command under its claim.
async fn execute(
    hapax: &Hapax,
    claim: Claim,
    args: &Run,
    chosen: &Chosen,
    settings: &Settings,
    report: Report,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let (key, attempt) = (claim.key().clone(), claim.attempt());
    let stdin = if reads_stdin(args.action.params.as_deref()) { Stdio::null() } else { Stdio::inherit() };
    let time_limit = chosen.timeout.value.0;
    let keep = settings.max_output.value.0;
    let mut terms = Terms { key: &key, attempt, stdin, time_limit, keep };
    // Before the command: once that is started, nothing may be in its way.
    let (stdout, stderr) = match report.writers() {
        Ok(writers) => writers,
        Err(e) => {
            let failure = freed(claim, 1, "failed", &format!("there is no thread for the output: {e}")).await;
            return Err(doubt_stays(hapax, &key, chosen, settings, failure).await);
        }
    };
    let child = match child::start(&args.command, &mut terms) {
        Ok(child) => child,
        Err(e) => {
            let failure = not_started(claim, args, &e).await;
            return Err(doubt_stays(hapax, &key, chosen, settings, failure).await);
        }
    };
    let ended = child::see_through(child, &terms, signals, &stdout, &stderr).await;
    let settled = settle(claim, &ended, chosen, keep).await;
    let mut lost = false;
    // The record does not wait for our reader; we do, unless a signal says not to.
    let written = async { (stdout.finish().await, stderr.finish().await) };
    tokio::select! {
        (out, err) = written => {
            if let Some(e) = out.or(err) {
                // As JSON, the object has it all.
                lost = !report.json;
                report.lost_output(&e, matches!(settled, Ok(End { recorded: true, .. })));
            }
        }
        _ = signals.next() => {}
    }
    let End { code, recorded } = settled?;
    if !recorded && let Some(record) = doubt_before(hapax, &key, chosen).await {
        report.still_in_doubt(&record, code, &settings.flags);
    }
    if report.json {
        let record = if recorded { hapax.record(&key).await.ok().flatten() } else { None };
        print(&report.executed(&key, attempt, recorded, record.as_ref(), code, ended.kept)?)?;
    }
    Ok(if lost { LOST_OUTPUT } else { code })
}

/// How a command ended by itself: its exit code, and whether that is recorded.
struct End {
    code: u8,
    recorded: bool,
}

/// Ends the claim as the command ended.
async fn settle(claim: Claim, ended: &Ended, chosen: &Chosen, keep: usize) -> Result<End, Failure> {
    let remember = chosen.remember_failures.value;
    let code = match (&ended.fate, ended.stopped) {
        (_, Some(Stopped::ByTimeLimit(limit))) => {
            let rest = match ended.fate {
                Fate::Left(pid) => format!(" and did not end when it was told to; process {pid} may still run"),
                _ => " and was ended".into(),
            };
            return Err(doubt(claim, &format!("the command ran past its time limit of {}{rest}", say(limit))).await);
        }
        (Fate::Killed(signal), _) => {
            return Err(doubt(claim, &format!("the command was ended by {}", name_of(*signal))).await);
        }
        (Fate::Left(pid), stopped) => {
            let why = match stopped {
                Some(_) => "did not end when it was told to, and",
                None => "cannot be waited for, and",
            };
            return Err(doubt(claim, &format!("the command {why} process {pid} may still run")).await);
        }
        (Fate::Exited(code), Some(Stopped::BySignal(caught))) if *code != 0 => {
            let why = format!("the command was interrupted by SIG{} and exited with {code}", caught.name);
            return Err(doubt(claim, &why).await);
        }
        (Fate::Exited(code), _) => *code,
    };
    if code != 0 && !remember {
        let (key, attempt) = (claim.key().clone(), claim.attempt());
        return match claim.release().await {
            Ok(()) => Ok(End { code, recorded: false }),
            Err(e) => Err(unwritten(&key, attempt, &format!("the command exited with {code}"), e)),
        };
    }
    match as_json(code, &ended.kept) {
        Some(result) if result.as_str().len() <= keep => {
            let (key, attempt) = (claim.key().clone(), claim.attempt());
            claim.complete_json(result).await.map_err(|e| match e {
                Error::NotRecorded { reason, .. } => {
                    let why = format!("the command ran, but its result was not recorded ({reason})");
                    Failure::in_doubt(&key, attempt, &why)
                }
                e => e.into(),
            })?;
            Ok(End { code, recorded: true })
        }
        result => {
            let size = result.map_or_else(|| "more".into(), |r| format!("{} bytes as JSON, more", r.as_str().len()));
            let why = format!(
                "the command ran and exited with {code}, but its output is {size} than the {keep} bytes of max_output, \
                 so it is not recorded (--max-output raises the limit)"
            );
            Err(doubt(claim, &why).await)
        }
    }
}

fn as_json(code: u8, kept: &Kept) -> Option<Json> {
    if kept.too_much {
        return None;
    }
    Json::of(&Output::json_of(code, &kept.stdout, &kept.stderr)).ok()
}

async fn doubt(claim: Claim, why: &str) -> Failure {
    let (key, attempt) = (claim.key().clone(), claim.attempt());
    match claim.doubt(why).await {
        Err(lost @ Error::LostClaim { .. }) => lost.into(),
        // What cannot be written is in doubt all the same, once this process is gone.
        Ok(()) | Err(_) => Failure::in_doubt(&key, attempt, why),
    }
}

fn unwritten(key: &Key, attempt: AttemptId, what: &str, error: Error) -> Failure {
    match error {
        lost @ Error::LostClaim { .. } => lost.into(),
        error => Failure::in_doubt(key, attempt, &format!("{what}, and that could not be written ({error})")),
    }
}

/// The program could not be started.
async fn not_started(claim: Claim, args: &Run, error: &std::io::Error) -> Failure {
    let program = args.command.first().map(|p| p.display().to_string()).unwrap_or_default();
    let (code, remedy) = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => (NOT_FOUND, "check its name and PATH"),
        Some(Errno::ACCESS | Errno::PERM) => (NOT_STARTED, "check who may execute it"),
        Some(Errno::NOEXEC) => (NOT_STARTED, "check that it is a program, or a script with a #! line"),
        Some(Errno::AGAIN) => (NOT_STARTED, "there may be too many processes: try again"),
        Some(
            Errno::NOTDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::ISDIR
            | Errno::TXTBSY
            | Errno::TOOBIG
            | Errno::INVAL,
        ) => (NOT_STARTED, "check its path and arguments"),
        // Too few descriptors, say: that may also come up once the command is started.
        _ => {
            let why = format!("{program} may or may not have been started ({error})");
            return doubt(claim, &why).await;
        }
    };
    freed(claim, code, "not_started", &format!("{program} cannot be started ({error}), so nothing ran: {remedy}")).await
}

/// The doubt that a rerun without effect found and leaves: of the attempt before it nothing is known, so that its
/// release frees nothing.
async fn doubt_before(hapax: &Hapax, key: &Key, chosen: &Chosen) -> Option<Record> {
    if chosen.on_doubt.value != DoubtChoice::Rerun {
        return None;
    }
    hapax.record(key).await.ok().flatten().filter(|record| record.state == State::InDoubt)
}

/// A failure of a command that did not run, with the doubt from before if that stays.
async fn doubt_stays(hapax: &Hapax, key: &Key, chosen: &Chosen, settings: &Settings, failure: Failure) -> Failure {
    // One that is in doubt itself says so already.
    if failure.code == IN_DOUBT {
        return failure;
    }
    match doubt_before(hapax, key, chosen).await {
        Some(record) => failure.still_in_doubt(&record, &settings.flags),
        None => failure,
    }
}

/// Nothing ran: frees the key.
async fn freed(claim: Claim, code: u8, kind: &'static str, what: &str) -> Failure {
    let (key, attempt) = (claim.key().clone(), claim.attempt());
    match claim.release().await {
        Ok(()) => Failure::new(code, kind, what).of(&key),
        Err(e) => unwritten(&key, attempt, what, e),
    }
}
