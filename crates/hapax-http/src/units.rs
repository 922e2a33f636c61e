//! Durations and times to live as the API and the configuration write them:
//! `24h`, `30s`, `500ms`, `never`, `no`.

use std::time::Duration;

use hapax::{InFlight, Ttl};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest duration: what is longer counts as this. With it added, a time is still one of RFC 3339.
pub const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Enough to write it in milliseconds.
const MAX_DIGITS: usize = 13;

/// Reads `500ms`, `30s`, `15m`, `24h`, `7d`.
///
/// # Errors
/// When it is not written so.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write it like 500ms, 30s, 15m, 24h or 7d");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (digits, unit) = text.split_at_checked(at).ok_or_else(bad)?;
    if digits.is_empty() || digits.len() > MAX_DIGITS {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    Ok(Duration::from_millis(number.saturating_mul(millis)).min(MAX))
}

/// The shortest way to write a duration, in whole milliseconds.
#[must_use]
pub fn show(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis > 0 && millis % size == 0 {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// A duration, written `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// How long a result is kept: a duration, or `never` for one that never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(pub Ttl);

/// How long a duplicate waits: a duration, or `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub InFlight);

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self)
    }
}

impl std::str::FromStr for Keep {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" { Ok(Self(Ttl::Never)) } else { parse(text).map(|d| Self(Ttl::For(d))) }
    }
}

impl std::str::FromStr for Wait {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "no" { Ok(Self(InFlight::Reject)) } else { parse(text).map(|d| Self(InFlight::Wait(d))) }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(self.0))
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Ttl::For(d) => f.write_str(&show(d)),
            Ttl::Never => f.write_str("never"),
        }
    }
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            InFlight::Wait(d) => f.write_str(&show(d)),
            InFlight::Reject => f.write_str("no"),
        }
    }
}

macro_rules! as_text {
    ($($name:ident: $pattern:literal, $example:literal);*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<'_, str>::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some($pattern))
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )*};
}

as_text! {
    Span: "^[0-9]{1,13}(ms|s|m|h|d)$", "30s";
    Keep: "^([0-9]{1,13}(ms|s|m|h|d)|never)$", "24h";
    Wait: "^([0-9]{1,13}(ms|s|m|h|d)|no)$", "30s"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_they_are_written() {
        for text in ["0ms", "500ms", "30s", "15m", "24h", "7d", "90s"] {
            assert_eq!(parse(text).map(parse_back), Ok(parse(text)), "{text}");
        }
        fn parse_back(d: Duration) -> Result<Duration, String> {
            parse(&show(d))
        }
        for bad in ["", "5", "s", "5 s", "-1s", "1.5h", "5w", "12345678901234s", "é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("9999999999999d"), Ok(MAX), "what is longer counts as a hundred years");
    }
}
