//! Opening: many at once, other versions, other people's tables, and every way it can fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use hapax::store::postgres::{PostgresOptions, PostgresStore};
use hapax::store::{Store, StoreError};
use hapax::{Error, Hapax};
use hapax_servers::postgres::{Disk, PASSWORD, PostgresServer, Tls};
use hapax_servers::process::local;
use hapax_servers::proxy::Proxy;

use crate::common::{pooled_url, schema, server, through, url};

async fn refused(url: &str) -> StoreError {
    match Hapax::open(url).await {
        Err(Error::Store(error)) => {
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains(PASSWORD) && !shown.contains("w0rd"), "a password in {shown}");
            }
            error
        }
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_open_an_empty_database_at_once() {
    for url in [url(), pooled_url()] {
        let all: Vec<_> = (0..24)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move { Hapax::open(&url).await.map(drop) })
            })
            .collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn an_old_version_is_brought_up_to_date_and_a_newer_one_left_alone() {
    let schema = schema();
    let url = format!("{}?schema={schema}", server().url("postgres"));
    let old = format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.hapax_meta (name text PRIMARY KEY, value int8 NOT NULL);
         INSERT INTO {schema}.hapax_meta VALUES ('version', 0)"
    );
    server().psql("postgres", &old).unwrap();
    drop(Hapax::open(&url).await.unwrap());
    server().psql("postgres", &format!("UPDATE {schema}.hapax_meta SET value = 99 WHERE name = 'version'")).unwrap();
    let error = refused(&url).await;
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn tables_of_somebody_else_are_left_alone() {
    for foreign in ["hapax_meta (a int)", "hapax_records (a int)", "hapax_meta (name text, value text)"] {
        let schema = schema();
        server().psql("postgres", &format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.{foreign}")).unwrap();
        let error = refused(&format!("{}?schema={schema}", server().url("postgres"))).await;
        assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("?schema="), "{error}");
        let tables = server()
            .psql(
                "postgres",
                &format!("SELECT count(*) FROM information_schema.tables WHERE table_schema = '{schema}'"),
            )
            .unwrap();
        assert_eq!(tables, "1");
    }
}

#[tokio::test]
async fn each_mistake_gets_one_clear_error() {
    let good = server().url("postgres");
    let port = server().port();
    let nobody = hapax_servers::process::free_port().unwrap();
    let cases = [
        (good.replace("pa55", "wrong"), "check the user and the password"),
        (format!("postgres://hapax_test@127.0.0.1:{port}/postgres"), "PGPASSWORD"),
        (server().url("no_such_database"), "create the database"),
        (good.replace(&format!(":{port}/"), &format!(":{nobody}/")), "nobody listens"),
        (good.replace("127.0.0.1", "no-such-host.invalid"), "correct the host"),
        (format!("{good}?sslmode=require"), "speaks no TLS"),
    ];
    for (url, remedy) in cases {
        let error = refused(&url).await;
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains(remedy), "{remedy:?} is not in: {error}");
    }
}

#[tokio::test]
async fn a_user_without_rights_is_told_what_to_grant() {
    let schema = schema();
    server()
        .psql(
            "postgres",
            &format!(
                "CREATE SCHEMA {schema}; CREATE ROLE poor LOGIN PASSWORD 'poor'; GRANT USAGE ON SCHEMA {schema} TO poor"
            ),
        )
        .unwrap();
    let url = format!("postgres://poor:poor@127.0.0.1:{}/postgres?schema={schema}", server().port());
    assert!(refused(&url).await.to_string().contains("grant"));
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let name = schema();
    server()
        .psql("postgres", &format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
        .unwrap();
    assert!(refused(&server().url(&name)).await.to_string().contains("UTF8"));
}

#[tokio::test]
async fn tls_is_as_strict_as_sslmode_says() {
    let server = PostgresServer::start(Disk::Fast, Tls::On).unwrap();
    let by_number = server.url("postgres");
    let by_name = by_number.replace("127.0.0.1", "localhost");
    let root = format!("sslrootcert={}", server.certificate().display());
    let encrypted = |url: String| {
        let server = &server;
        async move {
            let store = PostgresStore::open(PostgresOptions::from_url(&url).unwrap()).await.unwrap();
            let sql = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'hapax'";
            let all = server.psql("postgres", sql).unwrap();
            store.close().await.unwrap();
            all == "t"
        }
    };
    assert!(encrypted(by_number.clone()).await, "prefer takes what there is");
    assert!(encrypted(format!("{by_number}?sslmode=require")).await);
    assert!(encrypted(format!("{by_number}?sslmode=verify-ca&{root}")).await, "the name does not matter");
    assert!(encrypted(format!("{by_name}?sslmode=verify-full&{root}")).await);
    assert!(!encrypted(format!("{by_number}?sslmode=disable")).await);
    for url in [
        format!("{by_number}?sslmode=verify-full&{root}"),
        format!("{by_name}?sslmode=verify-ca"),
        format!("{by_name}?sslmode=verify-full"),
    ] {
        let error = refused(&url).await.to_string();
        assert!(error.contains("certificate"), "{url}: {error}");
    }
    assert!(
        refused(&format!("{by_name}?sslmode=verify-full&sslrootcert=/no/such/file"))
            .await
            .to_string()
            .contains("sslrootcert")
    );
}

/// Looks at everything that tracing says, of all crates and threads, at every level.
#[derive(Default)]
struct Listener {
    heard: AtomicU64,
    leaked: Mutex<Option<String>>,
}

impl Listener {
    fn hear(&self, said: &dyn std::fmt::Debug) {
        self.heard.fetch_add(1, Ordering::SeqCst);
        let said = format!("{said:?}");
        if said.contains("w0rd") || said.contains("pa55") {
            *self.leaked.lock().unwrap() = Some(said);
        }
    }
}

static LISTENER: LazyLock<Listener> = LazyLock::new(Listener::default);

struct Listens;

impl tracing::Subscriber for Listens {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        LISTENER.hear(span);
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        LISTENER.hear(values);
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        LISTENER.hear(event);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn no_password_is_in_debug_location_or_the_log() {
    // The tests beside this one are heard too.
    tracing::subscriber::set_global_default(Listens).unwrap();
    let proxy = Proxy::start(local(server().port())).unwrap();
    let options = PostgresOptions::from_url(&format!("{}&command_timeout=1", through(&url(), proxy.port()))).unwrap();
    let mut shown = format!("{options:?}");
    let store = Arc::new(PostgresStore::open(options).await.unwrap());
    shown.push_str(&format!("{store:?} {}", store.location()));
    let hapax = Hapax::builder().store(store).build().await.unwrap();
    hapax.execute(&hapax::Action::new("a", "t"), |_| async { Ok(1) }).await.unwrap();
    shown.push_str(&format!("{hapax:?} {:?}", hapax.info().await.unwrap()));
    let _ = Hapax::open(&server().url("no_such_database")).await;
    proxy.outage();
    let failed = hapax.execute(&hapax::Action::new("b", "t"), |_| async { Ok(1) }).await.unwrap_err();
    shown.push_str(&format!("{failed:?} {failed}"));
    assert!(!shown.contains("w0rd") && !shown.contains("pa55"), "{shown}");
    assert!(LISTENER.heard.load(Ordering::SeqCst) > 5);
    assert_eq!(*LISTENER.leaked.lock().unwrap(), None);
}

/// Futures of the store need no runtime of the caller's, and outlive it.
#[test]
fn any_executor_will_do() {
    let url = url();
    let hapax = hapax::blocking::Hapax::open(&url).unwrap();
    let action = hapax::Action::new("a", "t");
    assert_eq!(hapax.execute(&action, |_| Ok(7)).unwrap().value, 7);
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hapax = first.block_on(Hapax::open(&url)).unwrap();
    drop(first);
    let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let again = second.block_on(hapax.execute(&action, |_| async { Ok(8) })).unwrap();
    assert_eq!((again.value, again.is_replay()), (7, true));
}
