//! A real HTTP target, started here, that honours the key passed on to it: even
//! when the answer of a charge is lost, the retry charges nothing twice.
//!
//! `cargo run -p hapax --example http`

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Error as IoError, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hapax::{Action, ActionError, OnDoubt, PolicyPatch};
use serde_json::json;

/// A payment API that knows `Idempotency-Key`, and loses its first answer.
fn serve(listener: TcpListener) {
    let mut receipts: HashMap<String, String> = HashMap::new();
    for (number, stream) in listener.incoming().enumerate() {
        let Ok(mut stream) = stream else { continue };
        let Ok(reading) = stream.try_clone() else { continue };
        let mut key = String::new();
        for line in BufReader::new(reading).lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
            if let Some(value) = line.strip_prefix("Idempotency-Key: ") {
                key = value.into();
            }
        }
        let next = format!("receipt-{}", receipts.len() + 1);
        let known = receipts.contains_key(&key);
        let receipt = receipts.entry(key).or_insert(next).clone();
        println!("  server: {} {receipt}", if known { "already has" } else { "charges:   " });
        if number == 0 {
            continue; // charged, and the connection is cut before the answer
        }
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{receipt}",
            receipt.len()
        );
    }
}

/// Sends the charge with its key; returns the body of the answer.
fn charge(server: SocketAddr, key: &str) -> Result<String, ActionError> {
    // Before the request is sent nothing can have happened; from then on nobody knows.
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).map_err(ActionError::retryable)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(ActionError::retryable)?;
    write!(stream, "POST /charges HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\n\r\n")
        .map_err(ActionError::unknown)?;
    let lines: Vec<String> =
        BufReader::new(stream).lines().collect::<Result<_, IoError>>().map_err(ActionError::unknown)?;
    match lines.first().map(String::as_str) {
        Some("HTTP/1.1 200 OK") => Ok(lines.last().cloned().unwrap_or_default()),
        Some(status) => Err(ActionError::permanent(status)),
        None => Err(ActionError::unknown("the connection was cut before an answer came")),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let server = listener.local_addr()?;
    std::thread::spawn(move || serve(listener));

    let hapax = hapax::blocking::Hapax::open("memory:")?;
    // The target honours the key, so that running again after a doubt is safe.
    let action = Action::new("charge", "payments")
        .signal("order-42")
        .params(json!({"cents": 4200}))
        .policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));

    for attempt in 1..=3 {
        match hapax.execute(&action, |context| charge(server, context.key().as_str())) {
            Ok(outcome) => println!("try {attempt}: {} (replay: {})", outcome.value, outcome.is_replay()),
            Err(error) => println!("try {attempt}: {error}"),
        }
    }
    Ok(())
}
