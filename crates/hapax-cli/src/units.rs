//! Durations, times to live and sizes as users write them: `24h`, `1h 30m`,
//! `500ms`, `never`, `4MiB`. The same texts work as flags, in the environment
//! and in the configuration file.

use std::fmt;
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
        let span = humantime::parse_duration(text.trim())
            .map_err(|e| format!("{text:?} is not a duration ({e}): write it like 24h, 30s or 500ms"))?;
        // Shown in milliseconds, it would read back as another.
        if span.subsec_nanos() % 1_000_000 != 0 {
            return Err(format!("{text:?} is finer than a millisecond: write it like 24h, 30s or 500ms"));
        }
        if u64::try_from(span.as_millis()).is_err() {
            return Err(format!("{text:?} is longer than any clock counts: write it like 24h, 30s or 500ms"));
        }
        Ok(Self(span))
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

/// A time limit: a duration, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Limit(pub Option<Duration>);

impl FromStr for Limit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "none" {
            return Ok(Self(None));
        }
        let Span(span) = text.parse().map_err(|e| format!("{e}, or `none`"))?;
        Ok(Self(Some(span)))
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
from_string!(Span, Keep, Wait, Limit, Size);

// What a setting shows reads back as the same setting.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&say(self.0))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ttl::For(d) => f.write_str(&say(d)),
            Ttl::Never => f.write_str("never"),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            InFlight::Wait(d) => f.write_str(&say(d)),
            InFlight::Reject => f.write_str("no"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map_or_else(|| "none".into(), say))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

/// A duration in full: `24h`, `1h 30m`, `250ms`. Reads back as the same.
pub fn say(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    // No unit above the hour: people set `24h` and look for it again.
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= size {
            parts.push(format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// A duration at a glance, by its two largest units: `3d 4h`, `12m 5s`, `0s`.
pub fn glance(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => two(secs, 60, "m", 1, "s"),
        3_600..86_400 => two(secs, 3_600, "h", 60, "m"),
        _ => two(secs, 86_400, "d", 3_600, "h"),
    }
}

fn two(secs: u64, large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match secs % large / small {
        0 => format!("{}{large_unit}", secs / large),
        rest => format!("{}{large_unit} {rest}{small_unit}", secs / large),
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
        // The last two would be shown as `0s` and as another duration.
        for bad in ["", "30", "-1s", "1 fortnight", "99999999999999999999h", "1us", "18446744073709551615s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in ["24h", "1h 30m", "250ms", "1m 1s 1ms"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["never", "36h"] {
            assert_eq!(text.parse::<Keep>().unwrap().to_string(), text);
        }
        assert_eq!("no".parse::<Wait>().unwrap().to_string(), "no");
        assert_eq!("none".parse::<Limit>().unwrap().to_string(), "none");
        for text in ["4MiB", "3KiB", "1000"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_glance_takes_two_units() {
        let glance = |secs| glance(Duration::from_secs(secs));
        assert_eq!(glance(0), "0s");
        assert_eq!(glance(725), "12m 5s");
        assert_eq!(glance(7_200), "2h");
        assert_eq!(glance(3 * 86_400 + 4 * 3_600 + 5), "3d 4h");
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
