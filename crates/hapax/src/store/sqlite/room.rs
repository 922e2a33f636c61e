//! Removing what is over, and making room: sweep, clear, eviction, capacity.
//!
//! Invariants: live records stay; expired ones go before any other; a recorded
//! result that goes before its time raises the epoch.

use std::sync::Arc;

use rusqlite::{Params, params};

use super::batch::{Batch, namespace_id};
use super::error::Failed;
use super::row::{to_i64, to_u64};
use crate::store::{Capacity, OnFull, StoreError};

/// Rows held in memory at once while many are removed.
const CHUNK: i64 = 1024;

/// The most records evicted to make room for one: a larger fifth goes in several steps, so that
/// no call waits for seconds.
const EVICT_AT_ONCE: i64 = 4096;

/// Removes the rows that the statement selects (id, result, namespace, state).
fn delete_selected(batch: &mut Batch<'_>, sql: &str, args: impl Params) -> Result<i64, Failed> {
    let rows: Vec<(i64, Option<i64>, i64, i64)> = batch
        .conn
        .prepare_cached(sql)?
        .query_map(args, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (id, result, namespace, state) in &rows {
        batch.delete(*id, *result, *namespace, *state)?;
    }
    Ok(to_i64(rows.len() as u64))
}

/// Calls `step` with chunks of `limit` until one comes back short.
fn in_chunks(mut limit: i64, mut step: impl FnMut(i64) -> Result<i64, Failed>) -> Result<i64, Failed> {
    let mut total = 0;
    while limit > 0 {
        let chunk = limit.min(CHUNK);
        let gone = step(chunk)?;
        total += gone;
        limit -= chunk;
        if gone < chunk {
            break;
        }
    }
    Ok(total)
}

/// Removes expired records of all namespaces.
pub(super) fn sweep(batch: &mut Batch<'_>, limit: i64) -> Result<u64, Failed> {
    let now = batch.now.wall.as_millis();
    let gone = in_chunks(limit, |chunk| {
        delete_selected(
            batch,
            "SELECT id, result, namespace, state FROM records INDEXED BY records_expiry
             WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
            [now, chunk],
        )
    })?;
    Ok(to_u64(gone))
}

/// Removes the oldest recorded results and errors of a namespace.
pub(super) fn evict_oldest(batch: &mut Batch<'_>, namespace: &Arc<str>, count: u64) -> Result<u64, Failed> {
    let Some(id) = namespace_id(batch.conn, namespace)? else { return Ok(0) };
    let now = batch.now.wall.as_millis();
    let gone = in_chunks(to_i64(count), |chunk| {
        delete_selected(
            batch,
            "SELECT id, result, namespace, state FROM records INDEXED BY records_namespace
             WHERE namespace = ?1 AND state >= 2 AND (expires_at IS NULL OR expires_at > ?2) ORDER BY id LIMIT ?3",
            [id, now, chunk],
        )
    })?;
    batch.raise_epoch |= gone > 0;
    Ok(to_u64(gone))
}

/// Removes all recorded results and errors of a namespace.
pub(super) fn clear(batch: &mut Batch<'_>, namespace: &Arc<str>) -> Result<u64, Failed> {
    let Some(id) = namespace_id(batch.conn, namespace)? else { return Ok(0) };
    let now = batch.now.wall.as_millis();
    let counts: Vec<(i64, i64, i64)> = batch
        .conn
        .prepare_cached(
            "SELECT state, count(*), count(CASE WHEN expires_at <= ?2 THEN 1 END) FROM records
             WHERE namespace = ?1 AND state >= 2 GROUP BY state",
        )?
        .query_map([id, now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    batch
        .conn
        .prepare_cached(
            "DELETE FROM results WHERE id IN (SELECT result FROM records WHERE namespace = ?1 AND state >= 2 AND result IS NOT NULL)",
        )?
        .execute([id])?;
    batch.conn.prepare_cached("DELETE FROM records WHERE namespace = ?1 AND state >= 2")?.execute([id])?;
    for (state, all, _) in &counts {
        batch.tally(id, *state, -all);
    }
    batch.raise_epoch = true;
    Ok(to_u64(counts.iter().map(|(_, all, expired)| all - expired).sum()))
}

/// Makes room for one more record; returns how many expired and how many other records went.
pub(super) fn make(batch: &mut Batch<'_>, capacity: Capacity, location: &str) -> Result<(u64, u64), Failed> {
    let max = to_i64(capacity.max_entries);
    if batch.total()? < max {
        return Ok((0, 0));
    }
    let expired = sweep(batch, i64::MAX)?;
    if batch.total()? < max {
        return Ok((expired, 0));
    }
    if capacity.on_full == OnFull::Reject {
        return Err(Failed::Store(StoreError::Capacity {
            store: location.to_string(),
            max_entries: capacity.max_entries,
        }));
    }
    let fifth = (max / 5).clamp(1, EVICT_AT_ONCE);
    let evicted = in_chunks(fifth, |chunk| {
        delete_selected(
            batch,
            "SELECT id, result, namespace, state FROM records WHERE state >= 2 ORDER BY id LIMIT ?1",
            params![chunk],
        )
    })?;
    batch.raise_epoch |= evicted > 0;
    Ok((expired, to_u64(evicted)))
}
