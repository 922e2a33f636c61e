//! The basic use: an action runs once, and every retry gets its result.
//!
//! `cargo run -p hapax --example basic`

use hapax::{Action, Hapax};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Card {
    id: String,
    name: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), hapax::Error> {
    let hapax = Hapax::open("memory:").await?;
    let action = Action::new("create_task", "trello")
        .signal("mail-4711")
        .params(json!({"name": "Review the invoice", "list": "inbox"}));

    // A workflow that retries: three tries, one card.
    for attempt in 1..=3 {
        let outcome = hapax
            .execute(&action, |context| async move {
                println!("  creating the card, Idempotency-Key: {}", context.key());
                Ok(Card { id: "card-1".into(), name: "Review the invoice".into() })
            })
            .await?;
        let how = if outcome.is_replay() { "replayed" } else { "executed" };
        println!("try {attempt}: {how}: {:?}", outcome.value);
    }
    Ok(())
}
