//! Statistics and queries: what ran, what was replayed, what expires soon.
//!
//! `cargo run -p hapax --example statistics`

use std::time::Duration;

use hapax::store::Filter;
use hapax::{Action, Hapax, PolicyPatch};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), hapax::Error> {
    let hapax = Hapax::builder()
        .store_url("memory:")
        .policy_for("send_message", None, PolicyPatch::new().ttl(Duration::from_secs(600)))
        .build()
        .await?;

    // Twelve calls for four different things.
    for call in 0..12 {
        let (kind, target) = if call % 2 == 0 { ("send_message", "slack") } else { ("create_task", "trello") };
        let action = Action::new(kind, target).signal(format!("mail-{}", call % 4)).params(json!({"n": call % 4}));
        hapax
            .execute(&action, |_| async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(call)
            })
            .await?;
    }

    let stats = hapax.stats().await?;
    println!("executions            {}", stats.executions);
    println!("duplicates prevented  {}", stats.duplicates_prevented);
    println!("hit rate              {:.0} %", stats.hit_rate * 100.0);
    println!("time saved            {} ms", stats.time_saved_ms);

    println!("\nto slack:");
    for record in hapax.find_by_target("slack").await?.records {
        println!("  {}  {}  presented {} times", record.key, record.state, record.attempt_count);
    }
    let soon = hapax.expiring_soon(Duration::from_secs(3600)).await?.records.len();
    println!("\nexpiring within the hour: {soon} of {}", hapax.keys(Filter::default()).await?.len());
    Ok(())
}
