//! Files of every earlier version, made from the migrations themselves, and opened by this one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::*;
use crate::store::sqlite::{Durability, SqliteOptions, SqliteStore};
use crate::store::{Begin, Begun, End, Ended, Filter, Store};
use crate::{AttemptId, Fingerprint, Key, Owner, State};

/// What puts rows into a file of version n + 1, in the terms of that version's schema: a namespace `default` with a
/// completed `done`, a failed `failed`, a doubt `doubt` and a counter. A new version adds one.
const FIXTURES: &[fn(&Connection)] = &[version_1];

fn version_1(conn: &Connection) {
    conn.execute_batch(
        "INSERT INTO namespaces (id, name, live, completed, failed) VALUES (1, 'default', 1, 1, 1);
         INSERT INTO counters (namespace, name, value) VALUES (1, 'hits', 5);
         INSERT INTO results (id, executed_at, duration_ms, body) VALUES (1, 1000, 12, '\"v\"'), (2, 1000, 12, 'e');",
    )
    .unwrap();
    for (key, state, result) in [("doubt", IN_DOUBT, None), ("done", COMPLETED, Some(1)), ("failed", FAILED, Some(2))] {
        let hash = crate::store::sqlite::row::hash_of("default", &Key::given(key).unwrap());
        let doubt = (state == IN_DOUBT).then_some("left by an old version");
        conn.execute(
            "INSERT INTO records (state, attempt, hash, namespace, result, attempts, presented, started_at, token,
                action_tag, target_tag, host, pid, fingerprint, key, action_type, target, doubt)
             VALUES (?1, ?2, ?3, 1, ?4, 1, 1, 1000, x'00', ?7, ?8, 'host', 1, ?5, ?6, 'create_task', 'trello', ?9)",
            params![
                state,
                [9_u8; 16],
                hash,
                result,
                [7_u8; 32],
                key,
                crate::store::sqlite::row::tag("default", "create_task"),
                crate::store::sqlite::row::tag("default", "trello"),
                doubt,
            ],
        )
        .unwrap();
    }
}

/// A file of an old version, with its rows.
fn make(path: &Path, version: usize) {
    let conn = Connection::open(path).unwrap();
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    for step in &MIGRATIONS[..version] {
        conn.execute_batch(step).unwrap();
    }
    conn.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    conn.pragma_update(None, "user_version", i64::try_from(version).unwrap()).unwrap();
    FIXTURES[version - 1](&conn);
}

fn begin(text: &str) -> Begin {
    Begin {
        namespace: "default".into(),
        key: Key::given(text).unwrap(),
        signal_id: None,
        action_type: "create_task".into(),
        target: "trello".into(),
        params: None,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        attempt: AttemptId::new(),
        owner: Arc::new(Owner { host: "host".into(), pid: 1, label: None }),
        liveness: crate::store::Liveness::Process,
        lease: std::time::Duration::from_secs(60),
        tags: Default::default(),
        take_over: None,
        capacity: None,
    }
}

#[test]
fn every_version_has_a_file_to_start_from() {
    assert_eq!(FIXTURES.len(), MIGRATIONS.len(), "a new version brings a fixture of its own");
}

#[tokio::test]
async fn a_file_of_any_version_is_brought_up_to_date_with_all_that_is_in_it() {
    for version in 1..=MIGRATIONS.len() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("old.db");
        make(&path, version);
        let store = SqliteStore::open(SqliteOptions::new(&path).durability(Durability::Buffered)).unwrap();
        let space: Arc<str> = "default".into();
        for (text, state, result, error) in [
            ("done", State::Completed, Some("\"v\""), None),
            ("failed", State::Failed, None, Some("e")),
            ("doubt", State::InDoubt, None, Some("left by an old version")),
        ] {
            let Begun::Exists(record) = store.begin(begin(text)).await.unwrap() else { panic!("{text} ran again") };
            assert_eq!((record.state, record.error.as_deref()), (state, error), "version {version}");
            assert_eq!(record.result.as_ref().map(crate::Json::as_str), result);
            assert_eq!(record.attempt_id, AttemptId::from_bytes([9; 16]));
        }
        let census = store.census(space.clone()).await.unwrap();
        assert_eq!((census.in_doubt, census.completed, census.failed), (1, 1, 1));
        assert_eq!(store.counters(space.clone()).await.unwrap().hits, 5);
        let filter = Filter { target: Some("trello".into()), ..Filter::default() };
        assert_eq!(store.query(space.clone(), filter, None, 10).await.unwrap().records.len(), 3);
        let key = Key::given("doubt").unwrap();
        let ended = store.end(space.clone(), key, AttemptId::from_bytes([9; 16]), End::Release).await.unwrap();
        assert!(matches!(ended, Ended::Done { .. }), "{ended:?}");
        assert!(matches!(store.begin(begin("doubt")).await.unwrap(), Begun::Started { .. }));
        store.close().await.unwrap();
        let conn = Connection::open(&path).unwrap();
        assert_eq!(number(&conn, "PRAGMA user_version").unwrap(), known_version());
    }
}

#[tokio::test]
async fn a_migration_that_is_cut_short_leaves_the_version_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old.db");
    make(&path, MIGRATIONS.len());
    let mut steps = MIGRATIONS.to_vec();
    steps.push("ALTER TABLE records ADD COLUMN colour TEXT; DELETE FROM results; SELECT nonsense;");
    let mut conn = connect(&path, "sqlite:old.db").unwrap();
    migrate_by(&mut conn, "sqlite:old.db", &steps).unwrap_err();
    let columns = "SELECT count(*) FROM pragma_table_info('records') WHERE name = 'colour'";
    assert_eq!(number(&conn, columns).unwrap(), 0);
    assert_eq!(number(&conn, "PRAGMA user_version").unwrap(), known_version());
    drop(conn);
    let store = SqliteStore::open(SqliteOptions::new(&path)).unwrap();
    assert!(matches!(store.begin(begin("done")).await.unwrap(), Begun::Exists(r) if r.state == State::Completed));
}

#[test]
fn a_store_that_others_are_just_making_is_opened_with_them() {
    for _ in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| open(&path, "sqlite:x.db").map(drop).unwrap());
            }
        });
    }
}
