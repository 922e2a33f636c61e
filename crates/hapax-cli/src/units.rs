//! Durations, times to live and sizes as users write them: `24h`, `1h 30m`,
//! `500ms`, `never`, `4MiB`. The same texts work as flags, in the environment
//! and in the configuration file.

use std::str::FromStr;
use std::time::Duration;

use hapax::{InFlight, Ttl};
use serde::Deserialize;

/// A duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map(Self)
            .map_err(|e| format!("{text:?} is not a duration ({e}): write it like 24h, 30s or 500ms"))
    }
}

/// How long a result is kept: a duration, or `never` for one that never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Keep(pub Ttl);

impl FromStr for Keep {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "never" {
            return Ok(Self(Ttl::Never));
        }
        let Span(span) = text.parse().map_err(|e| format!("{e}, or `never`"))?;
        Ok(Self(Ttl::For(span)))
    }
}

/// How long a duplicate waits: a duration, or `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Wait(pub InFlight);

impl FromStr for Wait {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "no" {
            return Ok(Self(InFlight::Reject));
        }
        let Span(span) = text.parse().map_err(|e| format!("{e}, or `no`"))?;
        Ok(Self(InFlight::Wait(span)))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a size: write it like 4MiB, 512KiB or 100000");
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor: usize = match text.get(digits.len()..).unwrap_or("").trim() {
            "" | "B" => 1,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            _ => return Err(bad()),
        };
        digits.trim().parse::<usize>().ok().and_then(|n| n.checked_mul(factor)).map(Self).ok_or_else(bad)
    }
}

macro_rules! from_string {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}
from_string!(Span, Keep, Wait, Size);

/// A duration for people: whole milliseconds, `1h 30m`.
pub fn say(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

/// A duration for progress displays: whole seconds from the first on.
pub fn say_roughly(duration: Duration) -> String {
    if duration < Duration::from_secs(1) { say(duration) } else { say(Duration::from_secs(duration.as_secs())) }
}

/// A time to live for people.
pub fn say_ttl(ttl: Ttl) -> String {
    match ttl {
        Ttl::For(d) => say(d),
        Ttl::Never => "never".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_users_write_them() {
        assert_eq!("24h".parse(), Ok(Span(Duration::from_secs(86_400))));
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("never".parse(), Ok(Keep(Ttl::Never)));
        assert_eq!("no".parse(), Ok(Wait(InFlight::Reject)));
        for bad in ["", "30", "-1s", "1 fortnight", "99999999999999999999h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_read_as_users_write_them() {
        assert_eq!("4MiB".parse(), Ok(Size(4 << 20)));
        assert_eq!("100".parse(), Ok(Size(100)));
        for bad in ["", "MiB", "4GB", "-4", "99999999999999999999"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
