//! What is looked at when a store is opened: that the server can serve hapax, and what it will not keep.
//!
//! Managed servers forbid `CONFIG`, and some `INFO`: what cannot be seen is not complained of.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::error::Failure;
use super::node::{Node, Trouble};
use super::op::Resend;
use super::options::Mode;
use super::row::slot;
use super::topology::Request;
use super::{Shared, query};
use crate::store::StoreError;

/// The version of what is in Redis.
const LAYOUT: &str = "2";
/// Buckets of a namespace in a cluster: enough to spread over its nodes, few enough that a page or a census asks each.
const CLUSTER_BUCKETS: usize = 16;
/// What is believed.
const MAX_BUCKETS: usize = 1024;

/// The oldest server whose `SET` takes an expiry in absolute time.
const OLDEST: (u32, u32) = (6, 2);

pub(super) async fn look(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let topology = &shared.topology;
    let limit = topology.options().connect_timeout;
    let failed = |failure: Failure| match failure.into_store(&topology.location, false, limit) {
        // Nothing has been written yet, so nothing can be in question.
        StoreError::AnswerLost { store, message } => StoreError::Unavailable { store, message },
        other => other,
    };
    let deadline = Instant::now() + limit + Duration::from_millis(500);
    topology.node_for(0, deadline).await.map_err(failed)?;
    for node in topology.primaries() {
        look_at(shared, &node, deadline).await.map_err(failed)?;
    }
    layout(shared, deadline).await
}

/// How the data under this prefix is laid out: a version, and into how many buckets a namespace is divided.
///
/// Who comes first writes it down. Written by a single server and moved to a cluster, or the other way, it stays as it is.
async fn layout(shared: &Arc<Shared>, deadline: Instant) -> Result<(), StoreError> {
    let topology = &shared.topology;
    let limit = deadline.saturating_duration_since(Instant::now());
    let mut found = found_layout(shared, limit).await?;
    if found.is_empty() {
        let (old, old_slot) = query::registry(shared);
        if exec(shared, old_slot, limit, &["EXISTS", &old]).await? == Value::Int(1) {
            return Err(old_layout(shared, "1"));
        }
        let buckets = if matches!(topology.options().mode, Mode::Cluster(_)) { CLUSTER_BUCKETS } else { 1 };
        found = write_layout(shared, limit, buckets).await?;
    }
    adopt(shared, found)
}

/// What is under the prefix is not as it was found: all was flushed, and perhaps another has written since. Records of
/// before are gone, those of after lie where the layout of now says, and namespaces are to be written down anew.
pub(super) async fn look_again(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let limit = shared.topology.command_timeout();
    let mut found = found_layout(shared, limit).await?;
    if found.is_empty() {
        // As it was here, so that what has been begun since stays where it is.
        found = write_layout(shared, limit, shared.buckets.load(Ordering::Acquire)).await?;
    }
    adopt(shared, found)?;
    shared.spaces.write().clear();
    tracing::warn!(
        store = %shared.topology.location,
        prefix = shared.prefix,
        "everything under the prefix was removed (FLUSHALL?): what was recorded before may run again"
    );
    Ok(())
}

pub(super) fn layout_key(shared: &Shared) -> String {
    format!("{}:{{layout}}", shared.prefix)
}

async fn exec(shared: &Shared, slot: u16, limit: Duration, words: &[&str]) -> Result<Value, StoreError> {
    let make = |_| {
        let mut cmd = redis::cmd(words.first().copied().unwrap_or("PING"));
        for word in words.iter().skip(1) {
            cmd.arg(*word);
        }
        cmd
    };
    let request = Request { slot, is_write: false, resend: Resend::Safe, make: &make };
    shared.topology.exec_within(&request, limit).await
}

/// The layout that is written down; empty if none is.
pub(super) async fn found_layout(shared: &Shared, limit: Duration) -> Result<String, StoreError> {
    let found = exec(shared, slot(b"layout"), limit, &["GET", &layout_key(shared)]).await?;
    Ok(query::text(&found))
}

/// Writes a layout down unless another was quicker; the one that counts.
async fn write_layout(shared: &Shared, limit: Duration, buckets: usize) -> Result<String, StoreError> {
    let layout = format!("{LAYOUT} {buckets}");
    exec(shared, slot(b"layout"), limit, &["SET", &layout_key(shared), &layout, "NX"]).await?;
    found_layout(shared, limit).await
}

fn adopt(shared: &Shared, layout: String) -> Result<(), StoreError> {
    let buckets = layout
        .split_once(' ')
        .filter(|(version, _)| *version == LAYOUT)
        .and_then(|(_, buckets)| buckets.parse().ok())
        .filter(|buckets| (1..=MAX_BUCKETS).contains(buckets))
        .ok_or_else(|| old_layout(shared, layout.split(' ').next().unwrap_or_default()))?;
    shared.buckets.store(buckets, Ordering::Release);
    *shared.layout.lock() = layout;
    Ok(())
}

fn old_layout(shared: &Shared, found: &str) -> StoreError {
    shared.odd(format!(
        "what is under the prefix {:?} has layout {:?}, and this hapax reads layout {LAYOUT}; give another prefix, or the hapax that wrote it",
        shared.prefix,
        found.chars().take(20).collect::<String>()
    ))
}

async fn look_at(shared: &Arc<Shared>, node: &Arc<Node>, deadline: Instant) -> Result<(), Failure> {
    let options = shared.topology.options();
    let ask = async |words: &[&str]| {
        let mut cmd = redis::cmd(words.first().copied().unwrap_or("PING"));
        for word in words.iter().skip(1) {
            cmd.arg(*word);
        }
        node.send(&cmd, false, None, deadline).await.map_err(|trouble| match trouble {
            Trouble::Failed(failure) => failure,
            Trouble::NoScript | Trouble::Moved(_) | Trouble::Ask(_) => Failure::other("an odd answer"),
        })
    };
    // That it answers at all, and takes the password.
    ask(&["PING"]).await?;
    let Ok(info) = ask(&["INFO"]).await else {
        tracing::debug!(server = %node.address, "INFO is not allowed; whether the server keeps its data is not known");
        return Ok(());
    };
    if field(&info, "cluster_enabled").as_deref() == Some("1") && !matches!(options.mode, Mode::Cluster(_)) {
        return Err(Failure::other(format!(
            "{} is a node of a cluster; give redis+cluster: in place of redis:",
            node.address
        )));
    }
    let version = field(&info, "redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // A server that does not tell its version is given the benefit of the doubt.
    if !version.is_empty() && found < OLDEST {
        return Err(Failure::other(format!("{} is Redis {version}, and hapax needs 6.2 or newer", node.address)));
    }
    if options.wait.aof && !version.is_empty() && found < (7, 2) {
        return Err(Failure::other(format!(
            "waitaof needs WAITAOF, which came with Redis 7.2, and {} is {version}; leave waitaof out, or set appendfsync to always there",
            node.address
        )));
    }
    let config = async |name: &str| match ask(&["CONFIG", "GET", name]).await {
        Ok(Value::Array(pair)) => match pair.get(1) {
            Some(Value::BulkString(value)) => String::from_utf8(value.clone()).ok(),
            _ => None,
        },
        _ => None,
    };
    let policy = match field(&info, "maxmemory_policy") {
        Some(policy) => Some(policy),
        None => config("maxmemory-policy").await,
    };
    if let Some(policy) = policy.filter(|p| p != "noeviction") {
        tracing::warn!(
            server = %node.address,
            policy,
            "maxmemory-policy may evict hapax's records, and their actions may run again; set it to noeviction"
        );
    }
    let has_aof = field(&info, "aof_enabled").as_deref() == Some("1");
    if !has_aof && config("save").await.is_some_and(|save| save.is_empty()) {
        tracing::warn!(
            server = %node.address,
            "the server keeps nothing on disk: a restart loses every record, and their actions may run again; set appendonly to yes"
        );
    }
    Ok(())
}

/// A line of `INFO`.
pub(super) fn field(info: &Value, name: &str) -> Option<String> {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_string()))
}
