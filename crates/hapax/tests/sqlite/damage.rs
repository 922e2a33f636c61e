//! Damaged, foreign and newer files: an error that says so, never a panic, a hang or a change.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hapax::State;
use hapax::store::sqlite::{SqliteOptions, SqliteStore};
use hapax::store::{Begun, Store, StoreError};

use super::{ask, completed, open, place, space, start, state};

fn opened(path: &Path) -> Result<SqliteStore, StoreError> {
    let since = Instant::now();
    let opened = SqliteStore::open(SqliteOptions::new(path));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    opened
}

/// A closed store of many records, all in the one file.
async fn full(path: &Path) {
    let store = open(path);
    for n in 0..300 {
        completed(&store, &format!("k{n}")).await;
    }
    store.close().await.unwrap();
    drop(store);
    assert!(fs::metadata(path).unwrap().len() > 30 * 4096);
}

/// Whatever is asked of it, each answer is right or an error; nothing hangs.
async fn answers_rightly_or_not_at_all(store: &SqliteStore) -> (u32, u32) {
    let (mut right, mut wrong) = (0, 0);
    for n in 0..300 {
        let text = format!("k{n}");
        let got = tokio::time::timeout(Duration::from_secs(20), store.get(space(), super::key(&text))).await.unwrap();
        match got {
            Ok(Some(record)) => {
                assert_eq!(record.state, State::Completed, "{text}: {record:?}");
                assert_eq!(record.result.unwrap().to::<String>().unwrap(), text);
                right += 1;
            }
            // That would be a silent second run.
            Ok(None) => panic!("{text} reads as absent"),
            Err(StoreError::Damaged { .. }) => wrong += 1,
            Err(error) => panic!("{text}: {error}"),
        }
    }
    for answer in [
        store.begin(ask("new")).await.map(drop),
        store.census(space()).await.map(drop),
        store.query(space(), Default::default(), None, 1000).await.map(drop),
        store.clear(space()).await.map(drop),
    ] {
        assert!(matches!(answer, Ok(()) | Err(StoreError::Damaged { .. })), "{answer:?}");
    }
    (right, wrong)
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_as_it_is() {
    let (directory, path) = place();
    for content in [&b"x"[..], b"not a database, but a text of some length\n", &[0; 100], &[0xa5; 100_000]] {
        fs::write(&path, content).unwrap();
        match opened(&path) {
            Err(StoreError::Damaged { message, .. }) => assert!(message.contains("not"), "{message}"),
            other => panic!("{} bytes: {other:?}", content.len()),
        }
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was left beside it");
    }
}

#[tokio::test]
async fn another_programs_database_is_left_as_it_is() {
    for (name, sql) in [
        ("with tables", "CREATE TABLE photos (id INTEGER PRIMARY KEY); INSERT INTO photos VALUES (1);"),
        ("with an id of its own", "PRAGMA application_id = 42;"),
        ("with a version of its own", "PRAGMA user_version = 1;"),
        ("with tables of our names", "CREATE TABLE records (id INTEGER); CREATE TABLE meta (name TEXT);"),
    ] {
        let (directory, path) = place();
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = fs::read(&path).unwrap();
        let refused = opened(&path);
        assert!(
            matches!(&refused, Err(StoreError::Damaged { message, .. }) if message.contains("another program")),
            "{name}: {refused:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), before, "{name}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_as_it_is() {
    let (_directory, path) = place();
    full(&path).await;
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA user_version = 999; PRAGMA wal_checkpoint(TRUNCATE);")
        .unwrap();
    let before = fs::read(&path).unwrap();
    match opened(&path) {
        Err(error @ StoreError::Newer { found: 999, .. }) => {
            assert!(error.to_string().contains("upgrade"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_truncated_file_is_damaged_and_never_answers_wrongly() {
    let (_directory, path) = place();
    full(&path).await;
    let whole = fs::read(&path).unwrap();
    let mut noticed = 0;
    for length in [1, 99, 100, 4095, 4096, 5000, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
        fs::write(&path, &whole[..length]).unwrap();
        match opened(&path) {
            Err(StoreError::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("{length} bytes: {error}"),
            Ok(store) => {
                let (_, wrong) = answers_rightly_or_not_at_all(&store).await;
                noticed += u32::from(wrong > 0);
            }
        }
    }
    assert!(noticed >= 7, "{noticed} of 9");
}

#[tokio::test]
async fn garbage_in_the_header_is_damage() {
    let (_directory, path) = place();
    full(&path).await;
    let mut bytes = fs::read(&path).unwrap();
    bytes[..64].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    let refused = opened(&path);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn garbage_pages_are_damage_and_never_a_wrong_answer() {
    let (_directory, path) = place();
    full(&path).await;
    let whole = fs::read(&path).unwrap();
    let pages = whole.len() / 4096;
    let mut noticed = 0;
    for page in [1, 2, pages / 3, pages / 2, pages - 1] {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0x5a);
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
        fs::write(&path, bytes).unwrap();
        match opened(&path) {
            Err(StoreError::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("page {page}: {error}"),
            Ok(store) => {
                let (_, wrong) = answers_rightly_or_not_at_all(&store).await;
                noticed += u32::from(wrong > 0);
            }
        }
    }
    assert!(noticed >= 2, "{noticed} of 5; some pages hold nothing that was asked for");
}

#[tokio::test]
async fn a_record_whose_values_make_no_sense_is_damage_and_spares_the_others() {
    let (_directory, path) = place();
    let store = open(&path);
    for (text, sql) in [
        ("state", "UPDATE records SET state = 9 WHERE key = 'state'"),
        ("attempt", "UPDATE records SET attempt = x'00' WHERE key = 'attempt'"),
        ("fingerprint", "UPDATE records SET fingerprint = x'' WHERE key = 'fingerprint'"),
        ("params", "UPDATE records SET params = '{' WHERE key = 'params'"),
        ("body", "UPDATE results SET body = 'x' WHERE id = (SELECT result FROM records WHERE key = 'body')"),
        ("result", "DELETE FROM results WHERE id = (SELECT result FROM records WHERE key = 'result')"),
    ] {
        completed(&store, text).await;
        assert_eq!(rusqlite::Connection::open(&path).unwrap().execute(sql, []).unwrap(), 1);
        let got = store.get(space(), super::key(text)).await;
        assert!(matches!(&got, Err(StoreError::Damaged { message, .. }) if message.contains(text)), "{text}: {got:?}");
        let begun = store.begin(ask(text)).await;
        assert!(matches!(begun, Err(StoreError::Damaged { .. })), "it must not run again: {begun:?}");
        completed(&store, &format!("other-than-{text}")).await;
    }
}

#[tokio::test]
async fn a_log_that_was_lost_takes_only_what_it_held() {
    let (directory, path) = place();
    full(&path).await;
    // Recorded, but only in the log when the copy was made without it.
    let store = open(&path);
    completed(&store, "in-the-log").await;
    let copy = directory.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    drop(store);
    let store = open(&copy);
    assert_eq!(state(&store, "k299").await, Some(State::Completed));
    assert_eq!(state(&store, "in-the-log").await, None);
    start(&store, "in-the-log").await;
}

#[tokio::test]
async fn a_garbage_log_beside_the_file_is_no_harm() {
    let (_directory, path) = place();
    full(&path).await;
    fs::write(format!("{}-wal", path.display()), vec![0x5a; 100_000]).unwrap();
    let store = open(&path);
    assert_eq!(state(&store, "k0").await, Some(State::Completed));
    let begun = store.begin(ask("new")).await.unwrap();
    assert!(matches!(begun, Begun::Started { .. }));
}

#[tokio::test]
async fn a_row_that_is_always_there_and_is_gone_is_damage() {
    let (_directory, path) = place();
    let store = open(&path);
    completed(&store, "k").await;
    let deleted = rusqlite::Connection::open(&path).unwrap().execute("DELETE FROM meta WHERE name = 'epoch'", []);
    assert_eq!(deleted.unwrap(), 1);
    let cleared = store.clear(space()).await;
    assert!(
        matches!(&cleared, Err(StoreError::Damaged { message, .. }) if message.contains(".recover")),
        "{cleared:?}"
    );
}
