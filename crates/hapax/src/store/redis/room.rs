//! `max_entries`: making room before a record that would be one too many.
//!
//! A limit over buckets that may lie on several servers cannot be kept in the same atomic step as a `begin`. While the
//! count is far from the limit it is taken once a second, and what others begin meanwhile is not seen. Close to it, a lock
//! in Redis is held from the count until the new record is there, so that the limit holds exactly (unless the holder is
//! held up for longer than [`LOCK_FOR`]). Invariants: what is evicted was recorded and among the oldest; nothing is evicted
//! for a call whose key has a record already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;

use super::node::pause;
use super::op::{self, Insert, Op, Resend};
use super::row::{Space, slot};
use super::script::UNLOCK;
use super::topology::Request;
use super::{Shared, query, tally};
use crate::store::{Begin, Begun, Capacity, Mark, Marked, OnFull, StoreError};

/// How long a count is good for while there is much room.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// How long the lock outlives a process that dies with it.
const LOCK_FOR: Duration = Duration::from_secs(5);

/// The last count.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// When it was made, and the records then and begun here since.
    counted: Mutex<Option<(Instant, u64)>>,
    /// One call of this process at a time goes for the lock in Redis.
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Room {
    /// Whether there is surely room for one more; then it is taken.
    fn take(&self, max_entries: u64) -> bool {
        let mut counted = self.counted.lock();
        let Some((at, records)) = counted.as_mut() else { return false };
        let is_far = *records < max_entries.saturating_sub(max_entries / 10).saturating_sub(64);
        if !is_far || at.elapsed() >= GOOD_FOR {
            return false;
        }
        *records += 1;
        true
    }

    fn set(&self, records: u64) {
        *self.counted.lock() = Some((Instant::now(), records));
    }
}

/// The right to make a record near the limit. Dropping it gives it back.
struct Lock {
    shared: Arc<Shared>,
    token: String,
    _gate: tokio::sync::OwnedMutexGuard<()>,
}

fn lock_key(shared: &Shared) -> (String, u16) {
    let key = format!("{}:room", shared.prefix);
    let slot = slot(key.as_bytes());
    (key, slot)
}

impl Lock {
    async fn take(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let gate = shared.room.gate.clone().lock_owned().await;
        let (key, slot) = lock_key(shared);
        let token = uuid::Uuid::now_v7().simple().to_string();
        let make = |_| {
            let mut cmd = redis::cmd("SET");
            cmd.arg(&key).arg(&token).arg("NX").arg("PX").arg(LOCK_FOR.as_millis() as u64);
            cmd
        };
        let since = Instant::now();
        // A lock taken by a request whose answer was lost expires by itself.
        let request = Request { slot, is_write: false, resend: Resend::Safe, make: &make };
        for tries in 1.. {
            if shared.topology.exec(&request).await? == Value::Okay {
                break;
            }
            if since.elapsed() > shared.topology.command_timeout().max(LOCK_FOR * 2) {
                return Err(StoreError::Busy { store: shared.topology.location.clone(), waited: since.elapsed() });
            }
            tokio::time::sleep(pause(tries).min(Duration::from_millis(50)) / 8).await;
        }
        Ok(Self { shared: shared.clone(), token, _gate: gate })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let (shared, token) = (self.shared.clone(), std::mem::take(&mut self.token));
        self.shared.driver.handle.spawn(async move {
            let (key, slot) = lock_key(&shared);
            let make = |how| {
                let mut cmd = UNLOCK.call(1, how);
                cmd.arg(&key).arg(&token);
                cmd
            };
            let request = Request { slot, is_write: false, resend: Resend::Safe, make: &make };
            if let Err(error) = shared.topology.exec(&request).await {
                tracing::debug!(store = %shared.topology.location, %error, "the lock on room expires by itself");
            }
        });
    }
}

/// Room for one more record, and how many expired and evicted ones went for it.
#[derive(Default)]
struct Made {
    expired: u64,
    evicted: u64,
    _lock: Option<Lock>,
}

async fn make(shared: &Arc<Shared>, capacity: Capacity) -> Result<Made, StoreError> {
    let Capacity { max_entries, on_full } = capacity;
    if shared.room.take(max_entries) {
        return Ok(Made::default());
    }
    let mut made = Made { _lock: Some(Lock::take(shared).await?), ..Made::default() };
    let spaces = query::namespaces(shared).await?;
    let mut records = tally::entries(shared, &spaces).await?;
    made.expired = spaces.iter().map(|s| s.take_expired()).sum();
    if records >= max_entries {
        let swept = query::sweep(shared, usize::MAX).await?;
        made.expired += swept;
        records = records.saturating_sub(swept);
    }
    if records >= max_entries && on_full == OnFull::Reject {
        return Err(StoreError::Capacity { store: shared.topology.location.clone(), max_entries });
    }
    if records >= max_entries {
        // Live attempts and doubts stay: when nothing else is left, the new one goes over the limit.
        made.evicted = query::evict(shared, &spaces, (max_entries / 5).max(1)).await?.at_most();
        records = records.saturating_sub(made.evicted);
    }
    shared.room.set(records + 1);
    Ok(made)
}

pub(super) async fn begin(shared: &Arc<Shared>, space: &Arc<Space>, begin: Begin) -> Result<Begun, StoreError> {
    query::register(shared, space).await?;
    let (bucket, record) = shared.place(space, &begin.key)?;
    let odd = |m| shared.odd(m);
    let mut room = Made::default();
    if let Some(capacity) = begin.capacity {
        // First without making a record: for one that exists no room is needed.
        let answer = shared.driver.run(bucket, Op::begin(record.clone(), &begin, Insert::AskFirst)?).await?;
        if let Some(begun) = op::begun(space, &answer).map_err(odd)? {
            return Ok(begun);
        }
        room = make(shared, capacity).await?;
    }
    let answer = shared.driver.run(bucket, Op::begin(record, &begin, Insert::Allowed)?).await?;
    match op::begun(space, &answer).map_err(odd)? {
        Some(Begun::Started { attempts, started_at, expired, evicted }) => Ok(Begun::Started {
            attempts,
            started_at,
            expired: expired + room.expired,
            evicted: evicted + room.evicted,
        }),
        Some(exists) => Ok(exists),
        None => Err(odd(op::absent())),
    }
}

pub(super) async fn mark(shared: &Arc<Shared>, space: &Arc<Space>, mark: Mark) -> Result<Marked, StoreError> {
    query::register(shared, space).await?;
    let (bucket, record) = shared.place(space, &mark.key)?;
    let odd = |m| shared.odd(m);
    let mut room = Made::default();
    if let Some(capacity) = mark.capacity {
        let answer = shared.driver.run(bucket, Op::mark(record.clone(), &mark, Insert::AskFirst)?).await?;
        if let Some(marked) = op::marked(space, &answer).map_err(odd)? {
            return Ok(marked);
        }
        room = make(shared, capacity).await?;
    }
    let answer = shared.driver.run(bucket, Op::mark(record, &mark, Insert::Allowed)?).await?;
    Ok(match op::marked(space, &answer).map_err(odd)?.ok_or_else(|| odd(op::absent()))? {
        Marked::Recorded { record, .. } => Marked::Recorded { record, expired: room.expired, evicted: room.evicted },
        exists => exists,
    })
}
