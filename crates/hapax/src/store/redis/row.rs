//! A record as Redis holds it: a string, and entries of its bucket's index.
//!
//! The string is a head of fixed width that the scripts patch, then three parts: what never changes (JSON), the owner
//! (JSON), and the body (the result, the error, or the reason of a doubt). Times are decimal digits of fixed width, so
//! that the scripts compare them as strings and a person can read them with `redis-cli`.
//!
//! Invariants: a lapsed lease reads as in doubt and an expired record as absent, by the time of the server that
//! answered; whatever else is found in a record's place is an error, never a panic and never an absent key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{AttemptId, Fingerprint, Json, Key, Owner, Record, State, Timestamp};

/// The width of the head.
const HEAD: usize = 189;

/// What stands in the place of a duration that is not known.
pub(super) const NO_DURATION: &str = "----------------";

/// A part of a namespace's records: the names of its keys, which share a hash tag.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Unique within the process: the driver's lane.
    pub(super) lane: usize,
    pub(super) slot: u16,
    pub(super) index: String,
    pub(super) epoch: String,
    /// The ids of records that are not in the index yet.
    pub(super) log: String,
    /// How many of them were removed.
    pub(super) removals: String,
    /// When it was last tidied up, in milliseconds of a cheap clock.
    pub(super) tidied: AtomicI64,
    /// Expired records that were found meanwhile, and nobody was told of.
    pub(super) expired: AtomicU64,
    records: String,
}

static LANES: AtomicU32 = AtomicU32::new(0);

impl Bucket {
    /// The expired records that nobody was told of, which now somebody is.
    fn take_expired(&self) -> u64 {
        if self.expired.load(Ordering::Relaxed) == 0 { 0 } else { self.expired.swap(0, Ordering::AcqRel) }
    }

    /// The key of the record with this id.
    pub(super) fn record(&self, id: &str) -> String {
        let mut name = String::with_capacity(self.records.len() + id.len());
        name.push_str(&self.records);
        name.push_str(id);
        name
    }
}

/// A namespace: the names of its keys.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) name: Arc<str>,
    pub(super) buckets: Vec<Arc<Bucket>>,
    /// The counters' key, and the prefix of the marks by which a repeated count is known; one slot.
    pub(super) counters: String,
    pub(super) counted: String,
    pub(super) counters_slot: u16,
    /// Whether this process has written it down for sweeps.
    registered: AtomicBool,
}

impl Space {
    /// Its records are divided into so many buckets, each in one slot of a cluster; another number makes every record
    /// unfindable.
    pub(super) fn new(prefix: &str, name: Arc<str>, buckets: usize) -> Self {
        let tag = hex(&Sha256::digest(name.as_bytes()), 32);
        let buckets = (0..buckets).map(|number| {
            let tag = format!("{tag}:{number}");
            let base = format!("{prefix}:{{{tag}}}:");
            Arc::new(Bucket {
                lane: LANES.fetch_add(1, Ordering::Relaxed) as usize,
                slot: slot(tag.as_bytes()),
                index: format!("{base}x"),
                epoch: format!("{base}e"),
                log: format!("{base}l"),
                removals: format!("{base}d"),
                tidied: AtomicI64::new(0),
                expired: AtomicU64::new(0),
                records: format!("{base}r:"),
            })
        });
        Self {
            buckets: buckets.collect(),
            counters: format!("{prefix}:{{{tag}}}:c"),
            counted: format!("{prefix}:{{{tag}}}:t:"),
            counters_slot: slot(tag.as_bytes()),
            registered: AtomicBool::new(false),
            name,
        }
    }

    /// The expired records that nobody was told of, which now somebody is.
    pub(super) fn take_expired(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.take_expired()).sum()
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    pub(super) fn set_registered(&self) {
        self.registered.store(true, Ordering::Release);
    }

    /// Where a key's record lies: its bucket and its id there.
    pub(super) fn place(&self, key: &Key) -> Option<(&Arc<Bucket>, String)> {
        let digest = Sha256::digest(key.as_str().as_bytes());
        let number = digest.first().map_or(0, |b| usize::from(*b) % self.buckets.len().max(1));
        Some((self.buckets.get(number)?, hex(&digest, 32)))
    }
}

/// The first `digits` lower-case hex digits of bytes.
pub(super) fn hex(bytes: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(digits);
    for byte in bytes.iter().take(digits / 2) {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0')));
        }
    }
    text
}

/// The cluster slot of a hash tag: CRC16 (XMODEM) modulo 16384, as the cluster specification says.
pub(super) fn slot(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0u16, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
        )
    });
    crc % 16384
}

/// What an index holds in place of a text.
pub(super) fn tag(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()), 12)
}

/// The tags of action, target and signal, one after the other; zeros for no signal.
pub(super) fn tags(action: &str, target: &str, signal: Option<&str>) -> String {
    let mut tags = tag(action);
    tags.push_str(&tag(target));
    match signal {
        Some(signal) => tags.push_str(&tag(signal)),
        None => tags.push_str("000000000000"),
    }
    tags
}

/// An attempt's id as it stands in a record.
pub(super) fn attempt_text(attempt: AttemptId) -> String {
    hex(attempt.as_bytes(), 32)
}

/// What never changes in a record.
#[derive(Serialize)]
pub(super) struct Fixed<'a> {
    pub(super) k: &'a Key,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) s: Option<&'a str>,
    pub(super) a: &'a str,
    pub(super) t: &'a str,
    pub(super) f: Fingerprint,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) g: &'a BTreeMap<String, String>,
}

impl Fixed<'_> {
    /// Its JSON, with the params at the end as they are.
    pub(super) fn encode(&self, params: Option<&Json>) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(self)?;
        if let Some(params) = params {
            bytes.pop();
            bytes.extend_from_slice(b",\"p\":");
            bytes.extend_from_slice(params.as_str().as_bytes());
            bytes.push(b'}');
        }
        Ok(bytes)
    }
}

/// A new record from the two lengths on.
pub(super) fn rest(tags: &str, fixed: &[u8], owner: &[u8]) -> Vec<u8> {
    let mut rest = format!("{:08}{:06}{tags}", fixed.len(), owner.len()).into_bytes();
    rest.reserve(fixed.len() + owner.len());
    rest.extend_from_slice(fixed);
    rest.extend_from_slice(owner);
    rest
}

#[derive(Deserialize)]
struct Kept {
    k: Key,
    #[serde(default)]
    s: Option<String>,
    a: String,
    t: String,
    f: Fingerprint,
    #[serde(default)]
    g: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "params")]
    p: Option<Box<RawValue>>,
}

/// Params that are there, also when they are `null`.
fn params<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(d).map(Some)
}

/// A record, and its place in the order of age.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: Box<Record>,
    pub(super) place: String,
}

/// Reads what a script answered: the server's time in 15 digits, then the record.
pub(super) fn read(namespace: &str, answer: &[u8]) -> Result<Row, String> {
    decode(namespace, answer).ok_or_else(|| "what stands under a record's key is none of hapax's records".to_string())
}

fn decode(namespace: &str, answer: &[u8]) -> Option<Row> {
    let (now, value) = answer.split_at_checked(15)?;
    let now = digits(now)?;
    let text = |from: usize, to: usize| std::str::from_utf8(value.get(from..to)?).ok();
    let number = |from: usize, to: usize| digits(value.get(from..to)?);
    let until = number(52, 67)?;
    let (fixed_end, owner_end) = {
        let fixed_end = HEAD.checked_add(usize::try_from(number(139, 147)?).ok()?)?;
        (fixed_end, fixed_end.checked_add(usize::try_from(number(147, 153)?).ok()?)?)
    };
    if value.first() != Some(&b'2') {
        return None;
    }
    let kept: Kept = serde_json::from_slice(value.get(HEAD..fixed_end)?).ok()?;
    let owner: Owner = serde_json::from_slice(value.get(fixed_end..owner_end)?).ok()?;
    let body = std::str::from_utf8(value.get(owner_end..)?).ok()?;
    let state = match value.get(1)? {
        b'P' if until > now => State::InProgress,
        b'P' | b'D' => State::InDoubt,
        b'C' => State::Completed,
        b'F' => State::Failed,
        _ => return None,
    };
    let time = |millis: u64| i64::try_from(millis).ok().map(Timestamp::from_millis);
    let error = match state {
        // A colon begins the reason that was given, which may be empty.
        State::InDoubt => Some(body.strip_prefix(':').unwrap_or("its lease lapsed without a heartbeat").to_string()),
        State::Failed => Some(body.to_string()),
        State::InProgress | State::Completed => None,
    };
    let record = Record {
        key: kept.k,
        namespace: namespace.into(),
        signal_id: kept.s,
        action_type: kept.a,
        target: kept.t,
        params: kept.p.map(|p| Json::trusted(p.get())),
        fingerprint: kept.f,
        state,
        result: if state == State::Completed { Some(Json::parse(body).ok()?) } else { None },
        error,
        attempt_id: text(2, 34)?.parse().ok()?,
        attempts: number(113, 123)?,
        attempt_count: number(123, 139)?,
        started_at: time(number(98, 113)?)?,
        executed_at: if state.is_recorded() { time(number(67, 82)?) } else { None },
        expires_at: if state.is_recorded() && until > 0 { time(until) } else { None },
        lease_until: if state == State::InProgress { time(until) } else { None },
        duration_ms: number(36, 52),
        owner,
        tags: kept.g,
    };
    Some(Row { record: Box::new(record), place: text(82, 98)?.into() })
}

/// A decimal number of fixed width; none when it is anything else.
pub(super) fn digits(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        // The specification's own example, and keys whose slots `CLUSTER KEYSLOT` gave.
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"user1000"), 3443);
    }

    #[test]
    fn keys_of_a_bucket_share_their_hash_tag_and_namespaces_never_meet() {
        let (one, two) = (Space::new("hapax", "a".into(), 16), Space::new("hapax", "a:1".into(), 16));
        for bucket in &one.buckets {
            let tag = |key: &str| key.split(['{', '}']).nth(1).map(str::to_string);
            assert_eq!(tag(&bucket.index), tag(&bucket.record("00")));
            for other in [&bucket.epoch, &bucket.log, &bucket.removals] {
                assert_eq!(tag(&bucket.index), tag(other));
            }
            assert_eq!(Some(bucket.slot), tag(&bucket.index).map(|t| slot(t.as_bytes())));
            assert!(two.buckets.iter().all(|other| other.index != bucket.index));
        }
    }

    #[test]
    fn whatever_stands_in_a_records_place_is_an_error_and_no_panic() {
        for bytes in [&b""[..], b"x", b"000000000000001hello", &[0xff; 400], &[b'1'; 400], &[b'9'; 300]] {
            assert!(read("n", bytes).is_err());
        }
        let answer = |body: &str| {
            let fixed = format!(r#"{{"k":"k","a":"a","t":"t","f":"{}"}}"#, "ab".repeat(32));
            let owner = r#"{"host":"h","pid":1,"label":null}"#;
            let head = format!("2C{}{:0105}{:08}{:06}", "01".repeat(16), 0, fixed.len(), owner.len());
            format!("{:015}{head:0<HEAD$}{fixed}{owner}{body}", 1)
        };
        assert!(read("n", answer("{}").as_bytes()).is_ok());
        assert!(read("n", answer("{").as_bytes()).is_err(), "a result that is not JSON");
    }
}
