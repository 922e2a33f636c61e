//! Manual control: a claim to run an action under, and a doubt to settle.
//!
//! `cargo run -p hapax --example manual`

use hapax::store::Settlement;
use hapax::{Action, Claimed, Error, Hapax, Json, Ttl};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hapax = Hapax::open("memory:").await?;
    let upload = Action::new("upload_file", "drive").params(json!({"path": "/a/b.pdf"}));

    match hapax.claim(&upload).await? {
        Claimed::Started(claim) => {
            println!("uploading under {}", claim.key());
            claim.complete(&json!({"fileId": "f-1"})).await?;
        }
        Claimed::Replay(record) => println!("uploaded before, at {:?}", record.executed_at),
    }
    if let Claimed::Replay(record) = hapax.claim(&upload).await? {
        println!("second claim: {} with {:?}", record.state, record.result.map(|r| r.as_str().to_string()));
    }

    // A payment whose answer was lost: did it happen? Nobody knows, and hapax says so.
    let payment = Action::new("charge", "bank").signal("order-42").params(json!({"cents": 4200}));
    if let Claimed::Started(claim) = hapax.claim(&payment).await? {
        claim.doubt("the connection was cut after the request was sent").await?;
    }
    let refused = hapax.execute(&payment, |_| async { Ok("never runs".to_string()) }).await;
    if let Err(Error::InDoubt { record }) = &refused {
        println!("\nrefused: {} is {}: {:?}", record.key, record.state, record.error);
        // A person has looked at the bank's books.
        let result = Json::of(&"receipt-1")?;
        hapax.settle(&record.key, Settlement::Happened { result, ttl: Ttl::Never }).await?;
    }
    let settled = hapax.execute(&payment, |_| async { Ok("never runs".to_string()) }).await?;
    println!("settled: {}", settled.value);
    Ok(())
}
