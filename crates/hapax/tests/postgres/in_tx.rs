//! `execute_in_tx`: effect and record are there together, exactly once, whatever is killed when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::store::StoreError;
use hapax::store::postgres::tokio_postgres::IsolationLevel;
use hapax::{Action, ActionError, Error, ErrorClass, Hapax, PolicyPatch, State};
use hapax_servers::postgres::{Disk, PostgresServer, Tls};
use hapax_servers::proxy::{Fault, Proxy};

use crate::common::{manager, patched, pooled_url, server, through, url};

fn action(n: usize) -> Action {
    Action::new("book", "ledger").key(hapax::Key::given(&format!("k{n}")).unwrap())
}

/// A table of effects in the schema of the store; nothing keeps a key from having two.
fn ledger(server: &PostgresServer, database: &str, schema: &str) -> String {
    let table = format!("\"{schema}\".effects");
    server
        .psql(database, &format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"; CREATE TABLE {table} (key text NOT NULL)"))
        .unwrap();
    table
}

fn schema_of(url: &str) -> String {
    url.split("schema=").nth(1).unwrap().split('&').next().unwrap().to_string()
}

/// One more effect of an action in the ledger.
async fn book(hapax: &Hapax, action: &Action, table: &str) -> Result<bool, Error> {
    let sql = format!("INSERT INTO {table} VALUES ($1)");
    let outcome = hapax
        .execute_in_tx(action, |tx, context| {
            Box::pin(async move {
                let key = context.key().to_string();
                tx.query_typed(&sql, &[(&key, hapax::store::postgres::tokio_postgres::types::Type::TEXT)]).await?;
                Ok(key)
            })
        })
        .await?;
    Ok(outcome.is_replay())
}

async fn count(server: &PostgresServer, sql: &str) -> u64 {
    server.psql("postgres", sql).unwrap().parse().unwrap()
}

#[tokio::test]
async fn effect_and_record_are_there_together() {
    let url = url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    assert!(!book(&hapax, &action(1), &table).await.unwrap());
    assert!(book(&hapax, &action(1), &table).await.unwrap());
    assert!(book(&manager(&url).await, &action(1), &table).await.unwrap());
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 1);
}

/// Callers without async wait for it by `run`.
#[test]
fn the_blocking_face_can_wait_for_it() {
    let url = url();
    let table = ledger(server(), "postgres", &schema_of(&url));
    let hapax = hapax::blocking::Hapax::open(&url).unwrap();
    assert!(!hapax.run(book(hapax.as_async(), &action(1), &table)).unwrap());
    assert!(hapax.run(book(hapax.as_async(), &action(1), &table)).unwrap());
    assert_eq!(server().psql("postgres", &format!("SELECT count(*) FROM {table}")).unwrap(), "1");
}

#[tokio::test]
async fn it_works_behind_a_pooler() {
    let url = pooled_url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    let all = (0..40).map(|n| {
        let (hapax, table) = (hapax.clone(), table.clone());
        tokio::spawn(async move { book(&hapax, &action(n % 20), &table).await.unwrap() })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 20);
}

#[tokio::test]
async fn an_error_rolls_back_and_is_classified() {
    let url = url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    for (n, class, expected) in [
        (1, None, ErrorClass::Retryable),
        (2, Some(ErrorClass::Unknown), ErrorClass::Retryable),
        (3, Some(ErrorClass::Permanent), ErrorClass::Permanent),
    ] {
        let sql = format!("INSERT INTO {table} VALUES ('x')");
        let failed = hapax
            .execute_in_tx::<(), _>(&action(n), |tx, _| {
                Box::pin(async move {
                    tx.batch_execute(&sql).await?;
                    Err(match class {
                        None => ActionError::new("no"),
                        Some(ErrorClass::Unknown) => ActionError::unknown("no"),
                        _ => ActionError::permanent("no"),
                    })
                })
            })
            .await;
        assert!(matches!(&failed, Err(Error::Action { class, .. }) if *class == expected), "{failed:?}");
        let left = hapax.record(action(n).generate_key().as_ref().unwrap()).await.unwrap().map(|r| r.state);
        assert_eq!(left, (expected == ErrorClass::Permanent).then_some(State::Failed));
    }
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 0);
    // A retryable one runs again.
    assert!(!book(&hapax, &action(1), &table).await.unwrap());
}

#[tokio::test]
async fn a_swallowed_sql_error_cannot_be_recorded_as_a_success() {
    let url = url();
    let hapax = manager(&url).await;
    let failed = hapax
        .execute_in_tx(&action(1), |tx, _| {
            Box::pin(async move {
                let _ = tx.batch_execute("SELECT 1/0").await;
                Ok(1)
            })
        })
        .await;
    assert!(matches!(failed, Err(Error::Action { class: ErrorClass::Retryable, .. })), "{failed:?}");
    assert!(hapax.record(&action(1).generate_key().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_constraint_that_is_checked_at_the_commit_rolls_all_back() {
    let url = url();
    let hapax = manager(&url).await;
    let schema = schema_of(&url);
    let sql = format!("CREATE TABLE \"{schema}\".once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)");
    server().psql("postgres", &sql).unwrap();
    let insert = format!("INSERT INTO \"{schema}\".once VALUES (1), (1)");
    let failed = hapax
        .execute_in_tx(&action(1), |tx, _| Box::pin(async move { Ok(tx.execute(insert.as_str(), &[]).await?) }))
        .await;
    assert!(matches!(&failed, Err(Error::Action { class: ErrorClass::Retryable, .. })), "{failed:?}");
    assert!(hapax.record(&action(1).generate_key().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_serializable_transaction_completes_too() {
    let url = url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    let sql = format!("INSERT INTO {table} VALUES ('x')");
    let done = hapax
        .execute_in_tx_at(IsolationLevel::Serializable, &action(1), |tx, _| {
            Box::pin(async move { Ok(tx.execute(sql.as_str(), &[]).await?) })
        })
        .await
        .unwrap();
    assert_eq!(done.value, 1);
}

/// That the server is not busy with what has this in its text any more, long before that ends by itself.
async fn is_cancelled(text: &str) {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{text}'");
    let until = Instant::now() + Duration::from_secs(10);
    while count(server(), &sql).await > 0 {
        assert!(Instant::now() < until, "the server still does {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_transaction_past_its_limit_is_rolled_back_and_the_key_free() {
    let url = url();
    let hapax = manager(&url).await;
    let slow = action(1).policy(PolicyPatch::new().time_limit(Some(Duration::from_millis(200))));
    let began = Instant::now();
    let failed = hapax
        .execute_in_tx(&slow, |tx, _| {
            Box::pin(async move {
                tx.batch_execute("SELECT pg_sleep(61)").await?;
                Ok(1)
            })
        })
        .await;
    assert!(matches!(&failed, Err(Error::Action { class: ErrorClass::Retryable, .. })), "{failed:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "the statement was waited for: {:?}", began.elapsed());
    is_cancelled("SELECT pg_sleep(61)").await;
    assert!(hapax.record(&slow.generate_key().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_dropped_call_frees_its_key() {
    let url = url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    let (there, sql) = (hapax.clone(), format!("INSERT INTO {table} VALUES ('dropped')"));
    let call = tokio::spawn(async move {
        there
            .execute_in_tx(&action(1), |tx, _| {
                Box::pin(async move {
                    tx.batch_execute(&sql).await?;
                    tx.batch_execute("SELECT pg_sleep(62)").await?;
                    Ok(1)
                })
            })
            .await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.abort();
    let _ = call.await;
    is_cancelled("SELECT pg_sleep(62)").await;
    assert!(!book(&hapax, &action(1), &table).await.unwrap());
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 1);
}

/// The attempt's owner is gone without a word; its row is there, in progress, its lease far from over.
#[tokio::test]
async fn a_transaction_whose_connection_died_leaves_no_doubt_and_no_wait() {
    let url = url();
    let proxy = Proxy::start(hapax_servers::process::local(server().port())).unwrap();
    let table = ledger(server(), "postgres", &schema_of(&url));
    let doomed = patched(&through(&url, proxy.port()), "command_timeout=1").await;
    let call = tokio::spawn(async move {
        doomed
            .execute_in_tx(&action(1), |tx, _| {
                Box::pin(async move {
                    tx.batch_execute("SELECT 1").await?;
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    Ok("never".to_string())
                })
            })
            .await
    });
    let hapax = manager(&url).await;
    let key = action(1).generate_key().unwrap();
    while hapax.record(&key).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.outage();
    let began = Instant::now();
    assert!(!book(&hapax, &action(1), &table).await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    call.abort();
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 1);
}

/// A zombie: its row was taken over while its transaction was open. It must not commit.
#[tokio::test]
async fn a_transaction_whose_key_was_taken_cannot_commit() {
    let url = url();
    let (zombie, other) = (manager(&url).await, manager(&url).await);
    let table = ledger(server(), "postgres", &schema_of(&url));
    let (sql, there) = (format!("INSERT INTO {table} VALUES ('zombie')"), table.clone());
    let taken = format!("DELETE FROM \"{}\".hapax_records", schema_of(&url));
    let lost = zombie
        .execute_in_tx(&action(1), |tx, _| {
            Box::pin(async move {
                tx.batch_execute(&sql).await?;
                // As if its lease had lapsed.
                server().psql("postgres", &taken).unwrap();
                assert!(!book(&other, &action(1), &there).await.unwrap());
                Ok("zombie".to_string())
            })
        })
        .await;
    assert!(matches!(lost, Err(Error::LostClaim { value: Some(_), .. })), "{lost:?}");
    assert_eq!(server().psql("postgres", &format!("SELECT key FROM {table}")).unwrap(), "k1");
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_looked_up() {
    let url = url();
    let proxy = Proxy::start(hapax_servers::process::local(server().port())).unwrap();
    let table = ledger(server(), "postgres", &schema_of(&url));
    let hapax = manager(&through(&url, proxy.port())).await;
    proxy.trap(Fault::BeforeAnswer, b"COMMIT\0");
    assert!(!book(&hapax, &action(1), &table).await.unwrap(), "committed, and found out");
    proxy.trap(Fault::BeforeRequest, b"COMMIT\0");
    let failed = book(&hapax, &action(2), &table).await;
    assert!(matches!(failed, Err(Error::Action { class: ErrorClass::Retryable, .. })), "{failed:?}");
    assert_eq!(proxy.sprung(), 2);
    assert!(!book(&hapax, &action(2), &table).await.unwrap());
    assert!(book(&hapax, &action(1), &table).await.unwrap());
    assert_eq!(count(server(), &format!("SELECT count(*) FROM {table}")).await, 2);
}

/// Backends are terminated and connections cut, all the time, at every step.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_key_has_exactly_one_effect_through_a_storm() {
    const KEYS: usize = 60;
    let url = url();
    let proxy = Proxy::start(hapax_servers::process::local(server().port())).unwrap();
    let table = ledger(server(), "postgres", &schema_of(&url));
    let managers = [manager(&through(&url, proxy.port())).await, manager(&through(&url, proxy.port())).await];
    let (done, stormed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (over, count_storms, there) = (done.clone(), stormed.clone(), table.clone());
    let storm = tokio::task::spawn_blocking(move || {
        let traps: [&[u8]; 6] = [b"COMMIT\0", b"COMMIT\0", b"hapax_records", b"pg_advisory", b"effects", b"START"];
        for round in 0.. {
            if over.load(Ordering::SeqCst) as usize >= 2 * KEYS || round > 400 {
                return;
            }
            match round % 4 {
                0 => proxy.cut(),
                1 => proxy.trap(Fault::BeforeAnswer, traps[round / 4 % traps.len()]),
                2 => proxy.trap(Fault::BeforeRequest, traps[round / 4 % traps.len()]),
                _ => {
                    let sql = format!(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'hapax' \
                            AND query LIKE '%{there}%' AND random() < 0.5"
                    );
                    let _ = server().psql("postgres", &sql);
                }
            }
            count_storms.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let callers = (0..2 * KEYS).map(|n| {
        let (hapax, table, done) = (managers[n % 2].clone(), table.clone(), done.clone());
        tokio::spawn(async move {
            let until = Instant::now() + Duration::from_secs(40);
            loop {
                match book(&hapax, &action(n / 2), &table).await {
                    Ok(_) => break,
                    // A doubt would be wrong: there is none with transactions.
                    Err(error) if error.is_retryable() || matches!(error, Error::LostClaim { .. }) => {
                        assert!(Instant::now() < until, "{error}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            done.fetch_add(1, Ordering::SeqCst);
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    storm.await.unwrap();
    let effects = server().psql("postgres", &format!("SELECT count(*), count(DISTINCT key) FROM {table}")).unwrap();
    assert_eq!(effects, format!("{KEYS}|{KEYS}"), "after {} blows", stormed.load(Ordering::SeqCst));
}

/// The server itself is killed, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_key_has_exactly_one_effect_through_crashes_of_the_server() {
    const KEYS: usize = 300;
    let mut server = PostgresServer::start(Disk::Synced, Tls::Off).unwrap();
    let url = format!("{}?schema=h", server.url("postgres"));
    let managers = [manager(&url).await, manager(&url).await];
    let table = ledger(&server, "postgres", "h");
    let callers = (0..2 * KEYS).map(|n| {
        let (hapax, table) = (managers[n % 2].clone(), table.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(n as u64 * 4)).await;
            let until = Instant::now() + Duration::from_secs(40);
            while let Err(error) = book(&hapax, &action(n / 2), &table).await {
                assert!(error.is_retryable() || matches!(error, Error::LostClaim { .. }), "{error}");
                assert!(Instant::now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.kill().unwrap();
        server.restart().unwrap();
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let effects = server.psql("postgres", &format!("SELECT count(*), count(DISTINCT key) FROM {table}")).unwrap();
    assert_eq!(effects, format!("{KEYS}|{KEYS}"));
}

#[tokio::test]
async fn another_store_refuses() {
    let hapax = Hapax::open("memory:").await.unwrap();
    let refused = hapax.execute_in_tx(&action(1), |_, _| Box::pin(async { Ok(1) })).await;
    assert!(matches!(refused, Err(Error::Config { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_outage_is_told_and_nothing_ran() {
    let url = url();
    let proxy = Proxy::start(hapax_servers::process::local(server().port())).unwrap();
    let hapax = patched(&through(&url, proxy.port()), "command_timeout=1&connect_timeout=1").await;
    proxy.outage();
    let refused = hapax.execute_in_tx::<i32, _>(&action(1), |_, _| Box::pin(async { panic!("ran") })).await;
    assert!(matches!(refused, Err(Error::Store(StoreError::Unavailable { .. }))), "{refused:?}");
}

const KILLED_KEYS: usize = 200;

/// Books at the address it is told, key after key, until it is killed.
#[tokio::test]
#[ignore = "a role of another test's child process"]
async fn books_until_it_is_killed() {
    let (Ok(url), Ok(table)) = (std::env::var("HAPAX_TEST_URL"), std::env::var("HAPAX_TEST_TABLE")) else { return };
    let hapax = manager(&url).await;
    let (sql, brief) =
        (format!("INSERT INTO {table} VALUES ($1)"), PolicyPatch::new().in_flight(hapax::InFlight::Reject));
    for n in 0.. {
        let pause = Duration::from_millis(n % 7);
        let action = action((n as usize * 7 + std::process::id() as usize) % KILLED_KEYS).policy(brief.clone());
        let sql = &sql;
        let booked = hapax.execute_in_tx(&action, |tx, context| {
            let sql = sql.clone();
            Box::pin(async move {
                tokio::time::sleep(pause).await;
                let key = context.key().to_string();
                tx.query_typed(&sql, &[(&key, hapax::store::postgres::tokio_postgres::types::Type::TEXT)]).await?;
                tokio::time::sleep(pause).await;
                Ok(key)
            })
        });
        match booked.await {
            Ok(_) => {}
            Err(Error::InDoubt { .. }) => panic!("a doubt"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn every_key_has_exactly_one_effect_though_processes_are_killed() {
    let url = url();
    let hapax = manager(&url).await;
    let table = ledger(server(), "postgres", &schema_of(&url));
    let spawn = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "in_tx::books_until_it_is_killed", "--ignored", "--test-threads=1"])
            .env("HAPAX_TEST_URL", &url)
            .env("HAPAX_TEST_TABLE", &table)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for round in 0..20 {
        tokio::time::sleep(Duration::from_millis(180 + round * 13 % 70)).await;
        let child = &mut children[round as usize % 3];
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        *child = spawn();
    }
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = count(server(), &format!("SELECT count(*) FROM {table}")).await;
    assert!(before > 10, "the processes did something: {before}");
    for n in 0..KILLED_KEYS {
        book(&hapax, &action(n), &table).await.unwrap();
    }
    let effects = server().psql("postgres", &format!("SELECT count(*), count(DISTINCT key) FROM {table}")).unwrap();
    assert_eq!(effects, format!("{KILLED_KEYS}|{KILLED_KEYS}"));
}
