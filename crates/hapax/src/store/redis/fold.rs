//! Bringing an index up to date: what a bucket's log holds is taken into its index before that is read.
//!
//! Begins only note a record's id in the log, which costs them next to nothing; most records are never asked for in any
//! other way than by their key, and many have expired before anybody asks. Invariants: an index is read only after all
//! that was begun before the question is in it; no step of a server deals with more than a few hundred records; the
//! records of a step are among its keys, so that a slot that is just moving refuses it rather than call them missing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::Value;

use super::Shared;
use super::op::Resend;
use super::query::{each, number, texts};
use super::row::{Bucket, Space};
use super::script::FOLD;
use super::topology::{Request, Topology};
use crate::store::StoreError;
use crate::store::shared::coarse;

/// Records that one step deals with, and entries of expired ones that it takes out.
const STEP: usize = 256;
/// The longest log: past it, begins wait until some of it is in the index.
const LOG_LIMIT: usize = 1 << 20;
/// Between two looks at what has expired, in milliseconds.
const TIDY_EVERY: i64 = 1_000;

/// How much of a log is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// All.
    All,
    /// What leads to expired records is dropped, and the rest is left for later.
    Gone,
}

/// One step; how many records had expired, and how many of the log's entries it dealt with.
async fn step(
    topology: &Topology,
    bucket: &Bucket,
    fold: Fold,
    records: usize,
    expired: usize,
) -> Result<(u64, usize), StoreError> {
    let exec = async |make: &(dyn Fn(_) -> redis::Cmd + Send + Sync)| {
        topology.exec(&Request { slot: bucket.slot, is_write: false, resend: Resend::Safe, make }).await
    };
    let first = |_| {
        let mut cmd = redis::cmd("LRANGE");
        cmd.arg(&bucket.log).arg(0).arg(records.saturating_sub(1));
        cmd
    };
    let ids = if records == 0 { Vec::new() } else { texts(exec(&first).await?) };
    let keys: Vec<String> = ids.iter().map(|id| bucket.record(id)).collect();
    let answer = exec(&|how| {
        let mut cmd = FOLD.call(keys.len() + 3, how);
        cmd.arg(&bucket.index).arg(&bucket.log).arg(&bucket.removals).arg(&keys);
        cmd.arg(expired).arg(if fold == Fold::All { "all" } else { "gone" });
        cmd
    })
    .await?;
    let Value::Array(parts) = answer else {
        return Err(StoreError::Damaged {
            store: topology.location.clone(),
            message: "the server did not say what it took into an index".into(),
        });
    };
    let count = |at: usize| u64::try_from(number(parts.get(at))).unwrap_or(0);
    Ok((count(0), usize::try_from(count(1)).unwrap_or(usize::MAX)))
}

async fn length(topology: &Topology, bucket: &Bucket) -> Result<usize, StoreError> {
    let make = |_| {
        let mut cmd = redis::cmd("LLEN");
        cmd.arg(&bucket.log);
        cmd
    };
    let request = Request { slot: bucket.slot, is_write: false, resend: Resend::Safe, make: &make };
    Ok(usize::try_from(number(Some(&topology.exec(&request).await?))).unwrap_or(0))
}

/// Deals with a bucket's log and takes out what has expired, at most `limit` records; how many those were.
pub(super) async fn bucket(topology: &Topology, bucket: &Bucket, fold: Fold, limit: usize) -> Result<u64, StoreError> {
    // What is begun meanwhile is not waited for.
    let mut left = length(topology, bucket).await?;
    let mut gone = 0;
    loop {
        let room = limit.saturating_sub(usize::try_from(gone).unwrap_or(usize::MAX)).min(STEP);
        if room == 0 && fold == Fold::Gone {
            return Ok(gone);
        }
        let records = if fold == Fold::All { left.min(STEP) } else { left.min(room) };
        let (expired, dealt) = step(topology, bucket, fold, records, room).await?;
        gone += expired;
        left = left.saturating_sub(dealt);
        let all_out = usize::try_from(expired).unwrap_or(usize::MAX) < room.max(1);
        // Where another process deals with the same log, it does what is missing here.
        if (left == 0 || dealt == 0) && (all_out || fold == Fold::All) {
            return Ok(gone);
        }
    }
}

/// Brings the indexes of these namespaces up to date.
pub(super) async fn all(shared: &Arc<Shared>, spaces: &[Arc<Space>]) -> Result<(), StoreError> {
    let buckets = spaces.iter().flat_map(|s| s.buckets.iter().cloned());
    each(shared, buckets, |shared, each| async move {
        let gone = bucket(&shared.topology, &each, Fold::All, STEP).await?;
        each.expired.fetch_add(gone, Ordering::AcqRel);
        Ok(())
    })
    .await
    .map(|_| ())
}

/// After a begin: keeps the log within its limit, and once in a while takes out what has expired.
pub(super) async fn keep_up(topology: &Topology, bucket: &Bucket, length: usize) {
    let now = coarse();
    let last = bucket.tidied.load(Ordering::Relaxed);
    let (fold, records) = if length > LOG_LIMIT {
        (Fold::All, STEP)
    } else if now - last >= TIDY_EVERY {
        (Fold::Gone, STEP)
    } else {
        return;
    };
    bucket.tidied.store(now, Ordering::Relaxed);
    match step(topology, bucket, fold, records, STEP).await {
        Ok((gone, _)) => {
            bucket.expired.fetch_add(gone, Ordering::AcqRel);
        }
        Err(error) => tracing::debug!(store = %topology.location, %error, "an index was not tidied up"),
    }
}
