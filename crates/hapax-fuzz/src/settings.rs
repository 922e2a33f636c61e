//! What people write into flags and files: durations, sizes, configurations.
//!
//! What is read is shown so that it reads back the same; all else is an error
//! that is not empty.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use hapax_cli::fuzzing as cli;
use hapax_http::{ProxyConfig, ServeConfig, units as http};

use crate::until;

pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    reads_back::<cli::Span>(text);
    reads_back::<cli::Keep>(text);
    reads_back::<cli::Wait>(text);
    reads_back::<cli::Limit>(text);
    reads_back::<cli::Size>(text);
    reads_back::<http::Span>(text);
    reads_back::<http::Keep>(text);
    reads_back::<http::Wait>(text);
    if let Ok(cli::Span(span)) = text.parse() {
        assert!(!cli::glance(span).is_empty());
    }
    // What both know, both read alike, up to the server's hundred years; only the command takes `1h 30m` and more units.
    if let (Ok(cli::Span(ours)), Ok(http::Span(theirs))) = (text.parse(), text.parse()) {
        assert_eq!(ours.min(Duration::from_secs(100 * 365 * 24 * 3600)), theirs, "{text:?}");
    }
}

fn reads_back<T>(text: &str)
where
    T: FromStr<Err = String> + Display + PartialEq + Debug,
{
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse::<T>().as_ref(), Ok(&value), "{text:?} is shown as {value}"),
        Err(message) => assert!(!message.is_empty()),
    }
}

/// The first byte says whose file the rest is.
pub fn files(data: &[u8]) {
    let (kind, text) = until(data, b'\n');
    let Ok(text) = std::str::from_utf8(text) else { return };
    let refused = match kind {
        b"serve" => ServeConfig::from_toml(text).map(drop).map_err(|e| e.to_string()),
        b"proxy" => ProxyConfig::from_toml(text).map(drop).map_err(|e| e.to_string()),
        _ => cli::settings(text),
    };
    if let Err(message) = refused {
        assert!(message.len() > 10, "{message:?} says too little");
    }
}
