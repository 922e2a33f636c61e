//! What cannot work is said once, clearly, with the remedy; and no password is said at all.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use hapax::Hapax;
use hapax::store::redis::{RedisOptions, RedisStore};
use hapax::store::{Begun, Store, StoreError};
use hapax_servers::process::free_port;
use hapax_servers::redis::{RedisCluster, RedisConfig, RedisSentinels, RedisServer};

use crate::common::{begin, log, open, run, server};

pub async fn refused(url: &str) -> String {
    let error = match RedisOptions::from_url(url) {
        Ok(options) => RedisStore::open(options).await.map(|_| ()).unwrap_err(),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

pub fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn each_thing_that_cannot_work_is_named_with_its_remedy() {
    let redis = server();
    run(async {
        let nobody = free_port().unwrap();
        says(
            &refused(&format!("redis://127.0.0.1:{nobody}")).await,
            &["no server answers", "start it, or check the address"],
        );
        says(&refused(&format!("{}/99", redis.url())).await, &["no such database", "databases"]);
        says(&refused("redis://no.such.host.invalid").await, &["cannot be reached"]);
        let port = redis.port();
        says(&refused(&format!("redis+cluster://127.0.0.1:{port}")).await, &["no node of a cluster", "give redis:"]);
        says(&refused(&format!("redis+sentinel://127.0.0.1:{port}/x")).await, &["127.0.0.1"]);
        if redis.version().unwrap() < (7, 2) {
            says(&refused(&format!("{}?waitaof=1", redis.url())).await, &["Redis 7.2", "leave waitaof out"]);
        } else {
            waits_for_the_file().await;
        }
        says(&refused(&format!("{}?speed=11", redis.url())).await, &["no option", "command_timeout"]);
    });
}

/// Where the server has `WAITAOF`, a write is acknowledged when it is synced, and refused where it cannot be.
async fn waits_for_the_file() {
    let (synced, kept_nowhere) = (RedisServer::start(RedisConfig::new().aof("everysec")).unwrap(), server());
    let store = open(&format!("{}?waitaof=1&wait_timeout=2s", synced.url())).await;
    assert!(matches!(store.begin(begin("k")).await.unwrap(), Begun::Started { .. }));
    let store = open(&format!("{}?waitaof=1", kept_nowhere.url())).await;
    let refused = store.begin(begin("k")).await.unwrap_err();
    assert!(matches!(refused, StoreError::AnswerLost { .. }), "{refused:?}");
}

#[test]
fn a_server_that_is_no_redis_is_told_from_one_that_is_down() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    run(async {
        says(
            &refused(&format!("redis://127.0.0.1:{port}")).await,
            &["does not speak Redis's protocol", "check the address"],
        );
    });
}

#[test]
fn the_kind_of_setup_is_told_from_the_others() {
    let cluster = RedisCluster::start().unwrap();
    let group = RedisSentinels::start(RedisConfig::new()).unwrap();
    run(async {
        says(&refused(&cluster.nodes[0].url()).await, &["node of a cluster", "redis+cluster:"]);
        let url = group.url().replace("hapax-primary", "nobody");
        says(&refused(&url).await, &["knows no primary named", "sentinel monitor"]);
    });
}

#[test]
fn a_password_is_wanted_checked_and_never_repeated() {
    const SECRET: &str = "s3cr3t-Pa%ss";
    const WRONG: &str = "wr0ng-S3cret";
    log();
    let redis = RedisServer::start(RedisConfig::new().password(SECRET)).unwrap();
    run(async {
        let encoded = SECRET.replace('%', "%25");
        let with = |password: &str| redis.url().replace("redis://", &format!("redis://:{password}@"));
        let store = open(&with(&encoded)).await;
        assert!(matches!(store.begin(begin("k")).await.unwrap(), Begun::Started { .. }));
        let hapax = Hapax::open(&with(&encoded)).await.unwrap();
        let mut seen = vec![
            format!("{store:?} {} {hapax:?}", store.location()),
            format!("{:?}", RedisOptions::from_url(&with(&encoded)).unwrap()),
        ];
        let none = refused(&redis.url()).await;
        says(&none, &["password", "check them in the address"]);
        let wrong = refused(&with(WRONG)).await;
        says(&wrong, &["password", "check them in the address"]);
        let user = refused(&redis.url().replace("redis://", &format!("redis://somebody:{WRONG}@"))).await;
        says(&user, &["password"]);
        seen.extend([none, wrong, user]);
        // A password that was not encoded makes the address something else: it is not repeated either.
        seen.push(refused(&with(&format!("{WRONG}/#?"))).await);
        seen.extend(log().lock().unwrap().iter().cloned());
        for text in seen {
            assert!(!text.contains("s3cr3t") && !text.contains("wr0ng"), "{text}");
        }
    });
}

#[test]
fn a_server_that_may_forget_is_warned_of_by_the_name_of_its_setting() {
    log();
    let forgetful = RedisServer::start(RedisConfig::new().set("maxmemory-policy", "allkeys-lru")).unwrap();
    let careful = RedisServer::start(RedisConfig::new().aof("everysec")).unwrap();
    // As managed servers do.
    let closed = RedisServer::start(RedisConfig::new().without("CONFIG").without("INFO")).unwrap();
    run(async {
        for redis in [&forgetful, &careful, &closed] {
            open(&redis.url()).await;
        }
        let lines = log().lock().unwrap().clone();
        let of = |redis: &RedisServer, what: &str| {
            let port = redis.port().to_string();
            lines.iter().any(|l| l.starts_with("WARN") && l.contains(&port) && l.contains(what))
        };
        assert!(of(&forgetful, "maxmemory-policy") && of(&forgetful, "appendonly"));
        assert!(!of(&careful, "") && !of(&closed, ""));
    });
}

#[test]
fn a_server_that_is_full_says_so_and_what_it_has_still_answers() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        assert!(matches!(store.begin(begin("a")).await.unwrap(), Begun::Started { .. }));
        redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
        let error = store.begin(begin("b")).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
        assert!(matches!(store.begin(begin("b")).await.unwrap(), Begun::Started { .. }));
    });
}

#[test]
fn strange_values_under_hapaxs_keys_are_errors_and_no_panics() {
    let redis = server();
    run(async {
        let store = open(&redis.url()).await;
        assert!(matches!(store.begin(begin("k")).await.unwrap(), Begun::Started { .. }));
        let find = "local k = redis.call('KEYS', ARGV[1]) return k[1]";
        let record = redis.ask(&["EVAL", find, "0", "hapax:*:r:*"]).unwrap();
        for value in ["", "1", "9 from the future", &"1P0".repeat(100), &"x".repeat(400)] {
            redis.ask(&["SET", &record, value]).unwrap();
            let error = store.get(begin("k").namespace, begin("k").key).await.unwrap_err();
            assert!(
                matches!(error, StoreError::Damaged { .. } | StoreError::Unavailable { .. }),
                "{value:?}: {error:?}"
            );
        }
        redis.ask(&["DEL", &record]).unwrap();
        redis.ask(&["SADD", &record, "x"]).unwrap();
        let error = store.begin(begin("k")).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    });
}

#[test]
fn any_executor_and_none_can_call_it() {
    let redis = server();
    let hapax = hapax::blocking::Hapax::open(&redis.url()).unwrap();
    let action = hapax::Action::new("send", "mail").signal("s");
    for _ in 0..2 {
        assert_eq!(hapax.execute(&action, |_| Ok(7)).unwrap().value, 7);
    }
    assert_eq!(hapax.stats().unwrap().hits, 1);
    // A runtime that opened the store may end before the store does.
    let store = run(open(&redis.url()));
    std::thread::sleep(Duration::from_millis(20));
    run(async { assert!(matches!(store.begin(begin("k")).await.unwrap(), Begun::Started { .. })) });
}
