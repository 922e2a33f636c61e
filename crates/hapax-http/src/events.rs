//! The feed of a namespace: one poller for all who listen, none when nobody does.
//!
//! Requests of this server note the keys they touch; attempts of other
//! processes are found by looking at what is in progress and in doubt. What
//! another process began and ended within one turn shows in the statistics only.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hapax::store::Filter;
use hapax::{AttemptId, Error, Key, Record, State};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::app::{App, Tenant};
use crate::overview::bare;
use crate::problem::{Kind, Problem};

/// How often the poller looks.
const TURN: Duration = Duration::from_secs(1);
/// Events kept for a listener that is slow.
const BACKLOG: usize = 1_024;
/// Records in progress, and in doubt, that are followed.
const FOLLOWED: usize = 500;
/// Listeners of a namespace.
const MAX_LISTENERS: usize = 256;

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) kind: &'static str,
    pub(crate) data: Arc<str>,
}

/// Who listens to a namespace.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    // Held for moments; never over an await.
    sender: Mutex<Option<broadcast::Sender<News>>>,
}

impl Feed {
    pub(crate) fn is_heard(&self) -> bool {
        self.sender.lock().as_ref().is_some_and(|s| s.receiver_count() > 0)
    }

    /// Listens; the first listener starts the poller.
    pub(crate) fn subscribe(&self, app: &App, tenant: &Arc<Tenant>) -> Result<broadcast::Receiver<News>, Problem> {
        let mut place = self.sender.lock();
        if let Some(sender) = place.as_ref().filter(|s| s.receiver_count() > 0) {
            if sender.receiver_count() >= MAX_LISTENERS {
                return Err(Problem::new(
                    Kind::Overloaded,
                    format!("{MAX_LISTENERS} clients follow this namespace already"),
                ));
            }
            return Ok(sender.subscribe());
        }
        let (sender, receiver) = broadcast::channel(BACKLOG);
        *place = Some(sender.clone());
        tokio::spawn(poll(app.clone(), Arc::downgrade(tenant), sender));
        Ok(receiver)
    }
}

async fn poll(app: App, tenant: Weak<Tenant>, sender: broadcast::Sender<News>) {
    let mut followed: BTreeMap<Key, (State, AttemptId)> = BTreeMap::new();
    while sender.receiver_count() > 0 && !app.is_closing() {
        let Some(tenant) = tenant.upgrade() else { return };
        match turn(&tenant, &mut followed).await {
            Ok(news) => news.into_iter().for_each(|news| {
                // Nobody listening any more is what ends the loop.
                let _ = sender.send(news);
            }),
            Err(error) => tracing::debug!(%error, "the event feed could not look; it does so again"),
        }
        drop(tenant);
        tokio::select! {
            () = tokio::time::sleep(TURN) => {}
            () = app.closing() => return,
        }
    }
}

async fn turn(tenant: &Tenant, followed: &mut BTreeMap<Key, (State, AttemptId)>) -> Result<Vec<News>, Error> {
    let hapax = &tenant.hapax;
    let mut news = vec![News { kind: "stats", data: json(&tenant.look().await?) }];
    let mut seen = BTreeMap::new();
    for state in [State::InProgress, State::InDoubt] {
        let page = hapax.records(Filter { state: Some(state), ..Filter::default() }, None, FOLLOWED).await?;
        for record in page.records {
            let now = (record.state, record.attempt_id);
            if followed.get(&record.key) != Some(&now) {
                news.push(changed(&record));
            }
            seen.insert(record.key.clone(), now);
        }
    }
    let gone = followed.keys().filter(|key| !seen.contains_key(*key)).cloned();
    let touched: HashSet<Key> =
        tenant.take_touched().into_iter().filter(|k| !seen.contains_key(k)).chain(gone).collect();
    for key in touched {
        news.push(match hapax.record(&key).await? {
            Some(record) => changed(&record),
            None => News { kind: "gone", data: json(&serde_json::json!({"key": key})) },
        });
    }
    *followed = seen;
    Ok(news)
}

fn changed(record: &Record) -> News {
    // Params and results may be secret and large: who wants them asks for the record.
    News { kind: "record", data: json(&bare(record.clone())) }
}

fn json<T: serde::Serialize>(value: &T) -> Arc<str> {
    serde_json::to_string(value).unwrap_or_default().into()
}
