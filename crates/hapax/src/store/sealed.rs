//! A store that seals what may be secret before another store writes it:
//! results, params and error texts, by XChaCha20-Poly1305.
//!
//! Keys, fingerprints, action types, targets, signals, owners and tags stay
//! readable: they are what a store is searched by. (A fingerprint of params that
//! can be guessed tells whoever guesses them.) Invariants: a sealed text is bound
//! to its namespace, its key and its place in the record, so that none can be
//! moved to another; every text has a nonce of its own; whatever was written
//! before sealing began reads as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use super::{
    Around, Begin, Begun, End, Ended, Filter, Mark, Marked, Page, Removed, Settled, Settlement, Store, StoreError,
    StoreFuture,
};
use crate::{AttemptId, Json, Key, Record};

/// What a sealed text begins with.
const MARK: &str = "hapax-sealed:1:";
const NONCE: usize = 24;

/// The keys that seal and open, by their ids.
#[derive(Clone)]
pub struct KeyRing {
    current: String,
    keys: BTreeMap<String, XChaCha20Poly1305>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.current).field("ids", &self.keys.keys()).finish()
    }
}

impl KeyRing {
    /// A ring with one key, which seals and opens. The id is 1 to 32 letters,
    /// digits, dots, dashes or underscores.
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] for another id.
    pub fn new(id: &str, key: [u8; 32]) -> Result<Self, StoreError> {
        Self { current: id.into(), keys: BTreeMap::new() }.and(id, key)
    }

    /// With another key, which opens what it sealed before: to rotate, make a
    /// ring with the new key and add the old ones.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn and(mut self, id: &str, key: [u8; 32]) -> Result<Self, StoreError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !(1..=32).contains(&id.len()) || !id.bytes().all(plain) {
            return Err(StoreError::BadRequest {
                message: format!("key id {id:?} must be 1 to 32 letters, digits, dots, dashes or underscores"),
            });
        }
        self.keys.insert(id.into(), XChaCha20Poly1305::new(&key.into()));
        Ok(self)
    }

    fn seal(&self, text: &str, bound: &[u8]) -> Result<String, StoreError> {
        let failed = |what: String| StoreError::Unavailable { store: "encryption".into(), message: what };
        let cipher = self.keys.get(&self.current).ok_or_else(|| failed("the current key is missing".into()))?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|e| failed(format!("no random numbers: {e}")))?;
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: text.as_bytes(), aad: bound })
            .map_err(|_| failed("the text is too large to seal".into()))?;
        let bytes = [&nonce[..], &sealed].concat();
        Ok(format!("{MARK}{}:{}", self.current, STANDARD_NO_PAD.encode(bytes)))
    }

    /// The text, opened if it is sealed.
    fn open(&self, text: &str, bound: &[u8]) -> Result<Option<String>, String> {
        let Some(rest) = text.strip_prefix(MARK) else { return Ok(None) };
        let (id, body) = rest.split_once(':').ok_or("its seal is damaged")?;
        let cipher = self
            .keys
            .get(id)
            .ok_or_else(|| format!("it is sealed with the key {id:?}, which is not in the ring: add that key"))?;
        let bytes = STANDARD_NO_PAD.decode(body).map_err(|_| "its seal is damaged")?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>().ok_or("its seal is damaged")?;
        let plain = cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: bound })
            .map_err(|_| format!("its seal does not open with the key {id:?}: it was changed, moved, or sealed with another key of that id"))?;
        String::from_utf8(plain).map(Some).map_err(|_| "what was sealed is no text".into())
    }
}

/// The id of the key that a text is sealed with, if it is: of an error, or of params or a result as JSON.
#[must_use]
pub fn sealed_with(text: &str) -> Option<&str> {
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    text.strip_prefix(MARK)?.split_once(':').map(|(id, _)| id)
}

/// The place that a text is bound to.
fn bound(namespace: &str, key: &Key, field: &str) -> Vec<u8> {
    // A namespace holds no NUL, and neither does a key.
    [namespace, key.as_str(), field].join("\0").into_bytes()
}

/// Seals what another store keeps.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use std::sync::Arc;
/// use hapax::Hapax;
/// use hapax::store::sealed::{KeyRing, SealedStore};
///
/// let ring = KeyRing::new("2026-11", [7; 32])?;
/// let store = SealedStore::new(hapax::store::open("memory:").await?, ring);
/// let hapax = Hapax::builder().store(Arc::new(store)).build().await?;
/// # Ok::<(), hapax::Error>(()) }).map_err(|e| e.to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SealedStore {
    store: Arc<dyn Store>,
    ring: Arc<KeyRing>,
}

impl SealedStore {
    /// Seals what `store` writes with the ring's current key.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, ring: KeyRing) -> Self {
        Self { store, ring: Arc::new(ring) }
    }

    fn seal_json(&self, json: &Json, namespace: &str, key: &Key, field: &str) -> Result<Json, StoreError> {
        let sealed = self.ring.seal(json.as_str(), &bound(namespace, key, field))?;
        Json::of(&sealed).map_err(|e| StoreError::BadRequest { message: e.to_string() })
    }

    fn open_json(&self, json: &Json, record: &Record, field: &str) -> Result<Option<Json>, StoreError> {
        // A sealed text is a JSON string without escapes.
        let Some(text) = json.as_str().strip_prefix('"').and_then(|t| t.strip_suffix('"')) else { return Ok(None) };
        let opened = self.ring.open(text, &bound(&record.namespace, &record.key, field));
        let damaged = |message: String| StoreError::Damaged {
            store: self.store.location().into(),
            message: format!("the {field} of key {} cannot be opened: {message}", record.key),
        };
        match opened.map_err(damaged)? {
            None => Ok(None),
            Some(plain) => Json::parse(&plain).map(Some).map_err(|e| damaged(e.to_string())),
        }
    }

    fn open_result(&self, record: &mut Record) -> Result<(), StoreError> {
        if let Some(result) = &record.result
            && let Some(plain) = self.open_json(result, record, "result")?
        {
            record.result = Some(plain);
        }
        Ok(())
    }

    fn open_params(&self, record: &mut Record) -> Result<(), StoreError> {
        if let Some(params) = &record.params
            && let Some(plain) = self.open_json(params, record, "params")?
        {
            record.params = Some(plain);
        }
        Ok(())
    }

    fn open_error(&self, record: &mut Record) -> Result<(), StoreError> {
        if let Some(error) = &record.error {
            let opened = self.ring.open(error, &bound(&record.namespace, &record.key, "error"));
            let opened = opened.map_err(|message| StoreError::Damaged {
                store: self.store.location().into(),
                message: format!("the error of key {} cannot be opened: {message}", record.key),
            })?;
            if let Some(plain) = opened {
                record.error = Some(plain);
            }
        }
        Ok(())
    }

    fn open(&self, record: &mut Record) -> Result<(), StoreError> {
        self.open_result(record)?;
        self.open_params(record)?;
        self.open_error(record)
    }

    /// What opens, opened; the rest is left out, and named where an error's text stands. For a record of which nothing
    /// is at stake: it is listed, or what was asked of it has been done.
    fn open_what_opens(&self, record: &mut Record) {
        if self.open_result(record).is_err() {
            record.result = None;
        }
        if self.open_params(record).is_err() {
            record.params = None;
        }
        if let Err(error) = self.open_error(record) {
            record.error = Some(error.to_string());
        }
    }

    fn opened_as_it_may(&self, mut record: Box<Record>) -> Box<Record> {
        self.open_what_opens(&mut record);
        record
    }

    fn opened(&self, mut record: Box<Record>) -> Result<Box<Record>, StoreError> {
        self.open(&mut record)?;
        Ok(record)
    }
}

impl Around for SealedStore {
    fn within(&self) -> &dyn Store {
        &*self.store
    }

    fn begin(&self, mut begin: Begin) -> StoreFuture<'_, Begun> {
        Box::pin(async move {
            if let Some(params) = &begin.params {
                begin.params = Some(self.seal_json(params, &begin.namespace, &begin.key, "params")?);
            }
            Ok(match self.store.begin(begin).await? {
                Begun::Exists(record) => Begun::Exists(self.opened(record)?),
                started => started,
            })
        })
    }

    fn end(&self, namespace: Arc<str>, key: Key, attempt: AttemptId, end: End) -> StoreFuture<'_, Ended> {
        Box::pin(async move {
            let place = |field| bound(&namespace, &key, field);
            let end = match end {
                End::Complete { result, ttl, duration } => {
                    End::Complete { result: self.seal_json(&result, &namespace, &key, "result")?, ttl, duration }
                }
                End::Fail { error, ttl, duration } => {
                    End::Fail { error: self.ring.seal(&error, &place("error"))?, ttl, duration }
                }
                End::Doubt { reason } => End::Doubt { reason: self.ring.seal(&reason, &place("error"))? },
                End::Release => End::Release,
            };
            self.store.end(namespace.clone(), key.clone(), attempt, end).await
        })
    }

    fn settle(
        &self,
        namespace: Arc<str>,
        key: Key,
        attempt: Option<AttemptId>,
        settlement: Settlement,
    ) -> StoreFuture<'_, Settled> {
        Box::pin(async move {
            let settlement = match settlement {
                Settlement::Happened { result, ttl } => {
                    Settlement::Happened { result: self.seal_json(&result, &namespace, &key, "result")?, ttl }
                }
                Settlement::NotHappened => Settlement::NotHappened,
            };
            Ok(match self.store.settle(namespace, key, attempt, settlement).await? {
                // It is done: what cannot be read of it does not undo that.
                Settled::Done(record) => Settled::Done(record.map(|r| self.opened_as_it_may(r))),
                Settled::NotInDoubt(record) => Settled::NotInDoubt(record.map(|r| self.opened(r)).transpose()?),
            })
        })
    }

    fn mark(&self, mut mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            mark.result = self.seal_json(&mark.result, &mark.namespace, &mark.key, "result")?;
            if let Some(params) = &mark.params {
                mark.params = Some(self.seal_json(params, &mark.namespace, &mark.key, "params")?);
            }
            Ok(match self.store.mark(mark).await? {
                Marked::Recorded { record, expired, evicted } => {
                    Marked::Recorded { record: self.opened_as_it_may(record), expired, evicted }
                }
                Marked::Exists(record) => Marked::Exists(self.opened(record)?),
            })
        })
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Box::pin(async move { self.store.get(namespace, key).await?.map(|r| self.opened(r)).transpose() })
    }

    fn remove(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Removed> {
        Box::pin(async move {
            Ok(match self.store.remove(namespace, key).await? {
                Removed::Kept(record) => Removed::Kept(self.opened(record)?),
                other => other,
            })
        })
    }

    fn query(
        &self,
        namespace: Arc<str>,
        filter: Filter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            let mut page = self.store.query(namespace, filter, cursor, limit).await?;
            // One record whose key is missing must not hide all the others.
            page.records.iter_mut().for_each(|record| self.open_what_opens(record));
            Ok(page)
        })
    }
}
