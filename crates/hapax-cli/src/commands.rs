//! The subcommands: each takes its arguments, asks the store, and prints its
//! answer as text or as JSON.
//!
//! Invariant: only `run` and `mark` make a store that is not there; to all
//! others an absent store is an empty one.

mod keys;
mod records;
mod serve;
mod setup;
mod statistics;

use std::sync::Arc;
use std::time::Duration;

use hapax::{Builder, Hapax, Shutdown};
use hapax_http::HttpStore;
use hapax_http::telemetry::{self, LogFormat, Telemetry};
use serde::Serialize;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::sealed;
use crate::settings::{Settings, is_absent, is_server};
use crate::terminal;

/// How long the end of a command waits for what it has begun.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What is logged unless HAPAX_LOG says otherwise. What becomes of a claim is in the command's own failure.
const WARNINGS: &str = "warn,hapax::claim=off,hapax::execute=off";

/// Runs the subcommand; gives the exit code.
pub fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    let json = global.json;
    // These look at no setting, and work while the configuration is broken.
    match &command {
        Command::Parse { key } => return keys::parse(key, json),
        Command::Completions { shell } => return setup::completions(*shell, json),
        Command::Config { path: true } => return setup::path(&global, json),
        _ => {}
    }
    let _telemetry = log(&command)?;
    let settings = match &command {
        Command::Run(args) => Settings::load(&global, Some(args))?,
        _ => Settings::load(&global, None)?,
    };
    match command {
        Command::Key(args) => keys::key(&args, &settings, json),
        Command::Config { .. } => setup::config(&settings, json),
        Command::Serve(args) => serve::serve(&args, &settings),
        Command::Proxy(args) => serve::proxy(&args, &settings),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::new(1, "failed", format!("the runtime cannot be started: {e}")))?;
            let answer = runtime.block_on(ask(command, &settings, json));
            // A writer that waits for its reader is not waited for.
            runtime.shutdown_background();
            answer
        }
    }
}

/// Warnings of the library on standard error, unless the command logs by itself or owns the screen.
fn log(command: &Command) -> Result<Option<Telemetry>, Failure> {
    match command {
        Command::Serve(_) | Command::Proxy(_) => return Ok(None),
        Command::Top(args) if !args.once => return Ok(None),
        _ => {}
    }
    let filter = std::env::var("HAPAX_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.as_deref().unwrap_or(WARNINGS);
    let started = telemetry::start(LogFormat::Text, filter, None);
    started.map(Some).map_err(|e| Failure::usage(format!("HAPAX_LOG: {e}; write it like warn or hapax=debug")))
}

async fn ask(command: Command, settings: &Settings, json: bool) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => crate::run::run(*args, settings, json).await,
        Command::Check { key } => records::check(&key, settings, json).await,
        Command::Mark(args) => records::mark(args, settings, json).await,
        Command::Get { key } => records::get(&key, settings, json).await,
        Command::Ls(args) => records::list(args, settings, json).await,
        Command::Settle(args) => records::settle(args, settings, json).await,
        Command::Rm { key } => records::remove(&key, settings, json).await,
        Command::Cleanup(args) => records::cleanup(args, settings, json).await,
        Command::Stats { reset } => statistics::stats(reset, settings, json).await,
        Command::Info => statistics::info(settings, json).await,
        Command::Top(args) => crate::top::top(&args, settings, json).await,
        // Answered in `dispatch`.
        Command::Key(_)
        | Command::Parse { .. }
        | Command::Config { .. }
        | Command::Serve(_)
        | Command::Proxy(_)
        | Command::Completions { .. } => Ok(0),
    }
}

/// A manager on the store, as the settings say.
pub async fn manager(settings: &Settings) -> Result<Builder, Failure> {
    // What a server's store keeps is sealed and opened there.
    if let Some(server) = server(settings)? {
        return Ok(configured(Hapax::builder().store(server), settings));
    }
    let store = hapax::store::open(&settings.store()?).await.map_err(hapax::Error::from)?;
    Ok(configured(Hapax::builder().store(sealed::around(store, settings)?), settings))
}

/// The server, if the store is one.
pub fn server(settings: &Settings) -> Result<Option<Arc<HttpStore>>, Failure> {
    let store = settings.store()?;
    if !is_server(&store) {
        return Ok(None);
    }
    // In the environment alone: the arguments of a process are there for all to read.
    let token = std::env::var("HAPAX_TOKEN").ok().filter(|token| !token.is_empty());
    let store = HttpStore::new(&store, token.as_deref()).map_err(hapax::Error::from)?;
    Ok(Some(Arc::new(store)))
}

fn configured(builder: Builder, settings: &Settings) -> Builder {
    let mut builder = builder
        .namespace(&settings.namespace.value)
        .max_result_bytes(settings.max_output.value.0)
        .verify_limit(settings.verify_limit.value.0)
        .on_full(settings.on_full.value)
        // One process, one call: there is nothing to remember, and no hour to wait for.
        .recent_results(0)
        .auto_cleanup(None);
    if let Some(label) = &settings.label.value {
        builder = builder.label(label);
    }
    if let Some(max) = settings.max_entries.value {
        builder = builder.max_entries(max);
    }
    builder
}

/// The store if it is there: looking must not make it.
pub async fn existing(settings: &Settings) -> Result<Option<Hapax>, Failure> {
    if is_absent(&settings.store()?) {
        return Ok(None);
    }
    Ok(Some(open(settings).await?))
}

async fn open(settings: &Settings) -> Result<Hapax, Failure> {
    build(manager(settings).await?, settings).await
}

/// A manager on this server.
pub async fn open_at(server: Arc<HttpStore>, settings: &Settings) -> Result<Hapax, Failure> {
    build(configured(Hapax::builder().store(server), settings), settings).await
}

async fn build(builder: Builder, settings: &Settings) -> Result<Hapax, Failure> {
    Ok(builder.policy(settings.chosen_by_default()?.patch()).build().await?)
}

/// Lets go of the store. The answer stands whatever becomes of the counters.
pub async fn close(hapax: &Hapax) {
    let _ = tokio::time::timeout(CLOSE_LIMIT, async {
        if let Ok(Shutdown { unfinished: 0, .. }) = hapax.shutdown(CLOSE_LIMIT).await {
            let _ = hapax.store().close().await;
        }
    })
    .await;
}

/// Prints an answer in the form that was asked for.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    terminal::print(&if json { terminal::json(value)? } else { text() })
}
