//! Counts: the counters of a namespace, and how many records it has.
//!
//! Invariant: expired records do not count, whether or not their entries were swept; a repeated addition to the counters
//! counts once.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::Shared;
use super::driver::GROUP_LIMIT;
use super::fold;
use super::op::Op;
use super::query::{CHUNK, PLACE, ask, each, number, read, texts};
use super::row::{Bucket, Space, digits};
use super::script::{CENSUS, COUNT};
use crate::store::{Census, Counters, StoreError};
use crate::{Key, Timestamp};

pub(super) async fn count(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    counters: Counters,
    presented: Vec<(Key, u64)>,
) -> Result<(), StoreError> {
    let named: Vec<_> = counters.named().into_iter().filter(|(_, value)| *value > 0).collect();
    if !named.is_empty() {
        let mark = format!("{}{}", space.counted, uuid::Uuid::now_v7().simple());
        let make = |how| {
            let mut cmd = COUNT.call(2, how);
            cmd.arg(&space.counters).arg(&mark);
            for (name, value) in &named {
                cmd.arg(*name).arg(i64::try_from(*value).unwrap_or(i64::MAX));
            }
            cmd
        };
        ask(shared, space.counters_slot, &make).await?;
    }
    // A call's worth at a time: what callers wait for goes between.
    for some in presented.chunks(GROUP_LIMIT) {
        let mut asked = Vec::with_capacity(some.len());
        for (key, count) in some {
            let (bucket, record) = shared.place(space, key)?;
            asked.push(shared.driver.send(bucket, Op::presented(record, *count)));
        }
        for sent in asked {
            // The counters are in: what a record lacks of its presentations must not make them count twice.
            let answer = match sent {
                Ok(receiver) => receiver.await.unwrap_or_else(|_| Err(shared.driver.gone())),
                Err(error) => Err(error),
            };
            if let Err(error) = answer {
                tracing::debug!(store = %shared.topology.location, %error, "presentations were not counted");
                if !matches!(error, StoreError::Damaged { .. }) {
                    // Out of reach: the next ones would each wait for the server as long.
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

pub(super) async fn counters(shared: &Shared, space: &Space) -> Result<Counters, StoreError> {
    let make = |_| {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(&space.counters);
        cmd
    };
    let pairs = texts(ask(shared, space.counters_slot, &make).await?);
    let mut counters = Counters::default();
    for pair in pairs.chunks_exact(2) {
        if let [name, value] = pair
            && let Some(counter) = counters.named_mut(name)
        {
            *counter = digits(value.as_bytes()).unwrap_or(0);
        }
    }
    Ok(counters)
}

pub(super) async fn reset_counters(shared: &Shared, space: &Space) -> Result<(), StoreError> {
    let make = |_| {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(&space.counters);
        cmd
    };
    ask(shared, space.counters_slot, &make).await.map(|_| ())
}

pub(super) async fn census(shared: &Arc<Shared>, space: &Arc<Space>) -> Result<Census, StoreError> {
    fold::all(shared, std::slice::from_ref(space)).await?;
    let counts =
        each(
            shared,
            space.buckets.iter().cloned(),
            |shared, bucket| async move { count_bucket(&shared, &bucket).await },
        )
        .await?;
    let mut census = Census::default();
    for count in counts {
        census.completed += count.completed;
        census.failed += count.failed;
        census.in_progress += count.in_progress;
        census.in_doubt += count.in_doubt;
    }
    census.oldest = edge(shared, space, Edge::Oldest).await?;
    census.newest = edge(shared, space, Edge::Newest).await?;
    census.bytes = bytes(shared).await;
    Ok(census)
}

async fn count_bucket(shared: &Shared, bucket: &Arc<Bucket>) -> Result<Census, StoreError> {
    let mut census = Census::default();
    let mut after = "l".to_string();
    loop {
        let make = |how| {
            let mut cmd = CENSUS.call(1, how);
            cmd.arg(&bucket.index).arg(&after);
            cmd
        };
        let Value::Array(parts) = ask(shared, bucket.slot, &make).await? else {
            return Err(shared.odd("the server gave no counts".into()));
        };
        let count = |at: usize| u64::try_from(number(parts.get(at))).unwrap_or(0);
        (census.completed, census.failed) = (count(0), count(1));
        let live = parts.into_iter().nth(2).map(texts).unwrap_or_default();
        let mut asked = Vec::with_capacity(live.len());
        for member in &live {
            let Some((place, id)) = member.get(1..).and_then(|id| id.split_at_checked(PLACE)) else { continue };
            asked.push(shared.driver.send(bucket, Op::live(bucket.record(id), place))?);
        }
        for answer in asked {
            match answer.await.map_err(|_| shared.driver.gone())??.as_slice() {
                b"P" => census.in_progress += 1,
                b"D" => census.in_doubt += 1,
                _ => {}
            }
        }
        match live.last() {
            Some(last) if live.len() >= 1000 => after.clone_from(last),
            _ => return Ok(census),
        }
    }
}

/// How many records there are in these namespaces, expired ones included until their entries are swept.
pub(super) async fn entries(shared: &Arc<Shared>, spaces: &[Arc<Space>]) -> Result<u64, StoreError> {
    fold::all(shared, spaces).await?;
    let buckets = spaces.iter().flat_map(|s| s.buckets.iter().cloned());
    let counts = each(shared, buckets, |shared, bucket| async move {
        let make = |_| {
            let mut cmd = redis::cmd("ZLEXCOUNT");
            cmd.arg(&bucket.index).arg("[a").arg("(b");
            cmd
        };
        Ok(number(Some(&ask(&shared, bucket.slot, &make).await?)))
    })
    .await?;
    Ok(counts.into_iter().map(|n| u64::try_from(n).unwrap_or(0)).sum())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Oldest,
    Newest,
}

/// When the last attempt of the oldest or newest record began.
async fn edge(shared: &Arc<Shared>, space: &Arc<Space>, edge: Edge) -> Result<Option<Timestamp>, StoreError> {
    let firsts = each(shared, space.buckets.iter().cloned(), |shared, bucket| {
        let space = space.clone();
        async move { edge_of(&shared, &space, &bucket, edge).await }
    })
    .await?;
    let firsts = firsts.into_iter().flatten();
    let found = if edge == Edge::Oldest { firsts.min() } else { firsts.max() };
    Ok(found.map(|(_, started_at)| started_at))
}

async fn edge_of(
    shared: &Shared,
    space: &Arc<Space>,
    bucket: &Arc<Bucket>,
    edge: Edge,
) -> Result<Option<(String, Timestamp)>, StoreError> {
    // Past so many expired ones in a row it is not worth the search: a sweep is due.
    let mut bound = if edge == Edge::Oldest { "[a".to_string() } else { "(b".to_string() };
    for count in [1, 16, CHUNK] {
        let make = |_| {
            let (name, last) = if edge == Edge::Oldest { ("ZRANGEBYLEX", "(b") } else { ("ZREVRANGEBYLEX", "[a") };
            let mut cmd = redis::cmd(name);
            cmd.arg(&bucket.index).arg(&bound).arg(last).arg("LIMIT").arg(0).arg(count);
            cmd
        };
        let members = texts(ask(shared, bucket.slot, &make).await?);
        let Some(last) = members.last() else { return Ok(None) };
        bound = format!("({last}");
        let ids: Vec<_> =
            members.iter().filter_map(|m| m.get(1..)).map(|id| (bucket.clone(), id.to_string())).collect();
        if let Some((id, row)) = read(shared, space, &ids).await?.into_iter().next() {
            return Ok(Some((id, row.record.started_at)));
        }
    }
    Ok(None)
}

/// The memory that the servers use, whoever uses it; 0 where that is not told.
async fn bytes(shared: &Shared) -> u64 {
    let mut sum = 0;
    for node in shared.topology.primaries() {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("memory");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        if let Ok(answer) = node.send(&cmd, false, None, deadline).await {
            sum += super::startup::field(&answer, "used_memory").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    sum
}
