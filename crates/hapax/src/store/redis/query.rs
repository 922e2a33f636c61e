//! What concerns many records: pages, and removals in bulk.
//!
//! Each bucket's index is read in the order of age, from either end, and the buckets are merged; the records themselves
//! are then read one by one, each as it is at that moment. Invariants: an index entry only leads to a record, it is never
//! taken for one: a record that has expired, or was made anew at another place in the order, is passed over; no step of a
//! server is longer than a few hundred entries.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::task::JoinSet;

use super::Shared;
use super::fold::{self, Fold};
use super::op::{self, Op, Resend};
use super::row::{Bucket, Row, Space, slot, tag};
use super::topology::{How, Request};
use crate::store::{Filter, MAX_PAGE, Order, Page, StoreError};
use crate::{State, Timestamp};

/// Entries of an index read in one step.
pub(super) const CHUNK: usize = 500;
/// Records read at once.
const WINDOW: usize = 256;
/// A page ends when its records take this many bytes, since results may be large.
const PAGE_BYTES: usize = 64 << 20;
/// Above this many per bucket, records that expire soon are found by age and not by their expiry.
const SOON_LIMIT: i64 = 5_000;
/// The width of a place in the order of age and a record's id, and of the place alone.
const ID: usize = 48;
pub(super) const PLACE: usize = 16;

/// Asks the server of a slot for something that changes nothing.
pub(super) async fn ask(
    shared: &Shared,
    slot: u16,
    make: &(dyn Fn(How) -> Cmd + Send + Sync),
) -> Result<Value, StoreError> {
    shared.topology.exec(&Request { slot, is_write: false, resend: Resend::Safe, make }).await
}

/// Does the same for all these buckets at once.
pub(super) async fn each<T, Fut>(
    shared: &Arc<Shared>,
    buckets: impl Iterator<Item = Arc<Bucket>>,
    work: impl Fn(Arc<Shared>, Arc<Bucket>) -> Fut,
) -> Result<Vec<T>, StoreError>
where
    T: Send + 'static,
    Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let mut tasks: JoinSet<Result<T, StoreError>> = buckets.map(|bucket| work(shared.clone(), bucket)).collect();
    let mut all = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        all.push(done.unwrap_or_else(|_| Err(shared.driver.gone()))?);
    }
    Ok(all)
}

pub(super) fn texts(value: Value) -> Vec<String> {
    let Value::Array(values) = value else { return Vec::new() };
    values
        .into_iter()
        .filter_map(|value| match value {
            Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
            _ => None,
        })
        .collect()
}

/// A value as text; nothing is empty.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}

pub(super) fn number(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Int(n)) => *n,
        _ => 0,
    }
}

/// The time of a server.
pub(super) async fn now(shared: &Shared) -> Result<Timestamp, StoreError> {
    let parts = texts(ask(shared, 0, &|_| redis::cmd("TIME")).await?);
    let part = |at: usize| parts.get(at).and_then(|p| p.parse::<i64>().ok());
    let millis = part(0).zip(part(1)).and_then(|(s, us)| s.checked_mul(1000)?.checked_add(us / 1000));
    millis.map(Timestamp::from_millis).ok_or_else(|| shared.odd("the server does not tell the time".into()))
}

// --- in the order of age ----------------------------------------------------

/// A bucket's entries under one prefix, in the order that is asked for.
struct Entries {
    bucket: Arc<Bucket>,
    prefix: String,
    order: Order,
    read: VecDeque<String>,
    /// The last that was read; empty at the beginning.
    after: String,
    is_done: bool,
}

impl Entries {
    async fn fill(&mut self, shared: &Shared, chunk: usize) -> Result<(), StoreError> {
        // An id is of hexadecimal digits: all of them are before `g`.
        let (command, from, to) = match (self.order, self.after.as_str()) {
            (Order::OldestFirst, after) => ("ZRANGEBYLEX", after, "g"),
            (Order::NewestFirst, "") => ("ZREVRANGEBYLEX", "g", ""),
            (Order::NewestFirst, before) => ("ZREVRANGEBYLEX", before, ""),
        };
        let (from, to) = (format!("({}{from}", self.prefix), format!("({}{to}", self.prefix));
        let make = |_| {
            let mut cmd = redis::cmd(command);
            cmd.arg(&self.bucket.index).arg(&from).arg(&to).arg("LIMIT").arg(0).arg(chunk);
            cmd
        };
        let members = texts(ask(shared, self.bucket.slot, &make).await?);
        self.is_done = members.len() < chunk;
        for member in members {
            if let Some(id) = member.get(self.prefix.len()..).filter(|id| id.len() == ID) {
                self.after = id.to_string();
                self.read.push_back(id.to_string());
            } else {
                self.is_done = true;
            }
        }
        Ok(())
    }
}

/// The records of namespaces in the order of age, all buckets together.
pub(super) struct Aged {
    entries: Vec<Entries>,
    order: Order,
    chunk: usize,
}

impl Aged {
    /// Those under the prefix in the index, from after `cursor` on.
    pub(super) fn new(spaces: &[Arc<Space>], prefix: &str, order: Order, cursor: &str, wanted: usize) -> Self {
        let entries = spaces.iter().flat_map(|space| &space.buckets).map(|bucket| Entries {
            bucket: bucket.clone(),
            prefix: prefix.into(),
            order,
            read: VecDeque::new(),
            after: cursor.into(),
            is_done: false,
        });
        // Somewhat more than a bucket's share, so that most pages need one step of each.
        let entries: Vec<_> = entries.collect();
        let chunk = (wanted / entries.len().max(1)).saturating_mul(5) / 4 + 8;
        let chunk = chunk.min(CHUNK);
        Self { entries, order, chunk }
    }

    /// The next ones, at most `count`; none at the end.
    pub(super) async fn next(
        &mut self,
        shared: &Arc<Shared>,
        count: usize,
    ) -> Result<Vec<(Arc<Bucket>, String)>, StoreError> {
        let mut next = Vec::new();
        while next.len() < count {
            let chunk = self.chunk;
            let mut tasks = JoinSet::new();
            let (dry, full): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.entries).into_iter().partition(|e| e.read.is_empty() && !e.is_done);
            self.entries = full;
            for mut entries in dry {
                let shared = shared.clone();
                tasks.spawn(async move { entries.fill(&shared, chunk).await.map(|()| entries) });
            }
            while let Some(filled) = tasks.join_next().await {
                self.entries.push(filled.unwrap_or_else(|_| Err(shared.driver.gone()))?);
            }
            self.entries.retain(|e| !e.read.is_empty() || !e.is_done);
            // The first of all, until a bucket runs dry: what it has next may come before the others'.
            while next.len() < count && self.entries.iter().all(|e| !e.read.is_empty()) {
                let by_age = |a: &&mut Entries, b: &&mut Entries| a.read.front().cmp(&b.read.front());
                let first = match self.order {
                    Order::OldestFirst => self.entries.iter_mut().min_by(by_age),
                    Order::NewestFirst => self.entries.iter_mut().max_by(by_age),
                };
                let Some(first) = first else { break };
                next.extend(first.read.pop_front().map(|id| (first.bucket.clone(), id)));
                if first.read.is_empty() && first.is_done {
                    self.entries.retain(|e| !e.read.is_empty() || !e.is_done);
                }
            }
            if self.entries.is_empty() {
                break;
            }
        }
        Ok(next)
    }
}

/// The records that these entries lead to, in their order; those that are gone are left out.
pub(super) async fn read(
    shared: &Shared,
    space: &Arc<Space>,
    entries: &[(Arc<Bucket>, String)],
) -> Result<Vec<(String, Row)>, StoreError> {
    let mut asked = Vec::with_capacity(entries.len());
    for (bucket, id) in entries {
        let Some((place, record)) = id.split_at_checked(PLACE) else { continue };
        asked.push((id, place, shared.driver.send(bucket, Op::get(bucket.record(record)))?));
    }
    let mut rows = Vec::with_capacity(asked.len());
    for (id, place, answer) in asked {
        let answer = answer.await.map_err(|_| shared.driver.gone())??;
        if let Some(row) = op::record(space, &answer).map_err(|m| shared.odd(m))?
            && row.place == place
        {
            rows.push((id.clone(), row));
        }
    }
    Ok(rows)
}

fn fits(row: &Row, filter: &Filter, now: Timestamp) -> bool {
    let record = &row.record;
    filter.action_type.as_ref().is_none_or(|a| *a == record.action_type)
        && filter.target.as_ref().is_none_or(|t| *t == record.target)
        && filter.signal_id.as_ref().is_none_or(|s| record.signal_id.as_ref() == Some(s))
        && filter.state.is_none_or(|s| s == record.state)
        && filter.expiring_within.is_none_or(|d| record.expires_at.is_some_and(|at| at <= now.plus(d)))
}

/// The part of the index that a filter is answered from.
fn prefix(filter: &Filter) -> String {
    if let Some(signal) = &filter.signal_id {
        format!("s{}", tag(signal))
    } else if matches!(filter.state, Some(State::InProgress | State::InDoubt)) {
        "l".into()
    } else if filter.state == Some(State::Failed) {
        "f".into()
    } else if let Some(target) = &filter.target {
        format!("u{}", tag(target))
    } else if let Some(action) = &filter.action_type {
        format!("t{}", tag(action))
    } else {
        "a".into()
    }
}

pub(super) async fn page(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    filter: &Filter,
    cursor: Option<String>,
    limit: usize,
) -> Result<Page, StoreError> {
    let is_id = |c: &str| c.len() == ID && c.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if let Some(bad) = cursor.as_deref().filter(|c| !is_id(c)) {
        return Err(StoreError::BadRequest {
            message: format!("{bad:?} is no cursor: give the `next` of the page before, or none"),
        });
    }
    fold::all(shared, std::slice::from_ref(space)).await?;
    let cursor = cursor.unwrap_or_default();
    let limit = limit.clamp(1, MAX_PAGE);
    let now = if filter.expiring_within.is_some() { now(shared).await? } else { Timestamp::from_millis(0) };
    let prefix = prefix(filter);
    let soon = match filter.expiring_within {
        Some(within) if matches!(prefix.as_str(), "a" | "f") || prefix.starts_with(['t', 'u']) => {
            soon(shared, space, filter.order, &cursor, now.plus(within)).await?
        }
        _ => None,
    };
    let mut source = match soon {
        Some(ids) => Source::Soon(ids),
        None => Source::Aged(Aged::new(std::slice::from_ref(space), &prefix, filter.order, &cursor, limit + 1)),
    };
    let (mut records, mut last, mut bytes) = (Vec::new(), None, 0);
    loop {
        let entries = match &mut source {
            Source::Aged(aged) => aged.next(shared, WINDOW.min(limit + 1)).await?,
            Source::Soon(ids) => ids.drain(..ids.len().min(WINDOW)).collect(),
        };
        if entries.is_empty() {
            return Ok(Page { records, next: None });
        }
        for (id, row) in read(shared, space, &entries).await? {
            if !fits(&row, filter, now) {
                continue;
            }
            if records.len() == limit || bytes >= PAGE_BYTES {
                return Ok(Page { records, next: last });
            }
            let texts = [row.record.params.as_ref(), row.record.result.as_ref()];
            bytes += texts.into_iter().flatten().map(|json| json.as_str().len()).sum::<usize>();
            last = Some(id);
            records.push(*row.record);
        }
    }
}

enum Source {
    Aged(Aged),
    Soon(VecDeque<(Arc<Bucket>, String)>),
}

/// The entries of what expires by then, in the order of age; none when they are too many to be sorted.
async fn soon(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    order: Order,
    cursor: &str,
    until: Timestamp,
) -> Result<Option<VecDeque<(Arc<Bucket>, String)>>, StoreError> {
    let high = format!("(e{:015}", until.as_millis().saturating_add(1));
    let found = each(shared, space.buckets.iter().cloned(), |shared, bucket| {
        let high = high.clone();
        async move {
            let make = |_| {
                let mut cmd = redis::cmd("ZRANGEBYLEX");
                cmd.arg(&bucket.index).arg("[e").arg(&high).arg("LIMIT").arg(0).arg(SOON_LIMIT + 1);
                cmd
            };
            let members = texts(ask(&shared, bucket.slot, &make).await?);
            Ok((bucket, members))
        }
    })
    .await?;
    if found.iter().any(|(_, members)| members.len() as i64 > SOON_LIMIT) {
        return Ok(None);
    }
    let mut ids: Vec<(Arc<Bucket>, String)> = Vec::new();
    for (bucket, members) in found {
        let of = members.iter().filter_map(|m| m.get(16..16 + ID)).filter(|id| match order {
            Order::OldestFirst => *id > cursor,
            Order::NewestFirst => cursor.is_empty() || *id < cursor,
        });
        ids.extend(of.map(|id| (bucket.clone(), id.to_string())));
    }
    ids.sort_unstable_by(|a, b| match order {
        Order::OldestFirst => a.1.cmp(&b.1),
        Order::NewestFirst => b.1.cmp(&a.1),
    });
    Ok(Some(ids.into()))
}

// --- removals in bulk -------------------------------------------------------

/// How many records went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gone {
    sure: u64,
    /// Those that a removal sent again did not find: by its first time, or by another.
    unsure: u64,
}

impl Gone {
    /// At most so many.
    pub(super) fn at_most(self) -> u64 {
        self.sure + self.unsure
    }

    /// The number, if it is known.
    pub(super) fn known(self, shared: &Shared) -> Result<u64, StoreError> {
        if self.unsure == 0 {
            return Ok(self.sure);
        }
        let message = format!(
            "a connection broke, so that it is not known how many went: at least {}, at most {}; nothing is left to be done",
            self.sure,
            self.at_most()
        );
        Err(StoreError::AnswerLost { store: shared.topology.location.clone(), message })
    }
}

/// Removes what is recorded under these entries.
async fn evict_these(shared: &Shared, entries: &[(Arc<Bucket>, String)], most: u64) -> Result<Gone, StoreError> {
    let mut gone = Gone::default();
    // No more are asked for at once than may go, so that live ones in between do not make it too many.
    let mut rest = entries.iter();
    while gone.at_most() < most {
        let now = usize::try_from(most - gone.at_most()).unwrap_or(WINDOW).min(WINDOW);
        let mut asked = Vec::new();
        for (bucket, id) in rest.by_ref().take(now) {
            let Some((place, record)) = id.split_at_checked(PLACE) else { continue };
            asked.push(shared.driver.send(bucket, Op::evict(bucket.record(record), place))?);
        }
        if asked.is_empty() {
            break;
        }
        for answer in asked {
            match answer.await.map_err(|_| shared.driver.gone())??.as_slice() {
                b"R" => gone.sure += 1,
                b"U" => gone.unsure += 1,
                _ => {}
            }
        }
    }
    Ok(gone)
}

/// Removes all that is recorded in a namespace.
pub(super) async fn clear(shared: &Arc<Shared>, space: &Arc<Space>) -> Result<u64, StoreError> {
    let cleared = evict(shared, std::slice::from_ref(space), u64::MAX).await;
    // Even if it ended half way.
    shared.watch.raise();
    cleared?.known(shared)
}

/// Removes the oldest recorded results and errors of these namespaces.
pub(super) async fn evict(shared: &Arc<Shared>, spaces: &[Arc<Space>], count: u64) -> Result<Gone, StoreError> {
    fold::all(shared, spaces).await?;
    let mut aged = Aged::new(spaces, "a", Order::OldestFirst, "", usize::try_from(count).unwrap_or(CHUNK * 16));
    let mut gone = Gone::default();
    while gone.at_most() < count {
        let wanted = usize::try_from(count - gone.at_most()).unwrap_or(usize::MAX).min(4 * WINDOW);
        let entries = aged.next(shared, wanted).await?;
        if entries.is_empty() {
            break;
        }
        let these = evict_these(shared, &entries, count - gone.at_most()).await?;
        gone = Gone { sure: gone.sure + these.sure, unsure: gone.unsure + these.unsure };
    }
    shared.watch.raise();
    Ok(gone)
}

pub(super) fn registry(shared: &Shared) -> (String, u16) {
    let key = format!("{}:namespaces", shared.prefix);
    let slot = slot(key.as_bytes());
    (key, slot)
}

/// Writes a namespace down, so that a sweep by any process finds it.
pub(super) async fn register(shared: &Shared, space: &Space) -> Result<(), StoreError> {
    if space.is_registered() {
        return Ok(());
    }
    let (key, slot) = registry(shared);
    let make = |_| {
        let mut cmd = redis::cmd("SADD");
        cmd.arg(&key).arg(&*space.name);
        cmd
    };
    ask(shared, slot, &make).await?;
    space.set_registered();
    Ok(())
}

/// All namespaces that anyone wrote down.
pub(super) async fn namespaces(shared: &Arc<Shared>) -> Result<Vec<Arc<Space>>, StoreError> {
    let (key, slot) = registry(shared);
    let make = |_| {
        let mut cmd = redis::cmd("SMEMBERS");
        cmd.arg(&key);
        cmd
    };
    let names = texts(ask(shared, slot, &make).await?);
    let mut spaces: Vec<Arc<Space>> = shared.spaces.read().values().cloned().collect();
    for name in names {
        if !spaces.iter().any(|s| *s.name == *name) {
            spaces.push(Arc::new(shared.new_space(name.into())));
        }
    }
    Ok(spaces)
}

/// Takes what expired records left in the indexes; the server removes the records themselves.
pub(super) async fn sweep(shared: &Arc<Shared>, limit: usize) -> Result<u64, StoreError> {
    let mut gone = 0;
    for space in namespaces(shared).await? {
        for bucket in &space.buckets {
            let left = limit.saturating_sub(usize::try_from(gone).unwrap_or(usize::MAX));
            gone += fold::bucket(&shared.topology, bucket, Fold::Gone, left).await?;
        }
    }
    Ok(gone)
}
