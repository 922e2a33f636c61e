//! Room: a full device, the log's size, a moved clock.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Begun, Capacity, End, Ended, OnFull, Store, StoreError};
use hapax::{Action, Error, Hapax, Json, ManualClock, State, Ttl};

use super::{ask, complete, completed, key, open, place, space, state};

/// A result of a quarter of a mebibyte.
fn large() -> End {
    let result = Json::of(&"x".repeat(1 << 18)).unwrap();
    End::Complete { result, ttl: Ttl::Never, duration: Duration::ZERO }
}

/// Fills the store until it says that it is full; returns the keys that were recorded.
async fn fill(store: &SqliteStore, name: &str) -> Vec<String> {
    let mut recorded = Vec::new();
    for n in 0.. {
        assert!(n < 1000, "it is never full");
        let text = format!("{name}{n}");
        let begin = ask(&text);
        let attempt = begin.attempt;
        match store.begin(begin).await {
            Ok(Begun::Started { .. }) => {}
            Ok(exists) => panic!("{exists:?}"),
            Err(StoreError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        match store.end(space(), key(&text), attempt, large()).await {
            Ok(Ended::Done { .. }) => recorded.push(text),
            Err(StoreError::Full { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    recorded
}

#[tokio::test]
async fn a_full_device_is_told_loses_nothing_and_is_over_once_there_is_room() {
    let (_directory, path) = place();
    let options = SqliteOptions::new(&path).durability(Durability::Buffered).max_pages(600);
    let store = SqliteStore::open(options).unwrap();
    let recorded = fill(&store, "first").await;
    assert!(recorded.len() > 3, "{recorded:?}");
    let again = store.begin(ask("another")).await;
    // A small record may still find a place; a large one does not.
    if let Ok(Begun::Started { .. }) = again {
        let attempt = super::get(&store, "another").await.unwrap().attempt_id;
        let full = store.end(space(), key("another"), attempt, large()).await;
        assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
        assert_eq!(state(&store, "another").await, Some(State::InProgress), "a refused end changes nothing");
    }
    for text in &recorded {
        assert_eq!(state(&store, text).await, Some(State::Completed));
    }
    let gone = store.clear(space()).await.unwrap();
    assert_eq!(gone, recorded.len() as u64);
    let again = fill(&store, "second").await;
    assert!(again.len() + 2 >= recorded.len(), "{} then, {} now", recorded.len(), again.len());
}

#[tokio::test]
async fn one_that_does_not_fit_does_not_take_those_committed_with_it_along() {
    let (_directory, path) = place();
    let options = SqliteOptions::new(&path).durability(Durability::Buffered).max_pages(200);
    let store = SqliteStore::open(options).unwrap();
    let mut begins = Vec::new();
    for n in 0..20 {
        let begin = ask(&format!("k{n}"));
        begins.push(begin.attempt);
        store.begin(begin).await.unwrap();
    }
    // Asked for at once, so that they come into one batch: the large ones cannot fit.
    let ends: Vec<_> = begins
        .iter()
        .enumerate()
        .map(|(n, attempt)| {
            let end = if n % 5 == 4 {
                let result = Json::of(&"x".repeat(1 << 20)).unwrap();
                End::Complete { result, ttl: Ttl::Never, duration: Duration::ZERO }
            } else {
                complete("small")
            };
            store.end(space(), key(&format!("k{n}")), *attempt, end)
        })
        .collect();
    for (n, end) in ends.into_iter().enumerate() {
        let ended = end.await;
        if n % 5 == 4 {
            assert!(matches!(ended, Err(StoreError::Full { .. })), "k{n}: {ended:?}");
            assert_eq!(state(&store, &format!("k{n}")).await, Some(State::InProgress));
        } else {
            assert!(matches!(ended, Ok(Ended::Done { .. })), "k{n}: {ended:?}");
        }
    }
    assert_eq!(store.census(space()).await.unwrap().completed, 16);
}

#[tokio::test]
async fn a_value_that_a_full_device_cannot_take_comes_back_in_the_error() {
    let (_directory, path) = place();
    let options = SqliteOptions::new(&path).durability(Durability::Buffered).max_pages(300);
    let hapax = Hapax::builder().store(Arc::new(SqliteStore::open(options).unwrap())).build().await.unwrap();
    let big = "x".repeat(900_000);
    let mut runs = 0;
    let mut lost = None;
    for n in 0..10 {
        let action = Action::new("upload", "drive").signal(n.to_string());
        let value = big.clone();
        runs += 1;
        match hapax.execute(&action, |_| async move { Ok(value) }).await {
            Ok(_) => {}
            Err(Error::NotRecorded { value, .. }) => {
                assert_eq!(value.into_value::<String>().unwrap(), big);
                lost = Some(action);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let action = lost.unwrap_or_else(|| panic!("{runs} large results fitted"));
    let again = hapax.execute(&action, |_| async { Ok(String::from("ran again")) }).await;
    assert!(matches!(again, Err(Error::InDoubt { .. } | Error::InFlight { .. })), "{again:?}");
}

#[tokio::test]
async fn the_log_is_bounded_under_load() {
    let (_directory, path) = place();
    let store = open(&path);
    let wal = format!("{}-wal", path.display());
    let (mut written, mut worst) = (0_u64, 0);
    while written < 64 << 20 {
        let ends: Vec<_> = (0..8)
            .map(|n| {
                let (store, text) = (store.clone(), format!("k{written}-{n}"));
                tokio::spawn(async move {
                    let begin = ask(&text);
                    let attempt = begin.attempt;
                    store.begin(begin).await.unwrap();
                    store.end(space(), key(&text), attempt, large()).await.unwrap();
                })
            })
            .collect();
        for end in ends {
            end.await.unwrap();
        }
        written += 8 << 18;
        worst = worst.max(fs::metadata(&wal).map_or(0, |m| m.len()));
        if written % (16 << 20) == 0 {
            store.clear(space()).await.unwrap();
        }
    }
    eprintln!("{} MiB written, the log at most {} MiB", written >> 20, worst >> 20);
    assert!(worst < 48 << 20, "the log grew to {} MiB", worst >> 20);
}

#[tokio::test]
async fn a_moved_wall_clock_neither_kills_nor_revives_a_lease() {
    let (_directory, path) = place();
    let clock = ManualClock::new();
    let options = || SqliteOptions::new(&path).durability(Durability::Buffered).clock(Arc::new(clock.clone()));
    // Two handles, so that what one knows of its own attempts does not help.
    let (here, there) = (SqliteStore::open(options()).unwrap(), SqliteStore::open(options()).unwrap());
    let mut begin = ask("live");
    begin.lease = Duration::from_secs(60);
    let attempt = begin.attempt;
    here.begin(begin).await.unwrap();
    for jump in [3_600_000, -7_200_000, 3_600_000] {
        clock.jump_wall(jump);
        for store in [&here, &there] {
            assert_eq!(state(store, "live").await, Some(State::InProgress), "after a jump of {jump} ms");
        }
    }
    clock.advance(Duration::from_secs(60));
    clock.jump_wall(-3_600_000);
    for store in [&here, &there] {
        assert_eq!(state(store, "live").await, Some(State::InDoubt));
    }
    let beat = here.heartbeat(space(), vec![(key("live"), attempt, Duration::from_secs(60))]).await.unwrap();
    assert_eq!(beat, [hapax::store::Beat::Lapsed]);
}

#[tokio::test]
async fn a_limit_is_kept_over_several_handles() {
    let (_directory, path) = place();
    let (one, two) = (open(&path), open(&path));
    let capacity = Some(Capacity { max_entries: 20, on_full: OnFull::Evict });
    for n in 0..100 {
        let store = if n % 2 == 0 { &one } else { &two };
        let mut begin = ask(&format!("k{n}"));
        begin.capacity = capacity;
        let attempt = begin.attempt;
        store.begin(begin).await.unwrap();
        store.end(space(), key(&format!("k{n}")), attempt, complete("v")).await.unwrap();
        let census = two.census(space()).await.unwrap();
        assert!(census.completed <= 20, "{census:?}");
    }
    completed(&one, "last").await;
    assert_eq!(state(&two, "k99").await, Some(State::Completed), "the youngest stay");
    assert_eq!(state(&two, "k0").await, None);
}
