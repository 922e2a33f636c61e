//! Params as bytes: RFC 8785 canonical JSON, its SHA-256, and the choice of
//! the params that identify an action.
//!
//! Invariant: two params have the same canonical form exactly when they are the
//! same JSON value by RFC 8785; a number that the form would round is an error,
//! never a rounded hash.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// The largest text that [`parse_params`] takes: 1 MiB.
pub const MAX_PARAMS_BYTES: usize = 1 << 20;

/// The deepest nesting that has a canonical form: what serde_json reads back.
/// Without it a deep tree, built in memory, would end the process (stack overflow).
const MAX_DEPTH: usize = 127;

/// Why params have no canonical form.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamsError {
    /// An integer that a double cannot hold exactly.
    #[error(
        "the params hold the integer {literal}, which JSON readers round (RFC 8785 numbers are doubles): send it as a string"
    )]
    InexactInteger {
        /// The integer.
        literal: String,
    },
    /// The text is not JSON, or the value has no JSON form.
    #[error("the params are not JSON: {message}")]
    NotJson {
        /// What the reader said.
        message: String,
    },
    /// An object has two members of one name.
    #[error(
        "the params have the member {name:?} twice in one object: JSON readers disagree which one counts, so leave one out"
    )]
    DuplicateKey {
        /// The name.
        name: String,
    },
    /// The text is too large.
    #[error(
        "the params are {bytes} bytes and the limit is {limit}: keep the bulk elsewhere and send its hash or its address"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Arrays and objects stand too deep in one another.
    #[error("the params nest deeper than {limit} levels: flatten them, or send the inner part as a string")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A JSON pointer is not one.
    #[error("{pointer:?} is not a JSON pointer (RFC 6901): write /name or /name/0, with ~0 for ~ and ~1 for /")]
    BadPointer {
        /// What was given.
        pointer: String,
    },
    /// A fingerprint is not one.
    #[error("{text:?} is not a fingerprint: give 64 hexadecimal digits")]
    BadFingerprint {
        /// What was given.
        text: String,
    },
}

/// The RFC 8785 text of `params`.
///
/// ```
/// use serde_json::json;
/// let text = hapax::canonical_json(&json!({"b": 1.0, "a": [1e21, "é"]}))?;
/// assert_eq!(text, r#"{"a":[1e+21,"é"],"b":1}"#);
/// # Ok::<(), hapax::ParamsError>(())
/// ```
///
/// A double from 2^53 up has the shortest digits that name it, as RFC 8785 demands:
/// 2^60 becomes `1152921504606847000`, which [`parse_params`] does not take back.
///
/// # Errors
/// [`ParamsError::InexactInteger`], [`ParamsError::TooDeep`] beyond 127 levels.
pub fn canonical_json(params: &Value) -> Result<String, ParamsError> {
    let mut text = String::with_capacity(256);
    write_value(params, MAX_DEPTH, &mut text)?;
    Ok(text)
}

fn write_value(value: &Value, depth: usize, out: &mut String) -> Result<(), ParamsError> {
    let inner = || depth.checked_sub(1).ok_or(ParamsError::TooDeep { limit: MAX_DEPTH });
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(n) => write_number(n, out)?,
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            let depth = inner()?;
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(item, depth, out)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            let depth = inner()?;
            // ASCII names sort alike as bytes and as UTF-16 units, and the map has
            // them sorted unless some crate turned on serde_json's preserve_order.
            if members.keys().all(|name| name.is_ascii()) && members.keys().is_sorted() {
                write_members(members.iter(), depth, out)?;
            } else {
                // RFC 8785 §3.2.3: by UTF-16 units, where U+1F600 precedes U+FB33.
                let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
                sorted.sort_unstable_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
                write_members(sorted.into_iter(), depth, out)?;
            }
        }
    }
    Ok(())
}

fn write_members<'a>(
    members: impl Iterator<Item = (&'a String, &'a Value)>,
    depth: usize,
    out: &mut String,
) -> Result<(), ParamsError> {
    out.push('{');
    for (i, (name, value)) in members.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        write_value(value, depth, out)?;
    }
    out.push('}');
    Ok(())
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the casts are the question
fn write_number(n: &Number, out: &mut String) -> Result<(), ParamsError> {
    let inexact = || ParamsError::InexactInteger { literal: n.to_string() };
    let double = if let Some(u) = n.as_u64() {
        let double = u as f64;
        // 2^64 itself is out of u64's range and would saturate into equality.
        if double >= 18_446_744_073_709_551_616.0 || double as u64 != u {
            return Err(inexact());
        }
        double
    } else if let Some(i) = n.as_i64() {
        let double = i as f64;
        if double as i64 != i {
            return Err(inexact());
        }
        double
    } else {
        n.as_f64().ok_or_else(inexact)?
    };
    // ECMAScript's Number::toString, which RFC 8785 §3.2.2.3 prescribes; minus zero is 0 there.
    let mut buffer = ryu_js::Buffer::new();
    out.push_str(buffer.format_finite(double));
    Ok(())
}

fn write_string(s: &str, out: &mut String) {
    out.push('"');
    let mut rest = s;
    while let Some(at) = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\') {
        // All of these are ASCII, so `at` and `at + 1` are character boundaries.
        let (plain, tail) = rest.split_at(at);
        out.push_str(plain);
        let special = tail.bytes().next().unwrap_or(b'"');
        match special {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            other => {
                out.push_str("\\u00");
                out.extend(hex(other).map(char::from));
            }
        }
        rest = tail.get(1..).unwrap_or("");
    }
    out.push_str(rest);
    out.push('"');
}

/// Reads params from JSON text, more strictly than most readers: no integer
/// that would be rounded, no member twice, at most 1 MiB and 127 levels.
///
/// ```
/// use hapax::{ParamsError, parse_params};
/// assert_eq!(parse_params("[1, 2.5]")?, serde_json::json!([1, 2.5]));
/// assert!(matches!(parse_params("9007199254740993"), Err(ParamsError::InexactInteger { .. })));
/// assert!(matches!(parse_params(r#"{"a":1,"a":2}"#), Err(ParamsError::DuplicateKey { .. })));
/// # Ok::<(), ParamsError>(())
/// ```
///
/// # Errors
/// See [`ParamsError`].
pub fn parse_params(text: &str) -> Result<Value, ParamsError> {
    if text.len() > MAX_PARAMS_BYTES {
        return Err(ParamsError::TooLarge { bytes: text.len(), limit: MAX_PARAMS_BYTES });
    }
    let mut twice = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { twice: &mut twice }.deserialize(&mut reader).and_then(|v| reader.end().map(|()| v));
    if let Some(name) = twice {
        return Err(ParamsError::DuplicateKey { name });
    }
    let value = value.map_err(|e| ParamsError::NotJson { message: e.to_string() })?;
    check_integers(text)?;
    Ok(value)
}

/// A reader that refuses a member's second coming.
struct Strict<'a> {
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Number::from_f64(n).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::String(s.into()))
    }
    fn visit_string<E>(self, s: String) -> Result<Value, E> {
        Ok(Value::String(s))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict { twice: &mut *self.twice })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict { twice: &mut *self.twice })?;
            if members.contains_key(&name) {
                *self.twice = Some(name);
                return Err(serde::de::Error::custom("a member stands twice"));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// Refuses integers that the reader rounded, in whatever way they are written: it makes doubles of them without a word.
fn check_integers(text: &str) -> Result<(), ParamsError> {
    match literals(text).find(|literal| !is_kept(literal)) {
        Some(literal) => Err(ParamsError::InexactInteger { literal: literal.into() }),
        None => Ok(()),
    }
}

/// The numbers of a text that is valid JSON, as they are written.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    let mut bytes = text.bytes().enumerate().peekable();
    let mut in_string = false;
    std::iter::from_fn(move || {
        while let Some((start, b)) = bytes.next() {
            match b {
                b'\\' if in_string => {
                    bytes.next();
                }
                b'"' => in_string = !in_string,
                b'-' | b'0'..=b'9' if !in_string => {
                    let mut end = start + 1;
                    while let Some((at, _)) =
                        bytes.next_if(|(_, b)| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
                    {
                        end = at + 1;
                    }
                    return text.get(start..end);
                }
                _ => {}
            }
        }
        None
    })
}

/// Whether a literal is no integer, or one that a double holds exactly. One with an exponent may also be what RFC 8785
/// itself writes with one: `1e30`.
fn is_kept(literal: &str) -> bool {
    if is_short(literal) {
        return true;
    }
    let decimal = Decimal::of(literal);
    let as_written = || {
        literal.contains(['e', 'E']) && written(literal).is_some_and(|w| w.contains('e') && Decimal::of(&w) == decimal)
    };
    !decimal.is_integer() || decimal.is_exact() || as_written()
}

/// Fifteen digits always fit into a double, and are the digits it is written by.
fn is_short(literal: &str) -> bool {
    literal.len() <= 15 && !literal.contains(['e', 'E'])
}

/// The number that a double makes of a literal, as RFC 8785 writes it.
fn written(literal: &str) -> Option<String> {
    let double = literal.parse::<f64>().ok().filter(|double| double.is_finite())?;
    Some(ryu_js::Buffer::new().format_finite(double).to_string())
}

/// What a literal says but for its sign: digits without zeros at either end, times a power of ten.
#[derive(PartialEq, Eq)]
struct Decimal {
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(literal: &str) -> Self {
        let literal = literal.trim_start_matches('-');
        let (mantissa, exponent) = literal.split_once(['e', 'E']).unwrap_or((literal, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let some = all.trim_end_matches('0');
        let digits = some.trim_start_matches('0').to_string();
        if digits.is_empty() {
            return Self { digits, exponent: 0 };
        }
        let far = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
        let exponent = exponent.parse().unwrap_or(far);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let exponent = exponent.saturating_add(count(all.len() - some.len())).saturating_sub(count(fraction.len()));
        Self { digits, exponent }
    }

    fn is_integer(&self) -> bool {
        self.exponent >= 0
    }

    /// Whether a double holds this integer exactly: `{:.0}` prints a double's exact value.
    fn is_exact(&self) -> bool {
        // No double has more than 309 places.
        let Some(zeros) = usize::try_from(self.exponent).ok().filter(|zeros| *zeros <= 309) else { return false };
        let integer = format!("{}{}", self.digits, "0".repeat(zeros));
        if integer.len() <= 15 {
            return true;
        }
        integer.parse::<f64>().is_ok_and(|double| double.is_finite() && format!("{double:.0}") == integer)
    }
}

/// Whether each number of a JSON text is kept as it is by its canonical form: an integer that a double holds exactly, or
/// a decimal of the digits that name its double. Of two texts of which this is true and whose forms are the
/// same, all numbers are the same.
///
/// ```
/// assert!(hapax::numbers_are_exact("[19.99, 0.1, 1e3]"));
/// assert!(!hapax::numbers_are_exact("12345678901234567.5"));
/// ```
#[must_use]
pub fn numbers_are_exact(text: &str) -> bool {
    literals(text).all(|literal| {
        if is_short(literal) {
            return true;
        }
        let decimal = Decimal::of(literal);
        if decimal.is_integer() {
            decimal.is_exact()
        } else {
            written(literal).is_some_and(|w| Decimal::of(&w) == decimal)
        }
    })
}

/// Whether two params are the same to hapax: `1`, `1.0` and `1e0` are, whatever
/// the order of members. Params without a canonical form are compared as they are.
///
/// ```
/// use serde_json::json;
/// assert!(hapax::params_are_equivalent(&json!({"a": 1, "b": 2}), &json!({"b": 2.0, "a": 1})));
/// assert!(!hapax::params_are_equivalent(&json!([1, 2]), &json!([2, 1])));
/// ```
#[doc(alias = "paramsAreEquivalent")]
#[must_use]
pub fn params_are_equivalent(a: &Value, b: &Value) -> bool {
    match (canonical_json(a), canonical_json(b)) {
        (Ok(a), Ok(b)) => a == b,
        (Err(_), Err(_)) => a == b,
        _ => false,
    }
}

/// The full SHA-256 of the canonical params.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of these params.
    ///
    /// ```
    /// let print = hapax::Fingerprint::of(&serde_json::json!({"name": "Task", "id": 123}))?;
    /// assert_eq!(print.short(), "1557ebfc75da3109");
    /// # Ok::<(), hapax::ParamsError>(())
    /// ```
    ///
    /// # Errors
    /// As [`canonical_json`].
    pub fn of(params: &Value) -> Result<Self, ParamsError> {
        Ok(Self(Sha256::digest(canonical_json(params)?.as_bytes()).into()))
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The fingerprint that has these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its first 16 hexadecimal digits: what a key holds of it.
    #[must_use]
    pub fn short(&self) -> String {
        self.0.iter().take(8).flat_map(|byte| hex(*byte)).map(char::from).collect()
    }
}

/// The two lower-case digits of a byte, without the formatting machinery: every record shows a fingerprint.
fn hex(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|nibble| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 })
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&hex(byte));
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = ParamsError;
    fn from_str(text: &str) -> Result<Self, ParamsError> {
        let bad = || ParamsError::BadFingerprint { text: text.chars().take(80).collect() };
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let pair =
                text.get(2 * i..2 * i + 2).filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which params identify an action.
///
/// ```
/// use hapax::Identity;
/// use serde_json::json;
/// let params = json!({"to": "ann", "timestamp": 17, "lines": [{"sku": 1, "note": "x"}]});
/// let chosen = Identity::exclude(["/timestamp", "/lines/0/note"])?;
/// assert_eq!(*chosen.select(&params), json!({"to": "ann", "lines": [{"sku": 1}]}));
/// let chosen = Identity::include(["/to", "/lines/0/sku", "/missing/too"])?;
/// assert_eq!(*chosen.select(&params), json!({"to": "ann", "lines": [{"sku": 1}]}));
/// # Ok::<(), hapax::ParamsError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// All of them.
    #[default]
    All,
    /// Only what these JSON pointers point at, each in its place; what a pointer
    /// does not find contributes nothing.
    Include(#[serde(deserialize_with = "read_pointers")] Vec<String>),
    /// All but what these JSON pointers point at.
    Exclude(#[serde(deserialize_with = "read_pointers")] Vec<String>),
}

impl Identity {
    /// Only what these JSON pointers (RFC 6901) point at.
    ///
    /// # Errors
    /// [`ParamsError::BadPointer`].
    pub fn include<S: Into<String>>(pointers: impl IntoIterator<Item = S>) -> Result<Self, ParamsError> {
        valid(pointers).map(Self::Include)
    }

    /// All but what these JSON pointers (RFC 6901) point at, for example `/timestamp`.
    ///
    /// # Errors
    /// [`ParamsError::BadPointer`].
    pub fn exclude<S: Into<String>>(pointers: impl IntoIterator<Item = S>) -> Result<Self, ParamsError> {
        valid(pointers).map(Self::Exclude)
    }

    /// The params that identify the action.
    ///
    /// Indices are those of `params`. Elements of an array keep their order;
    /// excluding one, or including some, closes the gap. A pointer that finds
    /// nothing changes nothing, so including `/a/b` leaves out an `a` without `b`.
    /// Params of which nothing is included are `{}`, `[]` or, where they are neither
    /// object nor array, `null`. The pointer `""` is the whole: excluded, it leaves `null`.
    #[must_use]
    pub fn select<'a>(&self, params: &'a Value) -> Cow<'a, Value> {
        match self {
            Self::All => Cow::Borrowed(params),
            Self::Exclude(pointers) if pointers.iter().all(|p| params.pointer(p).is_none()) => Cow::Borrowed(params),
            Self::Exclude(pointers) => {
                let paths: Vec<Vec<String>> = pointers.iter().map(|p| tokens(p)).collect();
                Cow::Owned(exclude(params, &paths.iter().map(Vec::as_slice).collect::<Vec<_>>()))
            }
            Self::Include(pointers) => {
                let paths: Vec<Vec<String>> = pointers.iter().map(|p| tokens(p)).collect();
                let chosen = include(params, &paths.iter().map(Vec::as_slice).collect::<Vec<_>>());
                Cow::Owned(chosen.unwrap_or_else(|| match params {
                    Value::Object(_) => Value::Object(Map::new()),
                    Value::Array(_) => Value::Array(Vec::new()),
                    _ => Value::Null,
                }))
            }
        }
    }
}

fn valid<S: Into<String>>(pointers: impl IntoIterator<Item = S>) -> Result<Vec<String>, ParamsError> {
    pointers
        .into_iter()
        .map(|p| {
            let pointer = p.into();
            let escapes = pointer.split('~').skip(1).all(|tail| tail.starts_with('0') || tail.starts_with('1'));
            let rooted = pointer.is_empty() || pointer.starts_with('/');
            if rooted && escapes { Ok(pointer) } else { Err(ParamsError::BadPointer { pointer }) }
        })
        .collect()
}

/// Configuration files hold pointers too: a slip there must not silently choose nothing.
fn read_pointers<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    valid(Vec::<String>::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn tokens(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|t| t.replace("~1", "/").replace("~0", "~")).collect()
}

/// The paths below the member `name`, and whether one of them ends there.
fn below<'a>(paths: &[&'a [String]], name: &str) -> (Vec<&'a [String]>, bool) {
    let deeper: Vec<&[String]> = paths
        .iter()
        .filter_map(|p| p.split_first().filter(|(first, _)| *first == name).map(|(_, rest)| rest))
        .collect();
    let ends = deeper.iter().any(|p| p.is_empty());
    (deeper, ends)
}

fn exclude(value: &Value, paths: &[&[String]]) -> Value {
    if paths.is_empty() {
        return value.clone();
    }
    if paths.iter().any(|p| p.is_empty()) {
        return Value::Null;
    }
    let keep = |name: &str, child: &Value| {
        let (deeper, ends) = below(paths, name);
        (!ends).then(|| exclude(child, &deeper))
    };
    match value {
        Value::Object(members) => Value::Object(
            members.iter().filter_map(|(name, child)| keep(name, child).map(|c| (name.clone(), c))).collect(),
        ),
        Value::Array(items) => {
            Value::Array(items.iter().enumerate().filter_map(|(i, child)| keep(&i.to_string(), child)).collect())
        }
        other => other.clone(),
    }
}

/// What the paths find in `value`; `None` when they find nothing.
fn include(value: &Value, paths: &[&[String]]) -> Option<Value> {
    if paths.iter().any(|p| p.is_empty()) {
        return Some(value.clone());
    }
    let keep = |name: &str, child: &Value| {
        let (deeper, _) = below(paths, name);
        if deeper.is_empty() { None } else { include(child, &deeper) }
    };
    match value {
        Value::Object(members) => {
            let kept: Map<_, _> =
                members.iter().filter_map(|(name, child)| keep(name, child).map(|c| (name.clone(), c))).collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept: Vec<_> = items.iter().enumerate().filter_map(|(i, child)| keep(&i.to_string(), child)).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_integer_that_a_double_would_round_is_an_error_not_a_hash() {
        for text in [
            "9007199254740993",
            "-9007199254740993",
            "18446744073709551615",
            "123456789012345678901234567890",
            "[{\"a\":9007199254740993}]",
            "9007199254740993.0",
            "9007199254740993e0",
            "900719925474099.3E1",
            "12345678901234567890.00",
        ] {
            let seen = parse_params(text).and_then(|v| canonical_json(&v));
            assert!(matches!(seen, Err(ParamsError::InexactInteger { .. })), "{text}: {seen:?}");
        }
        for (text, canonical) in [
            ("9007199254740992", "9007199254740992"),
            ("1152921504606846976", "1152921504606847000"),
            ("1e21", "1e+21"),
            ("1E30", "1e+30"),
            ("9007199254740992.0", "9007199254740992"),
            ("0e99999999999999999999", "0"),
            ("19.990", "19.99"),
            ("12345678901234567.5", "12345678901234568"),
            ("\"9007199254740993\"", "\"9007199254740993\""),
        ] {
            assert_eq!(parse_params(text).and_then(|v| canonical_json(&v)).as_deref(), Ok(canonical));
        }
        assert!(canonical_json(&json!(u64::MAX)).is_err());
        assert!(canonical_json(&json!(i64::MIN)).is_ok());
        assert!(canonical_json(&json!(i64::MAX)).is_err());
    }

    #[test]
    fn a_number_is_exact_when_its_form_says_the_same() {
        for text in ["0.1", "[19.990,-1e-7]", "0.30000000000000004", "9007199254740992.0", "\"0.10000000000000000001\""]
        {
            assert!(numbers_are_exact(text), "{text}");
        }
        for text in ["12345678901234567.5", "9007199254740993.0", "0.10000000000000000001", "1e-400", "1e30"] {
            assert!(!numbers_are_exact(text), "{text}");
        }
    }

    #[test]
    fn a_member_that_stands_twice_is_named() {
        assert_eq!(parse_params(r#"{"a":{"b":1,"b":1}}"#), Err(ParamsError::DuplicateKey { name: "b".into() }));
    }

    #[test]
    fn bad_text_is_refused_with_a_reason() {
        for text in ["", "{", "[1,]", "nul", "1 2", "\"\\ud800\""] {
            assert!(matches!(parse_params(text), Err(ParamsError::NotJson { .. })), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse_params(&deep).is_err());
        assert!(matches!(parse_params(&" ".repeat(MAX_PARAMS_BYTES + 1)), Err(ParamsError::TooLarge { .. })));
    }

    #[test]
    fn numbers_are_written_as_rfc_8785_appendix_b_has_them() {
        for (bits, text) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            assert_eq!(canonical_json(&json!(f64::from_bits(bits))).as_deref(), Ok(text), "{bits:x}");
        }
    }

    #[test]
    fn identity_leaves_out_or_picks_by_pointer() -> Result<(), ParamsError> {
        let params = json!({"a": 1, "t": 2, "list": [10, 11, 12], "deep": {"x": 1, "y": 2}, "s~/": 3});
        let without = Identity::exclude(["/t", "/list/1", "/deep/y", "/s~0~1", "/not/there"])?;
        assert_eq!(*without.select(&params), json!({"a": 1, "list": [10, 12], "deep": {"x": 1}}));
        let only = Identity::include(["/a", "/list/2", "/deep/x", "/a/below", "/gone"])?;
        assert_eq!(*only.select(&params), json!({"a": 1, "list": [12], "deep": {"x": 1}}));
        assert_eq!(*Identity::include(["/gone"])?.select(&params), json!({}));
        assert!(Identity::exclude(["t"]).is_err() && Identity::exclude(["/~2"]).is_err());
        Ok(())
    }

    #[test]
    fn a_fingerprint_reads_back_from_its_text() {
        let print = Fingerprint::of(&json!({"name": "Task", "id": 123}));
        assert_eq!(print.as_ref().map(Fingerprint::short).as_deref(), Ok("1557ebfc75da3109"));
        assert_eq!(print.clone().and_then(|p| p.to_string().parse()), print);
        assert!("zz".parse::<Fingerprint>().is_err() && "+1".repeat(32).parse::<Fingerprint>().is_err());
    }

    #[test]
    fn equal_numbers_are_equivalent_and_array_order_matters() {
        let parse = |t: &str| parse_params(t).unwrap_or_default();
        assert!(params_are_equivalent(&parse(r#"{"a":1,"b":2}"#), &parse(r#"{"b":2.0,"a":1e0}"#)));
        assert!(!params_are_equivalent(&parse("[1,2]"), &parse("[2,1]")));
    }

    #[test]
    fn a_form_as_deep_as_the_reader_takes_is_written_and_a_deeper_one_is_an_error() {
        let nest = |levels: usize| (0..levels).fold(Value::Null, |inner, _| json!([inner]));
        let text = canonical_json(&nest(127)).unwrap();
        assert_eq!(parse_params(&text), Ok(nest(127)));
        assert_eq!(canonical_json(&nest(128)), Err(ParamsError::TooDeep { limit: 127 }));
        assert!(parse_params(&format!("[{text}]")).is_err());
    }

    #[test]
    fn a_pointer_that_finds_nothing_contributes_nothing() {
        let deep = Identity::include(["/a/b", "/a/01", "/l/-"]).unwrap();
        for params in [json!({}), json!({"a": {}}), json!({"a": {"c": 1}}), json!({"a": [1, 2], "l": [3]})] {
            assert_eq!(*deep.select(&params), json!({}), "{params}");
        }
        assert_eq!(*deep.select(&json!([1])), json!([]));
        assert_eq!(*deep.select(&json!("text")), Value::Null);
        let absent = Identity::exclude(["/x", "/l/01"]).unwrap();
        let params = json!({"l": [1, 2]});
        assert!(matches!(absent.select(&params), Cow::Borrowed(_)));
    }

    #[test]
    fn indices_are_those_of_the_params_as_given() {
        let chosen = Identity::exclude(["/0", "/1"]).unwrap();
        assert_eq!(*chosen.select(&json!([1, 2, 3])), json!([3]));
        let chosen = Identity::include(["/2", "/0"]).unwrap();
        assert_eq!(*chosen.select(&json!([1, 2, 3])), json!([1, 3]));
    }

    #[test]
    fn a_bad_pointer_in_a_file_is_refused() {
        assert!(serde_json::from_str::<Identity>(r#"{"exclude":["timestamp"]}"#).is_err());
        assert!(serde_json::from_str::<Identity>(r#"{"include":["/a~2"]}"#).is_err());
        assert_eq!(
            serde_json::from_str::<Identity>(r#"{"exclude":["/a"]}"#).unwrap(),
            Identity::exclude(["/a"]).unwrap()
        );
    }

    #[test]
    fn a_double_is_read_as_the_nearest_one() {
        // Needs serde_json's float_roundtrip; without it the last bit, and so the hash, can differ from JavaScript's.
        for text in ["1.0715660391465826e-75", "-1.81996730402717e-179", "985.6906946328695", "3.0261999441573203e-52"]
        {
            assert_eq!(parse_params(text).unwrap().as_f64(), text.parse().ok(), "{text}");
        }
    }
}
