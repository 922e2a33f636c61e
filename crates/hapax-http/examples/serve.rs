//! A server on a store, for trying things: `cargo run --example serve -- sqlite:hapax.db 4278`.
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
    let server = ApiServer::bind(config).await?;
    println!("listening on {}", server.address());
    server
        .run(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
