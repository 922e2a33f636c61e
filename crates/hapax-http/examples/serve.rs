//! A server on a store, for trying things: `cargo run --example serve -- sqlite:hapax.db 4278`,
//! with how long a duplicate waits as a third argument.
#![allow(clippy::print_stdout)]

use hapax_http::{ApiServer, ServeConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut config = ServeConfig::default();
    if let Some(store) = args.next() {
        config.store = store;
    }
    if let Some(port) = args.next() {
        config.listen.set_port(port.parse()?);
    }
    if let Some(wait) = args.next() {
        // Of calls that do not say how long, and at most of those that do.
        config.policy.wait = Some(wait.parse()?);
        config.limits.max_wait = wait.parse()?;
    }
    let server = ApiServer::bind(config).await?;
    println!("listening on {}", server.address());
    server
        .run(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
