//! What `hapax top` shows, from any store, by queries of bounded size.
//!
//! Queries go from the oldest record on, so that the newest are found by walking
//! to the end once, at most `WALK` pages a look, and by reading the last page
//! again from then on.

use std::collections::VecDeque;

use hapax::store::{Filter, MAX_PAGE};
use hapax::{Clock as _, Error, Hapax, Record, State, Stats, SystemClock, Timestamp};

use crate::commands::{close, existing};
use crate::failure::Failure;
use crate::settings::Settings;

/// Records in doubt, and in progress, that are read.
const LIVE: usize = 200;
/// The newest records that are kept for the panes.
pub const NEWEST: usize = 500;
/// Pages that one look reads at most on its way to the newest.
const WALK: usize = 5;

/// What there was at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub store: String,
    pub namespace: String,
    /// By the store's clock.
    pub now: Timestamp,
    pub stats: Stats,
    pub in_doubt: Vec<Record>,
    pub in_progress: Vec<Record>,
    /// Recorded results and errors, newest first, without params and results.
    pub newest: Vec<Record>,
    /// There are newer ones that the walk has not reached yet.
    pub walking: bool,
}

/// A store that is looked at again and again.
pub struct Source {
    hapax: Option<Hapax>,
    /// Set while there is no store yet; looking must not make one.
    settings: Option<Waiting>,
    /// Where the last page begins.
    cursor: Option<String>,
    /// Recorded records before the last page, newest last.
    before: VecDeque<Record>,
}

struct Waiting {
    store: String,
    namespace: String,
}

impl Source {
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        let hapax = existing(settings).await?;
        let waiting = match &hapax {
            Some(_) => None,
            None => Some(Waiting { store: settings.store()?, namespace: settings.namespace.value.clone() }),
        };
        Ok(Self { hapax, settings: waiting, cursor: None, before: VecDeque::new() })
    }

    pub fn hapax(&self) -> Option<Hapax> {
        self.hapax.clone()
    }

    pub async fn close(self) {
        if let Some(hapax) = &self.hapax {
            close(hapax).await;
        }
    }

    /// Looks once.
    pub async fn look(&mut self) -> Result<Snapshot, Error> {
        let Some(hapax) = self.hapax.clone() else { return Ok(self.empty()) };
        let live = async |state| -> Result<Vec<Record>, Error> {
            let filter = Filter { state: Some(state), ..Filter::default() };
            Ok(hapax.records(filter, None, LIVE).await?.records.into_iter().map(light).collect())
        };
        let (in_doubt, in_progress) = (live(State::InDoubt).await?, live(State::InProgress).await?);
        let (newest, walking) = self.newest(&hapax).await?;
        let info = hapax.info().await?;
        Ok(Snapshot {
            store: info.store,
            namespace: info.namespace,
            now: info.now,
            stats: hapax.stats().await?,
            in_doubt,
            in_progress,
            newest,
            walking,
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
            stats: Stats::default(),
            in_doubt: Vec::new(),
            in_progress: Vec::new(),
            newest: Vec::new(),
            walking: false,
        }
    }

    async fn newest(&mut self, hapax: &Hapax) -> Result<(Vec<Record>, bool), Error> {
        let mut last = Vec::new();
        let mut walking = true;
        for _ in 0..WALK {
            let page = hapax.records(Filter::default(), self.cursor.clone(), MAX_PAGE).await?;
            last = page.records.into_iter().filter(|r| r.state.is_recorded()).map(light).collect();
            match page.next {
                Some(next) => {
                    self.before.extend(last.drain(..));
                    let surplus = self.before.len().saturating_sub(NEWEST);
                    self.before.drain(..surplus);
                    self.cursor = Some(next);
                }
                None => {
                    walking = false;
                    break;
                }
            }
        }
        // By time: a key that ran again may stand where it stood before.
        let mut newest: Vec<Record> = self.before.iter().cloned().chain(last).collect();
        newest.sort_by_key(|r| std::cmp::Reverse(r.executed_at.unwrap_or(r.started_at)));
        newest.truncate(NEWEST);
        Ok((newest, walking))
    }
}

/// What the lists show of a record; the rest may be secret and large.
fn light(record: Record) -> Record {
    Record { params: None, result: None, ..record }
}
