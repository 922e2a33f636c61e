//! Records, one or many: `check`, `get`, `ls`, and what changes them: `mark`,
//! `settle`, `rm`, `cleanup`.

mod show;

use hapax::store::{Filter, MAX_PAGE, Marked, Order, Settlement};
use hapax::{Error, Key, Record, State, Ttl};
use serde::Serialize;
use serde_json::json;

use super::{close, existing, open, print};
use crate::action::result_of;
use crate::args::{Cleanup, Ls, Mark, Settle};
use crate::failure::{Failure, IN_FLIGHT};
use crate::sealed::Listed;
use crate::settings::Settings;
use crate::terminal;
use crate::units::Keep;

/// Prints the recorded result, and says nothing if there is none. A doubt or a
/// live attempt is not "none": who took it for that might run the action again.
pub async fn check(key: &str, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let key = Key::given(key)?;
    let Some(hapax) = existing(settings).await? else { return Ok(1) };
    let record = match hapax.check_executed(&key).await? {
        Some(record) => Some(record),
        None => hapax.record(&key).await?,
    };
    close(&hapax).await;
    let Some(record) = record else { return Ok(1) };
    match record.state {
        State::Completed => {
            let result = record.result.as_ref().map_or("null", |r| r.as_str()).to_string();
            print(json, &record, || terminal::safe_json(&result))?;
            Ok(0)
        }
        State::Failed => Err(Error::Failed {
            key,
            message: record.error.unwrap_or_default(),
            at: record.executed_at.unwrap_or(record.started_at),
        }
        .into()),
        State::InDoubt => Err(Error::InDoubt { record: Box::new(record) }.into()),
        State::InProgress => Err(Error::InFlight {
            key,
            owner: record.owner,
            since: record.started_at,
            waited: std::time::Duration::ZERO,
        }
        .into()),
    }
}

/// Shows a record.
pub async fn get(key: &str, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let key = Key::given(key)?;
    let hapax = existing(settings).await?;
    let record = match &hapax {
        Some(hapax) => hapax.record(&key).await?,
        None => None,
    };
    if let Some(hapax) = &hapax {
        close(hapax).await;
    }
    let record = record.ok_or_else(|| Failure::absent(&key))?;
    print(json, &record, || show::record(&record, &settings.flags))?;
    Ok(0)
}

/// Lists records.
pub async fn list(args: Ls, settings: &Settings, json: bool) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Page<R> {
        records: Vec<R>,
        next: Option<String>,
    }
    let in_doubt = args.state == Some(State::InDoubt);
    let filter = Filter {
        action_type: args.action,
        target: args.target,
        signal_id: args.signal,
        state: args.state,
        expiring_within: args.expiring_within.map(|s| s.0),
        order: if args.newest { Order::NewestFirst } else { Order::OldestFirst },
    };
    let hapax = existing(settings).await?;
    let mut answer = Page::<Record> { records: Vec::new(), next: args.cursor };
    if let Some(hapax) = &hapax {
        let limit = if args.all { MAX_PAGE } else { usize::from(args.limit) };
        loop {
            let page = hapax.records(filter.clone(), answer.next.take(), limit).await?;
            answer.records.extend(page.records);
            answer.next = page.next;
            if !args.all || answer.next.is_none() {
                break;
            }
        }
    } else {
        answer.next = None;
    }
    if let Some(hapax) = &hapax {
        close(hapax).await;
    }
    if json {
        let records: Vec<Listed> = answer.records.into_iter().map(Listed::new).collect();
        terminal::print(&terminal::json(&Page { records, next: answer.next })?)?;
        return Ok(0);
    }
    if answer.records.is_empty() {
        terminal::note("no records");
        return Ok(0);
    }
    terminal::print(&show::list(&answer.records, in_doubt))?;
    if answer.records.iter().any(|r| r.state == State::InDoubt) {
        let flags = &settings.flags;
        let look = if in_doubt { "" } else { "--state in-doubt lists the attempts in doubt; " };
        terminal::note(&format!(
            "{look}once you know what happened: hapax settle{flags} --attempt ATTEMPT --happened JSON KEY, or --not-happened"
        ));
    }
    if let Some(next) = answer.next {
        terminal::note(&format!("there are more: add --cursor {}, or --all", crate::failure::quoted(&next)));
    }
    Ok(0)
}

/// The time to live that a run of this action would choose, unless one is given.
fn ttl(given: Option<Keep>, action: Option<(&str, &str)>, settings: &Settings) -> Result<Ttl, Failure> {
    match (given, action) {
        (Some(keep), _) => Ok(keep.0),
        (None, Some((type_, target))) => Ok(settings.chosen(type_, target)?.ttl.value.0),
        (None, None) => Ok(settings.chosen_by_default()?.ttl.value.0),
    }
}

fn until(record: &Record) -> String {
    match record.expires_at {
        Some(at) => format!("kept until {at}"),
        None => "kept for ever".into(),
    }
}

/// Records a result by hand.
pub async fn mark(args: Mark, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let key = Key::given(&args.key)?;
    let result = result_of(&args.result, settings.max_output.value.0)?;
    let parts = key.parts().ok();
    let action = parts.as_ref().map(|p| (p.action_type.as_str(), p.target.as_str()));
    let ttl = ttl(args.ttl, action, settings)?;
    let hapax = open(settings).await?;
    let marked = hapax.mark_executed(&key, &result, Some(ttl)).await?;
    close(&hapax).await;
    let (recorded, record) = match marked {
        Marked::Recorded { record, .. } => (true, record),
        Marked::Exists(record) => (false, record),
    };
    print(json, &json!({ "recorded": recorded, "record": record }), || match recorded {
        true => format!("recorded {key}, {}", until(&record)),
        false => format!("{key} is {} already, nothing changed, {}", record.state, until(&record)),
    })?;
    Ok(0)
}

/// Says what became of a key in doubt.
pub async fn settle(args: Settle, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let key = Key::given(&args.key)?;
    let result = args.happened.as_deref().map(|source| result_of(source, settings.max_output.value.0)).transpose()?;
    let Some(hapax) = existing(settings).await? else { return Err(Failure::absent(&key)) };
    let (name, settlement) = match result {
        Some(result) => {
            let record = hapax.record(&key).await?;
            let action = record.as_ref().map(|r| (r.action_type.as_str(), r.target.as_str()));
            ("happened", Settlement::Happened { result, ttl: ttl(args.ttl, action, settings)? })
        }
        None => ("notHappened", Settlement::NotHappened),
    };
    let settled = match args.attempt {
        Some(attempt) => match hapax.settle_attempt(&key, attempt, settlement).await {
            Err(Error::LostClaim { .. } | Error::WrongState { .. }) => {
                let now = hapax.record(&key).await?;
                if let Some(record) = now.as_ref().filter(|r| r.attempt_id == attempt && r.state == State::InProgress) {
                    return Err(Failure::still_held(record));
                }
                Err(Failure::stale(&key, attempt, now.as_ref(), &settings.flags))
            }
            settled => settled.map_err(Failure::from),
        },
        None => hapax.settle(&key, settlement).await.map_err(Failure::from),
    };
    let record = settled?;
    close(&hapax).await;
    print(json, &json!({ "key": key, "settled": name, "record": record }), || match &record {
        Some(record) => format!("{key} is completed, {}: the next run replays it", until(record)),
        None => format!("{key} is free: the next run runs it"),
    })?;
    Ok(0)
}

/// Removes a recorded result or error.
pub async fn remove(key: &str, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let key = Key::given(key)?;
    let Some(hapax) = existing(settings).await? else { return Err(Failure::absent(&key)) };
    let removed = match hapax.clear_key(&key).await {
        Err(Error::WrongState { state: Some(State::InDoubt), .. }) => {
            return Err(match hapax.record(&key).await? {
                Some(record) if record.state == State::InDoubt => {
                    Failure::in_doubt(&key, record.attempt_id, "its record stays until it is settled")
                }
                _ => {
                    Failure::new(IN_FLIGHT, "in_flight", format!("key {key} is just being settled: try again")).of(&key)
                }
            });
        }
        removed => removed?,
    };
    close(&hapax).await;
    if !removed {
        return Err(Failure::absent(&key));
    }
    print(json, &json!({ "key": key, "removed": true }), || format!("removed {key}"))?;
    Ok(0)
}

/// Removes many.
pub async fn cleanup(args: Cleanup, settings: &Settings, json: bool) -> Result<u8, Failure> {
    let hapax = existing(settings).await?;
    let removed = match &hapax {
        None => 0,
        Some(hapax) if args.expired => hapax.cleanup_expired().await?,
        Some(hapax) if args.all => hapax.clear_all().await?,
        Some(hapax) => hapax.cleanup_oldest_entries(args.oldest.unwrap_or(0)).await?,
    };
    if let Some(hapax) = &hapax {
        close(hapax).await;
    }
    let s = if removed == 1 { "" } else { "s" };
    print(json, &json!({ "removed": removed }), || format!("removed {removed} record{s}"))?;
    Ok(0)
}
