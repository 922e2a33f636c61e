//! What is only read: pages, counters, the census.
//!
//! Invariant: a page costs about what it returns, by the index that its filter
//! names.

use std::sync::Arc;

use tokio_postgres::types::{ToSql, Type};

use super::Shared;
use super::error::Failed;
use super::row::{COMPLETED, FAILED, millis, read, space_tag, tag, text_in, to_u64};
use super::session::Session;
use super::sql::fill;
use crate::store::{Census, Counters, Filter, MAX_PAGE, Order, Page, StoreError};
use crate::{State, Timestamp};

pub(super) async fn page(
    shared: &Arc<Shared>,
    session: &Session,
    namespace: &Arc<str>,
    filter: &Filter,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page, Failed> {
    let (beyond, order, first) = match filter.order {
        Order::OldestFirst => (">", "ASC", 0),
        Order::NewestFirst => ("<", "DESC", i64::MAX),
    };
    let after = match cursor {
        None => first,
        Some(text) => text.parse::<i64>().ok().filter(|after| *after >= 0).ok_or_else(|| StoreError::BadRequest {
            message: format!("{text:?} is no cursor: give the `next` of the page before, or none"),
        })?,
    };
    let limit = limit.clamp(1, MAX_PAGE);
    let name = text_in(namespace);
    let space = space_tag(namespace);
    let mut narrowed = String::new();
    let mut params: Vec<(Box<dyn ToSql + Sync + Send + '_>, Type)> =
        vec![(Box::new(space), Type::INT8), (Box::new(&*name), Type::TEXT), (Box::new(after), Type::INT8)];
    // The tag finds, the text decides.
    for (value, tag_column, column) in [
        (&filter.action_type, "action_tag", "action_type"),
        (&filter.target, "target_tag", "target"),
        (&filter.signal_id, "signal_tag", "signal_id"),
    ] {
        if let Some(value) = value {
            narrowed.push_str(&format!(
                " AND r.{tag_column} = ${} AND r.{column} = ${}",
                params.len() + 1,
                params.len() + 2
            ));
            params.push((Box::new(tag(namespace, value)), Type::INT8));
            params.push((Box::new(text_in(value)), Type::TEXT));
        }
    }
    if let Some(within) = filter.expiring_within {
        narrowed.push_str(&format!(" AND r.expires_at <= @now + ${}", params.len() + 1));
        params.push((Box::new(millis(within)), Type::INT8));
    }
    let of_state = match filter.state {
        None => "",
        Some(State::InProgress) => " AND r.state = 0 AND r.lease_until > @now",
        Some(State::InDoubt) => " AND @in_doubt",
        Some(State::Completed) => " AND r.state = 2",
        Some(State::Failed) => " AND r.state = 3",
    };
    // Live rows and recorded ones have indexes of their own.
    let (live, recorded) = match filter.state {
        None => (true, true),
        Some(State::InProgress | State::InDoubt) => (true, false),
        Some(State::Completed | State::Failed) => (false, true),
    };
    let mut sql = String::new();
    for (wanted, which) in [
        (live, "r.state < 2 AND NOT (r.in_tx AND r.state = 0 AND r.lease_until <= @now)"),
        (recorded, "r.state > 1 AND (r.expires_at IS NULL OR r.expires_at > @now)"),
    ] {
        if wanted {
            sql.push_str(if sql.is_empty() { "" } else { " UNION ALL " });
            sql.push_str(&format!(
                "(SELECT @columns FROM @records r WHERE r.space_tag = $1 AND r.namespace = $2 AND r.id {beyond} $3 AND {which}\
                 {narrowed}{of_state} ORDER BY r.id {order} LIMIT {})",
                limit + 1
            ));
        }
    }
    let sql = format!("SELECT * FROM ({sql}) u ORDER BY u.id {order} LIMIT {}", limit + 1);
    let typed: Vec<(&(dyn ToSql + Sync), Type)> =
        params.iter().map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect();
    let rows = session.client.query_typed(&fill(&sql, &shared.options.schema), &typed).await?;
    let more = rows.len() > limit;
    let mut records = Vec::with_capacity(rows.len().min(limit));
    let mut last = after;
    for row in rows.iter().take(limit) {
        last = row.try_get(21)?;
        // A moment has passed between the filter and the row's own time.
        if let Some(row) = read(row, namespace)?
            && filter.state.is_none_or(|state| state == row.record.state)
        {
            records.push(row.record);
        }
    }
    Ok(Page { records, next: more.then(|| last.to_string()) })
}

pub(super) async fn counters(
    shared: &Arc<Shared>,
    session: &Session,
    namespace: &Arc<str>,
) -> Result<Counters, Failed> {
    let mut counters = Counters::default();
    for row in session.query(&shared.sql.counters, &[&text_in(namespace)]).await? {
        // One that a newer hapax counts is left alone.
        if let Some(counter) = counters.named_mut(row.try_get(0)?) {
            *counter = to_u64(row.try_get(1)?);
        }
    }
    Ok(counters)
}

pub(super) async fn census(shared: &Arc<Shared>, session: &Session, namespace: &Arc<str>) -> Result<Census, Failed> {
    let sql = &shared.sql;
    let space = space_tag(namespace);
    let mut census = Census::default();
    // Results have no index of their own: they are what is recorded and has not failed.
    let recorded = session.number(&sql.census_recorded, &[&space]).await?;
    let failed = session.number(&sql.census_failed, &[&space]).await?;
    census.failed = to_u64(failed);
    census.completed = to_u64(recorded - failed);
    for row in session.query(&sql.census_expired, &[&space]).await? {
        let count = to_u64(row.try_get(1)?);
        match row.try_get::<_, i16>(0)? {
            COMPLETED => census.completed = census.completed.saturating_sub(count),
            FAILED => census.failed = census.failed.saturating_sub(count),
            _ => {}
        }
    }
    for row in session.query(&sql.census_live, &[&space]).await? {
        let count = to_u64(row.try_get(1)?);
        if row.try_get(0)? {
            census.in_doubt = count;
        } else {
            census.in_progress = count;
        }
    }
    for (statement, edge) in [(&sql.census_oldest, &mut census.oldest), (&sql.census_newest, &mut census.newest)] {
        if let Some(row) = session.query(statement, &[&space]).await?.first() {
            *edge = Some(Timestamp::from_millis(row.try_get(0)?));
        }
    }
    // A server that cannot tell leaves it at zero.
    let table = fill("@records", &shared.options.schema);
    if let Ok(bytes) = session.number(&sql.bytes, &[&table]).await {
        census.bytes = to_u64(bytes);
    }
    Ok(census)
}
