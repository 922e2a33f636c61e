//! What is looked at when a store is opened: that the server can serve hapax, and what it will not keep.
//!
//! Managed servers forbid `CONFIG`, and some `INFO`: what cannot be seen is not complained of.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::Shared;
use super::error::Failure;
use super::node::{Node, Trouble};
use super::options::Mode;
use crate::store::StoreError;

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
    Ok(())
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
