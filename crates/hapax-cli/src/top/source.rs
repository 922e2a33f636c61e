//! What `hapax top` shows, from any store, by queries of bounded size.

use hapax::store::{Filter, MAX_PAGE, Order};
use hapax::{Clock as _, Error, Hapax, Record, State, Stats, SystemClock, Timestamp};

use crate::commands::{close, existing};
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
    /// By the store's clock.
    pub now: Timestamp,
    pub stats: Stats,
    pub in_doubt: Vec<Record>,
    pub in_progress: Vec<Record>,
    /// Recorded results and errors, newest first, without params and results.
    pub newest: Vec<Record>,
}

/// A store that is looked at again and again.
pub struct Source {
    hapax: Option<Hapax>,
    /// Set while there is no store yet; looking must not make one.
    settings: Option<Waiting>,
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
        Ok(Self { hapax, settings: waiting })
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
    pub async fn look(&self) -> Result<Snapshot, Error> {
        let Some(hapax) = self.hapax.clone() else { return Ok(self.empty()) };
        let live = async |state| -> Result<Vec<Record>, Error> {
            let filter = Filter { state: Some(state), ..Filter::default() };
            Ok(hapax.records(filter, None, LIVE).await?.records.into_iter().map(light).collect())
        };
        let (in_doubt, in_progress) = (live(State::InDoubt).await?, live(State::InProgress).await?);
        let newest = Self::newest(&hapax).await?;
        let info = hapax.info().await?;
        Ok(Snapshot {
            store: info.store,
            namespace: info.namespace,
            now: info.now,
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
        newest.sort_by_key(|r| std::cmp::Reverse(r.executed_at.unwrap_or(r.started_at)));
        Ok(newest)
    }
}

/// What the lists show of a record; the rest may be secret and large.
fn light(record: Record) -> Record {
    Record { params: None, result: None, ..record }
}
