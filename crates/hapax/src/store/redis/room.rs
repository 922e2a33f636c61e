//! `max_entries`: making room before a record that would be one too many.
//!
//! A limit over buckets that may lie on several servers cannot be kept in the same atomic step as a `begin`. So it is kept
//! nearly: the records are counted before a new one is made, every time while they are close to the limit, else once a
//! second; what others begin in the meantime may go over it. Invariant: an evicted record is one that was recorded and
//! among the oldest; nothing is evicted for a call whose key has a record already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::op::{self, Insert, Op};
use super::row::Space;
use super::{Shared, query};
use crate::store::{Begin, Begun, Capacity, Mark, Marked, OnFull, StoreError};

/// How long a count is good for while there is much room.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Rounds of eviction before what cannot be evicted (live attempts, doubts) is let be.
const ROUNDS: usize = 3;

/// The last count.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// When it was made, and the records then and begun here since.
    counted: Mutex<Option<(Instant, u64)>>,
}

impl Room {
    /// Whether there is surely room for one more; then it is taken.
    fn take(&self, max_entries: u64) -> bool {
        let mut counted = self.counted.lock();
        let Some((at, records)) = counted.as_mut() else { return false };
        // The last tenth is counted one by one.
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

/// Makes room for one more record; how many expired and evicted ones went.
async fn make(shared: &Arc<Shared>, capacity: Capacity) -> Result<(u64, u64), StoreError> {
    let Capacity { max_entries, on_full } = capacity;
    if shared.room.take(max_entries) {
        return Ok((0, 0));
    }
    let spaces = query::namespaces(shared).await?;
    let (mut expired, mut evicted) = (0, 0);
    for round in 0..ROUNDS {
        let records = query::entries(shared, &spaces).await?;
        if records < max_entries {
            shared.room.set(records + 1);
            return Ok((expired, evicted));
        }
        if round == 0 {
            expired = query::sweep(shared, usize::MAX).await?;
            continue;
        }
        if on_full == OnFull::Reject {
            return Err(StoreError::Capacity { store: shared.topology.location.clone(), max_entries });
        }
        evicted += query::evict(shared, &spaces, (max_entries / 5).max(1)).await?;
        if evicted == 0 {
            break;
        }
    }
    // Nothing but live attempts and doubts: they stay, and the new one is let in.
    Ok((expired, evicted))
}

pub(super) async fn begin(shared: &Arc<Shared>, space: &Arc<Space>, begin: Begin) -> Result<Begun, StoreError> {
    query::register(shared, space).await?;
    let (bucket, record) = shared.place(space, &begin.key)?;
    let odd = |m| shared.odd(m);
    let mut room = (0, 0);
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
        Some(Begun::Started { attempts, started_at, expired, evicted }) => {
            Ok(Begun::Started { attempts, started_at, expired: expired + room.0, evicted: evicted + room.1 })
        }
        Some(exists) => Ok(exists),
        None => Err(odd(op::absent())),
    }
}

pub(super) async fn mark(shared: &Arc<Shared>, space: &Arc<Space>, mark: Mark) -> Result<Marked, StoreError> {
    query::register(shared, space).await?;
    let (bucket, record) = shared.place(space, &mark.key)?;
    let odd = |m| shared.odd(m);
    if let Some(capacity) = mark.capacity {
        let answer = shared.driver.run(bucket, Op::mark(record.clone(), &mark, Insert::AskFirst)?).await?;
        if let Some(marked) = op::marked(space, &answer).map_err(odd)? {
            return Ok(marked);
        }
        make(shared, capacity).await?;
    }
    let answer = shared.driver.run(bucket, Op::mark(record, &mark, Insert::Allowed)?).await?;
    op::marked(space, &answer).map_err(odd)?.ok_or_else(|| odd(op::absent()))
}
