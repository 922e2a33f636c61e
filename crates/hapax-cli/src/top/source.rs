//! What `hapax top` shows, from any store, by queries of bounded size; and what a server tells of itself, put into that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::store::{Filter, MAX_PAGE, Order};
use hapax::{Clock as _, Error, Hapax, Key, Record, State, Stats, SystemClock, Timestamp};
use hapax_http::{HttpStore, Told};
use tokio::sync::mpsc;

use crate::commands::{close, existing, open_at, server};
use crate::failure::Failure;
use crate::settings::Settings;

/// Records in doubt, and in progress, that are read.
const LIVE: usize = 200;
/// The newest records that are kept for the panes.
pub const NEWEST: usize = 500;

/// What there was at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub store: String,
    pub namespace: String,
    /// By the store's clock, when it was looked at.
    pub now: Timestamp,
    pub taken: Instant,
    /// How long the server was up then, if it is one and says so.
    pub up: Option<Duration>,
    pub stats: Stats,
    pub in_doubt: Vec<Record>,
    pub in_progress: Vec<Record>,
    /// Recorded results and errors, newest first, without params and results.
    pub newest: Vec<Record>,
}

impl Snapshot {
    /// What time it is by the store's clock.
    pub fn clock(&self) -> Timestamp {
        self.now.plus(self.taken.elapsed())
    }

    /// How long the server is up.
    pub fn uptime(&self) -> Option<Duration> {
        self.up.map(|up| up + self.taken.elapsed())
    }

    /// Takes up what a server tells.
    pub fn hear(&mut self, told: Told) {
        match told {
            Told::Stats(stats) => self.stats = *stats,
            Told::Gone(key) => self.forget(&key, None),
            Told::Changed(record) => {
                let record = light(*record);
                self.forget(&record.key, Some(record.state));
                let live = match record.state {
                    State::InDoubt => &mut self.in_doubt,
                    State::InProgress => &mut self.in_progress,
                    State::Completed | State::Failed => {
                        let at = self.newest.partition_point(|r| recorded_at(r) > recorded_at(&record));
                        self.newest.insert(at, record);
                        self.newest.truncate(NEWEST);
                        return;
                    }
                };
                if let Some(place) = live.iter_mut().find(|r| r.key == record.key) {
                    *place = record;
                } else if live.len() < LIVE {
                    // What is more is in the next look, when there is room again.
                    live.push(record);
                }
            }
            _ => {}
        }
    }

    /// Takes a key out of the lists, but that in which it stays in place.
    fn forget(&mut self, key: &Key, but: Option<State>) {
        if but != Some(State::InDoubt) {
            self.in_doubt.retain(|r| r.key != *key);
        }
        if but != Some(State::InProgress) {
            self.in_progress.retain(|r| r.key != *key);
        }
        self.newest.retain(|r| r.key != *key);
    }
}

fn recorded_at(record: &Record) -> Timestamp {
    record.executed_at.unwrap_or(record.started_at)
}

/// A store that is looked at again and again.
pub struct Source {
    hapax: Option<Hapax>,
    server: Option<Arc<HttpStore>>,
    /// Set while there is no store yet; looking must not make one.
    settings: Option<Waiting>,
}

struct Waiting {
    store: String,
    namespace: String,
}

impl Source {
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        let server = server(settings)?;
        let hapax = match &server {
            Some(server) => Some(open_at(server.clone(), settings).await?),
            None => existing(settings).await?,
        };
        let waiting = match &hapax {
            Some(_) => None,
            None => Some(Waiting { store: settings.store()?, namespace: settings.namespace.value.clone() }),
        };
        Ok(Self { hapax, server, settings: waiting })
    }

    pub fn hapax(&self) -> Option<Hapax> {
        self.hapax.clone()
    }

    /// What a server tells from now on, if it is one.
    pub fn follow(&self) -> Option<mpsc::Receiver<Told>> {
        let namespace = self.hapax.as_ref()?.config().namespace.clone();
        self.server.as_ref().map(|server| server.follow(&namespace))
    }

    pub async fn close(self) {
        if let Some(hapax) = &self.hapax {
            close(hapax).await;
        }
    }

    /// Looks once.
    pub async fn look(&self) -> Result<Snapshot, Error> {
        let Some(hapax) = self.hapax.clone() else { return Ok(self.empty()) };
        let live = async |state| -> Result<Vec<Record>, Error> {
            let filter = Filter { state: Some(state), ..Filter::default() };
            Ok(hapax.records(filter, None, LIVE).await?.records.into_iter().map(light).collect())
        };
        let (in_doubt, in_progress) = (live(State::InDoubt).await?, live(State::InProgress).await?);
        let newest = Self::newest(&hapax).await?;
        let info = hapax.info().await?;
        let up = match &self.server {
            // An older one does not say it.
            Some(server) => server.uptime(&info.namespace).await.ok().flatten(),
            None => None,
        };
        Ok(Snapshot {
            store: info.store,
            namespace: info.namespace,
            now: info.now,
            taken: Instant::now(),
            up,
            stats: hapax.stats().await?,
            in_doubt,
            in_progress,
            newest,
        })
    }

    fn empty(&self) -> Snapshot {
        let (store, namespace) = match &self.settings {
            Some(waiting) => (format!("{} (absent)", waiting.store), waiting.namespace.clone()),
            None => (String::new(), String::new()),
        };
        Snapshot {
            store,
            namespace,
            now: SystemClock.now(),
            taken: Instant::now(),
            up: None,
            stats: Stats::default(),
            in_doubt: Vec::new(),
            in_progress: Vec::new(),
            newest: Vec::new(),
        }
    }

    /// Recorded results and errors, the last recorded first.
    async fn newest(hapax: &Hapax) -> Result<Vec<Record>, Error> {
        let filter = Filter { order: Order::NewestFirst, ..Filter::default() };
        let page = hapax.records(filter, None, MAX_PAGE).await?;
        let recorded = page.records.into_iter().filter(|r| r.state.is_recorded());
        let mut newest: Vec<Record> = recorded.take(NEWEST).map(light).collect();
        newest.sort_by_key(|r| std::cmp::Reverse(recorded_at(r)));
        Ok(newest)
    }
}

/// What the lists show of a record; the rest may be secret and large.
fn light(record: Record) -> Record {
    Record { params: None, result: None, ..record }
}
