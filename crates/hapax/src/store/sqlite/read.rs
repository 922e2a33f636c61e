//! What is only read: records, pages, counters, the census.
//!
//! Invariant: nothing here writes; a page costs about what it returns, by the
//! index that its filter names.

use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::batch::{millis, namespace_id};
use super::error::Failed;
use super::row::{Expired, Hash, Now, columns, find, read, signal_range, tag, to_i64, to_u64};
use super::schema::{COMPLETED, FAILED};
use crate::store::{Census, Counters, Filter, MAX_PAGE, Order, Page, StoreError};
use crate::{Key, Record, State, Timestamp};

/// What a reader is asked for.
#[derive(Debug)]
pub(super) enum Question {
    Get { namespace: Arc<str>, key: Key, hash: Hash },
    Query { namespace: Arc<str>, filter: Box<Filter>, cursor: Option<String>, limit: usize },
    Counters { namespace: Arc<str> },
    Census { namespace: Arc<str> },
}

/// What it answers.
#[derive(Debug)]
pub(super) enum Reply {
    Record(Option<Box<Record>>),
    Page(Page),
    Counters(Counters),
    Census(Census),
}

impl Reply {
    /// Whether it tells of a recorded result, which must then be durable.
    pub(super) fn tells_recorded(&self) -> bool {
        match self {
            Self::Record(record) => record.as_ref().is_some_and(|r| r.state.is_recorded()),
            Self::Page(page) => page.records.iter().any(|r| r.state.is_recorded()),
            Self::Counters(_) | Self::Census(_) => false,
        }
    }
}

impl Question {
    pub(super) fn answer(&self, conn: &Connection, now: &mut Now) -> Result<Reply, Failed> {
        Ok(match self {
            Self::Get { namespace, key, hash } => {
                let row = find(conn, namespace, key, hash, now, Expired::Skip)?;
                Reply::Record(row.map(|row| Box::new(row.record)))
            }
            Self::Query { namespace, filter, cursor, limit } => {
                Reply::Page(page(conn, namespace, filter, cursor.as_deref(), *limit, now)?)
            }
            Self::Counters { namespace } => Reply::Counters(counters(conn, namespace)?),
            Self::Census { namespace } => Reply::Census(census(conn, namespace, now)?),
        })
    }
}

/// A `WHERE` clause under construction.
struct Clause {
    sql: String,
    args: Vec<Value>,
}

impl Clause {
    /// Adds a condition; each `?` in it takes the next of `args`.
    fn and(&mut self, condition: &str, args: impl IntoIterator<Item = Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.args.extend(args);
    }
}

fn page(
    conn: &Connection,
    namespace: &Arc<str>,
    filter: &Filter,
    cursor: Option<&str>,
    limit: usize,
    now: &mut Now,
) -> Result<Page, Failed> {
    let (beyond, order, first) = match filter.order {
        Order::OldestFirst => (">", "ASC", 0),
        Order::NewestFirst => ("<", "DESC", i64::MAX),
    };
    let after = match cursor {
        None => first,
        Some(text) => to_i64(text.parse::<u64>().map_err(|_| StoreError::BadRequest {
            message: format!("{text:?} is no cursor: give the `next` of the page before, or none"),
        })?),
    };
    let limit = limit.clamp(1, MAX_PAGE);
    let Some(id) = namespace_id(conn, namespace)? else { return Ok(Page { records: Vec::new(), next: None }) };
    let mut clause = Clause { sql: String::new(), args: Vec::new() };
    let live = matches!(filter.state, Some(State::InProgress | State::InDoubt));
    let index = if filter.signal_id.is_some() {
        ""
    } else if live {
        "INDEXED BY records_live"
    } else if filter.expiring_within.is_some() {
        "INDEXED BY records_expiry"
    } else if filter.state == Some(State::Failed) {
        "INDEXED BY records_failed"
    } else if filter.target.is_some() {
        "INDEXED BY records_target"
    } else if filter.action_type.is_some() {
        "INDEXED BY records_action"
    } else {
        "INDEXED BY records_namespace"
    };
    if let Some(signal) = &filter.signal_id {
        let (low, high) = signal_range(namespace, signal).unwrap_or(([0xff; 16], [0; 16]));
        clause.and(
            "r.id IN (SELECT id FROM records INDEXED BY records_hash WHERE hash BETWEEN ? AND ?
                UNION ALL SELECT id FROM records INDEXED BY records_signal WHERE signal_tag = ?)",
            [Value::Blob(low.to_vec()), Value::Blob(high.to_vec()), tag(namespace, signal).into()],
        );
        clause.and("r.signal_id = ?", [signal.clone().into()]);
    }
    if let Some(target) = &filter.target {
        clause.and("r.target_tag = ? AND r.target = ?", [tag(namespace, target).into(), target.clone().into()]);
    }
    if let Some(action) = &filter.action_type {
        clause.and("r.action_tag = ? AND r.action_type = ?", [tag(namespace, action).into(), action.clone().into()]);
    }
    match filter.state {
        Some(State::InProgress | State::InDoubt) => clause.and("r.state < 2", []),
        Some(State::Failed) => clause.and("r.state = 3", []),
        Some(State::Completed) => clause.and("r.state = ?", [COMPLETED.into()]),
        None => {}
    }
    if let Some(within) = filter.expiring_within {
        let until = now.wall.as_millis().saturating_add(millis(within));
        clause.and("r.expires_at IS NOT NULL AND r.expires_at <= ?", [until.into()]);
    }
    let sql = format!(
        "SELECT {} FROM records r {index} LEFT JOIN results x ON x.id = r.result WHERE r.namespace = ? AND r.id {beyond} ?{} ORDER BY r.id {order}",
        columns!(),
        clause.sql
    );
    let args = [Value::from(id), Value::from(after)].into_iter().chain(clause.args);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(args))?;
    let mut records = Vec::new();
    let mut last = 0;
    while let Some(row) = rows.next()? {
        let Some(row) = read(row, namespace, now, Expired::Skip)? else { continue };
        if filter.state.is_some_and(|state| state != row.record.state) {
            continue;
        }
        if records.len() == limit {
            return Ok(Page { records, next: Some(last.to_string()) });
        }
        last = row.id;
        records.push(row.record);
    }
    Ok(Page { records, next: None })
}

fn counters(conn: &Connection, namespace: &Arc<str>) -> Result<Counters, Failed> {
    let mut counters = Counters::default();
    let Some(id) = namespace_id(conn, namespace)? else { return Ok(counters) };
    let mut statement = conn.prepare_cached("SELECT name, value FROM counters WHERE namespace = ?1")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        // One that a newer hapax counts is left alone.
        if let Some(counter) = counters.named_mut(&name) {
            *counter = to_u64(row.get(1)?);
        }
    }
    Ok(counters)
}

fn census(conn: &Connection, namespace: &Arc<str>, now: &mut Now) -> Result<Census, Failed> {
    let mut census = Census { bytes: bytes(conn)?, ..Census::default() };
    let tally: Option<(i64, i64, i64)> = conn
        .prepare_cached("SELECT id, completed, failed FROM namespaces WHERE name = ?1")?
        .query_row([&**namespace], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((id, completed, failed)) = tally else { return Ok(census) };
    let wall = now.wall.as_millis();
    let mut statement = conn.prepare_cached(
        "SELECT state, count(*) FROM records INDEXED BY records_expiry WHERE expires_at <= ?2 AND namespace = ?1 GROUP BY state",
    )?;
    let mut expired = statement.query([id, wall])?;
    let (mut expired_completed, mut expired_failed) = (0, 0);
    while let Some(row) = expired.next()? {
        match row.get(0)? {
            FAILED => expired_failed = row.get(1)?,
            _ => expired_completed = row.get(1)?,
        }
    }
    census.completed = to_u64(completed - expired_completed);
    census.failed = to_u64(failed - expired_failed);
    let mut statement = conn.prepare_cached(
        "SELECT state, token, lease_until, lease_steady FROM records INDEXED BY records_live WHERE namespace = ?1 AND state < 2",
    )?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let until: Option<i64> = row.get(2)?;
        let steady: Option<i64> = row.get(3)?;
        let token = row.get_ref(1)?.as_blob().unwrap_or_default();
        if row.get::<_, i64>(0)? != 0 || now.lapse(token, until.unwrap_or(0), steady.unwrap_or(0)).is_some() {
            census.in_doubt += 1;
        } else {
            census.in_progress += 1;
        }
    }
    let edge = |order: &str| -> Result<Option<Timestamp>, Failed> {
        let sql = format!(
            "SELECT started_at FROM records INDEXED BY records_namespace
             WHERE namespace = ?1 AND (expires_at IS NULL OR expires_at > ?2) ORDER BY id {order} LIMIT 1"
        );
        let at: Option<i64> = conn.prepare_cached(&sql)?.query_row([id, wall], |row| row.get(0)).optional()?;
        Ok(at.map(Timestamp::from_millis))
    };
    census.oldest = edge("ASC")?;
    census.newest = edge("DESC")?;
    Ok(census)
}

/// What the file and its log take.
fn bytes(conn: &Connection) -> Result<u64, Failed> {
    let Some(path) = conn.path() else { return Ok(0) };
    let size = |suffix: &str| std::fs::metadata(format!("{path}{suffix}")).map_or(0, |m| m.len());
    Ok(size("") + size("-wal"))
}
