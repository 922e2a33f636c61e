//! Executions and replays per second on a Redis, beside a bare `SET NX` + `SET` with the same client in the same run.
//!
//! ```sh
//! cargo run --release -p hapax --features redis --example redis_bench -- redis://127.0.0.1:6379 2
//! ```
//! The second argument is the seconds for each measurement. It writes under prefixes of its own and leaves them to
//! expire.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::{Action, Hapax, PolicyPatch};
use redis::aio::MultiplexedConnection;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// How many a second, with so many callers.
async fn rate<F, Fut>(callers: usize, time: Duration, work: F) -> Result<f64, Failed>
where
    F: Fn(u64) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failed>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (work, next) = (work.clone(), next.clone());
            tokio::spawn(async move {
                let mut done = 0u32;
                while began.elapsed() < time {
                    work(next.fetch_add(1, Ordering::Relaxed)).await?;
                    done += 1;
                }
                Ok::<u32, Failed>(done)
            })
        })
        .collect();
    let mut done = 0.0;
    for task in tasks {
        done += f64::from(task.await??);
    }
    Ok(done / began.elapsed().as_secs_f64())
}

async fn bare(mut connection: MultiplexedConnection, prefix: String, n: u64) -> Result<(), Failed> {
    let key = format!("{prefix}:{n}");
    let value = "x".repeat(300);
    let _: Option<String> =
        redis::cmd("SET").arg(&key).arg(&value).arg("NX").arg("PX").arg(60_000).query_async(&mut connection).await?;
    let _: String = redis::cmd("SET").arg(&key).arg(&value).arg("PX").arg(60_000).query_async(&mut connection).await?;
    Ok(())
}

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("give the address of a Redis")?;
    let time = Duration::from_secs_f64(args.next().map_or(Ok(2.0), |s| s.parse())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let run = std::process::id();
        let address = url.split('?').next().unwrap_or(&url);
        let connection = redis::Client::open(address)?.get_multiplexed_async_connection().await?;
        let builder = || {
            let sign = if url.contains('?') { '&' } else { '?' };
            Hapax::builder()
                .store_url(format!("{url}{sign}prefix=bench{run}"))
                .policy(PolicyPatch::new().ttl(Duration::from_secs(60)))
        };
        let hapax = builder().build().await?;
        let forgetful = builder().recent_results(0).build().await?;
        println!("callers  bare SET NX+SET/s  executions/s  share   replays/s (store)  (memory)");
        for callers in [1, 16, 64, 256] {
            let prefix = format!("bare{run}-{callers}");
            let (c, p) = (connection.clone(), prefix.clone());
            let bare = rate(callers, time, move |n| bare(c.clone(), p.clone(), n)).await?;
            let action = move |n: u64| Action::new("bench", "redis").signal(format!("{callers}-{n}"));
            let execute = move |hapax: Hapax, n: u64| async move {
                let value = "x".repeat(300);
                hapax.execute(&action(n), |_| async move { Ok(value) }).await?;
                Ok(())
            };
            let h = hapax.clone();
            let executions = rate(callers, time, move |n| execute(h.clone(), n)).await?;
            let h = forgetful.clone();
            let replays = rate(callers, time, move |n| execute(h.clone(), n % 1000)).await?;
            let h = hapax.clone();
            let hot = rate(callers, time, move |n| execute(h.clone(), n % 100)).await?;
            println!(
                "{callers:7}  {bare:17.0}  {executions:12.0}  {:4.0} %  {replays:17.0}  {hot:8.0}",
                executions / bare * 100.0
            );
        }
        let _ = hapax.shutdown(Duration::from_secs(5)).await?;
        let _ = forgetful.shutdown(Duration::from_secs(5)).await?;
        Ok(())
    })
}
