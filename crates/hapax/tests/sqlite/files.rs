//! The file: addresses, places where there can be none, and opening again.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use hapax::store::{Begun, Ended, Store, StoreError};
use hapax::{Hapax, State};

use super::child::Player;
use super::{ask, complete, completed, get, key, open, place, space, start, state};

#[test]
fn an_address_that_is_wrong_is_refused_and_says_what_is_right() {
    for (url, says) in [
        ("postgres://x", "sqlite:PATH"),
        ("sqlite:", "the path"),
        ("sqlite://", "the path"),
        ("sqlite:?durability=sync", "the path"),
        ("sqlite:x.db?durability=maybe", "sync or buffered"),
        ("sqlite:x.db?durability", "sync or buffered"),
        ("sqlite:x.db?speed=11", "durability=sync|buffered"),
        ("sqlite:x.db?durability=sync&cache=no", "durability=sync|buffered"),
    ] {
        match SqliteOptions::from_url(url) {
            Err(StoreError::BadRequest { message }) => assert!(message.contains(says), "{url}: {message}"),
            other => panic!("{url}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_address_that_is_right_opens_that_file() {
    let (_directory, path) = place();
    let shown = path.display();
    for url in [format!("sqlite:{shown}"), format!("sqlite://{shown}?durability=buffered&"), format!("sqlite:{shown}?")]
    {
        let store = SqliteStore::open(SqliteOptions::from_url(&url).unwrap()).unwrap();
        assert_eq!(store.location(), format!("sqlite:{shown}"));
        store.close().await.unwrap();
    }
    assert!(path.is_file());
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_store_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, _) = place();
    let path = directory.path().join("made/on/the/way/hapax.db");
    let store = open(&path);
    completed(&store, "k").await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_place_where_no_file_can_be_is_told_at_once() {
    let (directory, path) = place();
    fs::write(&path, "a file").unwrap();
    for place in [directory.path().to_path_buf(), path.join("below/a/file.db"), "/proc/no/hapax.db".into(), "\0".into()]
    {
        let since = Instant::now();
        match SqliteStore::open(SqliteOptions::new(&place)) {
            Err(StoreError::Unavailable { message, .. }) => assert!(!message.is_empty()),
            other => panic!("{}: {other:?}", place.display()),
        }
        assert!(since.elapsed() < Duration::from_secs(5));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn what_may_not_be_read_or_written_is_told_and_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, path) = place();
    let store = open(&path);
    completed(&store, "k").await;
    store.close().await.unwrap();
    drop(store);
    let before = fs::read(&path).unwrap();
    let allow = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(&path, 0o000);
    if fs::File::open(&path).is_ok() {
        eprintln!("skipped: this user may read everything");
        allow(&path, 0o600);
    } else {
        let refused = SqliteStore::open(SqliteOptions::new(&path));
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
        allow(&path, 0o400);
        let refused = SqliteStore::open(SqliteOptions::new(&path));
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
        allow(&path, 0o600);
        allow(directory.path(), 0o500);
        let refused = SqliteStore::open(SqliteOptions::new(&path));
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
        allow(directory.path(), 0o700);
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(state(&open(&path), "k").await, Some(State::Completed));
}

#[tokio::test]
async fn a_handle_that_is_dropped_has_done_what_it_answered() {
    let (_directory, path) = place();
    for durability in [Durability::Sync, Durability::Buffered] {
        let store = SqliteStore::open(SqliteOptions::new(&path).durability(durability)).unwrap();
        let text = format!("{durability:?}");
        completed(&store, &text).await;
        // Asked for, and nobody waits for the answer.
        let queued: Vec<_> = (0..200).map(|n| store.begin(ask(&format!("{text}{n}")))).collect();
        drop(queued);
        let since = Instant::now();
        drop(store);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        let store = open(&path);
        assert_eq!(state(&store, &text).await, Some(State::Completed));
        assert_eq!(state(&store, &format!("{text}199")).await, Some(State::InProgress), "what was queued was done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_under_load_answers_everyone_and_loses_nothing() {
    let (_directory, path) = place();
    let store = open(&path);
    let going = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..30)
        .map(|task| {
            let (store, going) = (store.clone(), going.clone());
            tokio::spawn(async move {
                let mut recorded = Vec::new();
                for n in 0.. {
                    let text = format!("k{task}-{n}");
                    let begin = ask(&text);
                    let attempt = begin.attempt;
                    match store.begin(begin).await {
                        Ok(Begun::Started { .. }) => {}
                        Err(StoreError::Closed { .. }) => break,
                        other => panic!("{other:?}"),
                    }
                    match store.end(space(), key(&text), attempt, complete(&text)).await {
                        Ok(Ended::Done { .. }) => recorded.push(text),
                        Err(StoreError::Closed { .. }) => break,
                        other => panic!("{other:?}"),
                    }
                    let _ = store.query(space(), Default::default(), None, 5).await;
                    assert!(going.load(Ordering::SeqCst), "it goes on although it is closed");
                }
                recorded
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    store.close().await.unwrap();
    let mut recorded = BTreeSet::new();
    for task in tasks {
        recorded.extend(tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap());
    }
    going.store(false, Ordering::SeqCst);
    assert!(!recorded.is_empty());
    drop(store);
    let store = open(&path);
    for text in &recorded {
        assert_eq!(state(&store, text).await, Some(State::Completed), "{text} was acknowledged");
    }
    assert_eq!(store.census(space()).await.unwrap().completed, recorded.len() as u64);
}

#[tokio::test]
async fn a_process_that_died_while_it_made_the_file_is_no_obstacle() {
    let (_directory, path) = place();
    let mut maker = Player::new("half-made", &path);
    assert_eq!(maker.hear(), "half");
    maker.kill();
    let store = open(&path);
    completed(&store, "k").await;
    assert_eq!(state(&store, "k").await, Some(State::Completed));
}

#[tokio::test]
async fn a_file_that_is_moved_away_does_not_lose_what_was_recorded() {
    let (directory, path) = place();
    let store = open(&path);
    completed(&store, "k").await;
    store.close().await.unwrap();
    drop(store);
    let moved = directory.path().join("moved.db");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(get(&open(&path), "k").await, None, "a new store, empty");
    assert_eq!(state(&open(&moved), "k").await, Some(State::Completed));
}

#[tokio::test]
async fn a_hash_that_two_texts_share_finds_only_the_text_that_was_asked_for() {
    let (_directory, path) = place();
    let store = open(&path);
    for (text, word) in [("one", "create"), ("two", "delete")] {
        let mut begin = ask(text);
        (begin.action_type, begin.target, begin.signal_id) = (word.into(), word.into(), Some(word.into()));
        store.begin(begin).await.unwrap();
    }
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch(
        "UPDATE records SET (action_tag, target_tag, signal_tag) =
            (SELECT action_tag, target_tag, signal_tag FROM records WHERE key = 'one')",
    )
    .unwrap();
    let by = |action: Option<&str>, target: Option<&str>, signal: Option<&str>| hapax::store::Filter {
        action_type: action.map(Into::into),
        target: target.map(Into::into),
        signal_id: signal.map(Into::into),
        ..Default::default()
    };
    let word = Some("create");
    for filter in [by(word, None, None), by(None, word, None), by(None, None, word), by(word, word, word)] {
        let page = store.query(space(), filter.clone(), None, 10).await.unwrap();
        let keys: Vec<_> = page.records.iter().map(|r| r.key.as_str()).collect();
        assert_eq!(keys, ["one"], "{filter:?}");
    }
}

#[tokio::test]
async fn two_keys_of_one_hash_are_told_apart_and_neither_runs_twice() {
    let (_directory, path) = place();
    let store = open(&path);
    let attempt = start(&store, "one").await;
    // As if "one" and "other" had the same hash, and "other" had come first.
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("UPDATE records SET key = 'other'").unwrap();
    let refused = store.begin(ask("one")).await;
    assert!(matches!(refused, Err(StoreError::BadRequest { .. })), "{refused:?}");
    let refused = store.get(space(), key("one")).await;
    assert!(matches!(refused, Err(StoreError::BadRequest { .. })), "{refused:?}");
    let refused = store.remove(space(), key("one")).await;
    assert!(matches!(refused, Err(StoreError::BadRequest { .. })), "{refused:?}");
    conn.execute_batch("UPDATE records SET key = 'one'").unwrap();
    let ended = store.end(space(), key("one"), attempt, complete("v")).await.unwrap();
    assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_manager_closes_the_store_it_opened_and_the_file_is_one_again() {
    let (_directory, path) = place();
    let hapax = Hapax::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let action = hapax::Action::new("create_task", "trello");
    hapax.execute(&action, |_| async { Ok(1) }).await.unwrap();
    let _ = hapax.shutdown(Duration::from_secs(5)).await.unwrap();
    let wal = path.with_extension("db-wal");
    assert!(!wal.exists() || fs::metadata(&wal).unwrap().len() == 0, "the log is in the file");
}
