//! `hapax top`: what happens in a namespace, live in the terminal.
//!
//! The loop here owns the terminal and the store; what a key does is decided in
//! `model`, what is seen in `view`, both without either. Invariants: the
//! terminal is given back on every way out, a panic and SIGTERM included; the
//! store is asked at most once at a time, at the times that `live` says.

mod live;
mod model;
mod source;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use hapax::store::Settlement;
use hapax::{Error, Json, Ttl};
use ratatui::crossterm::event::{self, Event};
use ratatui::{DefaultTerminal, crossterm};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::live::Live;
use self::model::{Model, Wish};
use self::source::{Snapshot, Source};
use crate::args::Top;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::terminal;

/// How often the keyboard's thread looks whether it is still wanted.
const KEYBOARD_TURN: Duration = Duration::from_millis(200);
/// Keys that wait to be taken; a keyboard is never that far ahead.
const KEYS: usize = 64;

/// Shows it, until the user has seen enough.
pub async fn top(args: &Top, settings: &Settings, json: bool) -> Result<u8, Failure> {
    if json {
        return Err(Failure::usage(
            "top is for people: for programs there are `hapax stats --json` and `hapax ls --json`",
        ));
    }
    let source = Source::open(settings).await?;
    if args.once {
        let snapshot = source.look().await?;
        source.close().await;
        terminal::print(&view::plain(&Model::new(snapshot)))?;
        return Ok(0);
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::usage(
            "top needs a terminal: `hapax top --once` prints what there is, `hapax stats --json` and `hapax ls` are for programs",
        ));
    }
    let first = source.look().await?;
    let drawn = |e: std::io::Error| Failure::new(1, "output", format!("the terminal cannot be drawn on: {e}"));
    // From here on a panic gives the terminal back, too.
    let mut screen = ratatui::try_init().map_err(drawn)?;
    let answer = watch(&mut screen, Model::new(first), source, args.interval.0, settings).await;
    ratatui::restore();
    answer.map(|()| 0).map_err(drawn)
}

/// What comes back from the store.
enum News {
    Looked(Source, Box<Result<Snapshot, Error>>),
    Said(String),
    Opened(Box<hapax::Record>),
}

async fn watch(
    screen: &mut DefaultTerminal,
    mut model: Model,
    source: Source,
    every: Duration,
    settings: &Settings,
) -> std::io::Result<()> {
    let mut keys = keyboard()?;
    let (tell, mut news) = mpsc::channel(4);
    let (mut term, mut hup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut live = Live::new(source.follow(), every);
    let mut idle = Some(source);
    let hapax = idle.as_ref().and_then(Source::hapax);
    let mut hapax = hapax;
    let ttl = settings.chosen_by_default().map_or(Ttl::Never, |chosen| chosen.ttl.value.0);
    loop {
        model.is_told = live.is_told();
        screen.draw(|frame| view::draw(frame, &mut model))?;
        let due = live.due();
        tokio::select! {
            _ = term.recv() => break,
            _ = hup.recv() => break,
            // One look at a time.
            () = tokio::time::sleep_until(due), if idle.is_some() => {
                if let Some(source) = idle.take() {
                    live.looks();
                    let tell = tell.clone();
                    tokio::spawn(async move {
                        let looked = Box::new(source.look().await);
                        let _ = tell.send(News::Looked(source, looked)).await;
                    });
                }
            }
            told = live.told() => model.hear(told),
            Some(came) = news.recv() => match came {
                News::Looked(source, looked) => {
                    hapax = source.hapax();
                    idle = Some(source);
                    let meanwhile = live.looked(looked.is_ok());
                    match *looked {
                        Ok(snapshot) => {
                            model.take(snapshot);
                            model.hear(meanwhile);
                        }
                        Err(error) => model.trouble(&error.to_string()),
                    }
                }
                News::Said(text) => model.say(text),
                News::Opened(record) => model.open(*record),
            },
            event = keys.recv() => {
                let Some(event) = event else { break };
                let Event::Key(key) = event else { continue };
                match model.press(key) {
                    Wish::Nothing => {}
                    Wish::Quit => break,
                    Wish::Open(key) => if let Some(hapax) = hapax.clone() {
                        let tell = tell.clone();
                        tokio::spawn(async move {
                            let news = match hapax.record(&key).await {
                                Ok(Some(record)) => News::Opened(Box::new(record)),
                                Ok(None) => News::Said(format!("{key} is gone by now")),
                                Err(error) => News::Said(error.to_string()),
                            };
                            let _ = tell.send(news).await;
                        });
                    },
                    Wish::Settle { key, attempt, happened } => if let Some(hapax) = hapax.clone() {
                        let tell = tell.clone();
                        tokio::spawn(async move {
                            let settlement = match happened {
                                true => Json::parse("null").map(|result| Settlement::Happened { result, ttl }).ok(),
                                false => Some(Settlement::NotHappened),
                            };
                            let Some(settlement) = settlement else { return };
                            let said = match hapax.settle_attempt(&key, attempt, settlement).await {
                                Ok(_) if happened => format!("settled: {key} happened"),
                                Ok(_) => format!("settled: {key} did not happen and is free"),
                                Err(error) => format!("nothing was settled: {error}"),
                            };
                            let _ = tell.send(News::Said(said)).await;
                        });
                    },
                }
            }
        }
    }
    // A look that is under way is not waited for.
    if let Some(source) = idle {
        source.close().await;
    }
    Ok(())
}

/// Reads keys and resizes on a thread of its own; it ends soon after its reader.
fn keyboard() -> std::io::Result<mpsc::Receiver<Event>> {
    let (tell, keys) = mpsc::channel(KEYS);
    std::thread::Builder::new().name("hapax-keys".into()).spawn(move || {
        let next = || -> std::io::Result<Option<Event>> {
            Ok(if event::poll(KEYBOARD_TURN)? { Some(crossterm::event::read()?) } else { None })
        };
        while !tell.is_closed() {
            match next() {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if tell.blocking_send(event).is_err() {
                        return;
                    }
                }
                // A terminal that is gone: closing the channel ends it all.
                Err(_) => return,
            }
        }
    })?;
    Ok(keys)
}
