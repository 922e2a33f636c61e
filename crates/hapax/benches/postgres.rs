//! What the PostgreSQL store costs beside its server's own limit, in the same run:
//! executions, and a bare insert and update by the same client.
//!
//! `cargo bench -p hapax --features postgres --bench postgres [-- SECONDS --callers=N --options=connections=8]`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::store::postgres::tokio_postgres::{self, NoTls};
use hapax::{Action, Hapax, Key};
use hapax_servers::postgres::{Disk, PgBouncer, PostgresServer, Tls};

const CALLERS: [usize; 4] = [1, 16, 64, 256];
const ROUNDS: usize = 7;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `work(n)` with ever new numbers from many callers for a while; returns how many a second.
async fn rate<F, Fut>(callers: usize, time: Duration, work: F) -> f64
where
    F: Fn(usize, u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let count = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (count, work) = (count.clone(), work.clone());
            tokio::spawn(async move {
                let mut done = 0_u64;
                while began.elapsed() < time {
                    work(caller, count.fetch_add(1, Ordering::Relaxed)).await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    #[allow(clippy::cast_precision_loss)]
    let per_second = done as f64 / began.elapsed().as_secs_f64();
    per_second
}

async fn bare(url: &str, connections: usize, callers: usize, time: Duration) -> f64 {
    let mut clients = Vec::new();
    for n in 0..connections {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        if n == 0 {
            let sql =
                "DROP TABLE IF EXISTS bare; CREATE TABLE bare (key text PRIMARY KEY, state int2 NOT NULL, result text)";
            client.batch_execute(sql).await.unwrap();
        }
        let insert =
            client.prepare("INSERT INTO bare (key, state) VALUES ($1, 0) ON CONFLICT DO NOTHING").await.unwrap();
        let update =
            client.prepare("UPDATE bare SET state = 1, result = $2 WHERE key = $1 AND state = 0").await.unwrap();
        clients.push((client, insert, update));
    }
    let (clients, result) = (Arc::new(clients), Arc::new("x".repeat(1024)));
    rate(callers, time, move |caller, n| {
        let (clients, result) = (clients.clone(), result.clone());
        async move {
            let (client, insert, update) = &clients[caller % clients.len()];
            let key = format!("signal-{n}:create_task:trello:1557ebfc75da3109");
            client.execute(insert, &[&key]).await.unwrap();
            client.execute(update, &[&key, &*result]).await.unwrap();
        }
    })
    .await
}

async fn executions(hapax: &Hapax, prefix: &'static str, callers: usize, time: Duration) -> f64 {
    let (hapax, result) = (hapax.clone(), Arc::new("x".repeat(1022)));
    let run = hapax::AttemptId::new();
    rate(callers, time, move |_, n| {
        let (hapax, result) = (hapax.clone(), result.clone());
        async move {
            let action = Action::new("create_task", "trello").signal(format!("{prefix}-{run}-{n}"));
            hapax.execute(&action, |_| async move { Ok((*result).clone()) }).await.unwrap();
        }
    })
    .await
}

/// Replays of 1 000 keys.
async fn replays(hapax: &Hapax, callers: usize, time: Duration) -> f64 {
    let action = |n: u64| Action::new("replay", "trello").key(Key::given(&format!("replay-{}", n % 1000)).unwrap());
    let actions: Arc<Vec<Action>> = Arc::new((0..1000).map(action).collect());
    for action in &*actions {
        hapax.execute(action, |_| async { Ok("x".repeat(1022)) }).await.unwrap();
    }
    let hapax = hapax.clone();
    rate(callers, time, move |_, n| {
        let (hapax, actions) = (hapax.clone(), actions.clone());
        async move {
            hapax
                .execute::<String, _, _>(&actions[n as usize % 1000], |_| async { panic!("ran again") })
                .await
                .unwrap();
        }
    })
    .await
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|a| a.parse::<f64>().ok()).unwrap_or(3.0);
    let time = Duration::from_secs_f64(seconds / ROUNDS as f64);
    let only = std::env::args().find_map(|a| a.strip_prefix("--callers=")?.parse::<usize>().ok());
    let server = PostgresServer::start(Disk::Synced, Tls::Off).unwrap();
    let pooler = PgBouncer::start(&server, 20).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = server.create_database("bench").unwrap();
        let options = std::env::args().find_map(|a| Some(a.strip_prefix("--options=")?.to_string())).unwrap_or_default();
        let direct = Hapax::open(&format!("{url}?{options}")).await.unwrap();
        let pooled = Hapax::open(&format!("{}?schema=pooled", pooler.url("bench"))).await.unwrap();
        let forgetful = Hapax::builder().store_url(&url).recent_results(0).build().await.unwrap();
        println!("a second, result of 1 KiB; bare: insert + update, prepared, on as many connections\n");
        println!("callers   bare 4  bare 16   hapax   of 4  of 16   pooled   replays (store)   replays (memory)");
        for callers in CALLERS.into_iter().filter(|c| only.is_none_or(|only| only == *c)) {
            // In turns, since the disk of a busy machine is now fast and now slow; the median of the rounds counts.
            let mut rounds: [Vec<f64>; 6] = Default::default();
            for _ in 0..ROUNDS {
                server.psql("bench", "CHECKPOINT").unwrap();
                rounds[0].push(bare(&url, 4, callers, time).await);
                rounds[1].push(executions(&direct, "d", callers, time).await);
                rounds[2].push(bare(&url, 16, callers, time).await);
                rounds[3].push(executions(&pooled, "p", callers, time).await);
                rounds[4].push(replays(&forgetful, callers, time).await);
                rounds[5].push(replays(&direct, callers, time).await);
            }
            let [four, executed, sixteen, behind, stored, remembered] = rounds.map(median);
            println!(
                "{callers:>7} {four:>8.0} {sixteen:>8.0} {executed:>7.0} {:>5.0}% {:>5.0}% {behind:>8.0} {stored:>17.0} {remembered:>18.0}",
                100.0 * executed / four,
                100.0 * executed / sixteen
            );
        }
    });
}
