//! Results that are sealed at rest: read with the keys of the configuration, or named as what they are.
//!
//! Invariant: a sealed text is never shown or replayed as if it were the result. Without keys it is an error that says
//! which key is missing and where it belongs; what needs no result (`ls`, `rm`, `stats`, `top`) works all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use hapax::store::sealed::{SealedStore, sealed_with};
use hapax::store::{Around, Begin, Begun, Mark, Marked, Settled, Settlement, Store, StoreError, StoreFuture};
use hapax::{AttemptId, Key, Record};
use serde::Serialize;

use crate::failure::Failure;
use crate::settings::Settings;

/// The store, with the keys that are configured, or without any.
pub fn around(store: Arc<dyn Store>, settings: &Settings) -> Result<Arc<dyn Store>, Failure> {
    Ok(match &settings.encryption.value {
        Some(encryption) => Arc::new(SealedStore::new(store, encryption.ring()?)),
        None => Arc::new(Keyless(store)),
    })
}

/// A record of a list: what is sealed in it is left out and named, each field with the id of its key.
#[derive(Serialize)]
pub struct Listed {
    #[serde(flatten)]
    record: Record,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sealed: BTreeMap<&'static str, String>,
}

impl Listed {
    pub fn new(mut record: Record) -> Self {
        let sealed: BTreeMap<_, _> = sealed_in(&record).map(|(what, id)| (what, id.to_string())).collect();
        record.result = record.result.filter(|_| !sealed.contains_key("result"));
        record.error = record.error.filter(|_| !sealed.contains_key("error"));
        record.params = record.params.filter(|_| !sealed.contains_key("params"));
        Self { record, sealed }
    }
}

/// What of the record is sealed, and with which key.
fn sealed_in(record: &Record) -> impl Iterator<Item = (&'static str, &str)> {
    let texts = [
        ("result", record.result.as_ref().map(|r| r.as_str())),
        ("error", record.error.as_deref()),
        ("params", record.params.as_ref().map(|p| p.as_str())),
    ];
    texts.into_iter().filter_map(|(what, text)| Some((what, sealed_with(text?)?)))
}

fn unsealed(record: &Record) -> Result<(), StoreError> {
    let Some((what, id)) = sealed_in(record).next() else { return Ok(()) };
    Err(StoreError::BadRequest {
        message: format!(
            "the {what} of key {} is sealed with the encryption key {id:?}, and none is configured here: name its file in \
             the configuration (HAPAX_CONFIG, --config) under [encryption]; `hapax config --help` shows how",
            record.key
        ),
    })
}

/// A store for which there are no keys.
#[derive(Debug)]
struct Keyless(Arc<dyn Store>);

/// What is recorded must be readable; of what is live or in doubt, what cannot be read is left out.
fn readable(mut record: Box<Record>) -> Result<Box<Record>, StoreError> {
    if record.state.is_recorded() {
        return unsealed(&record).map(|()| record);
    }
    record.params = record.params.filter(|params| sealed_with(params.as_str()).is_none());
    if let Some(id) = record.error.as_deref().and_then(sealed_with) {
        record.error = Some(format!("why is sealed with the encryption key {id:?}"));
    }
    Ok(record)
}

impl Around for Keyless {
    fn within(&self) -> &dyn Store {
        &*self.0
    }

    fn begin(&self, begin: Begin) -> StoreFuture<'_, Begun> {
        Box::pin(async move {
            Ok(match self.0.begin(begin).await? {
                Begun::Exists(record) => Begun::Exists(readable(record)?),
                started => started,
            })
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
            let settled = self.0.settle(namespace, key, attempt, settlement).await?;
            // It is done: what cannot be read of it does not undo that.
            Ok(match settled {
                Settled::Done(Some(record)) => Settled::Done(Some(Box::new(Record { params: None, ..*record }))),
                settled => settled,
            })
        })
    }

    fn mark(&self, mark: Mark) -> StoreFuture<'_, Marked> {
        Box::pin(async move {
            Ok(match self.0.mark(mark).await? {
                Marked::Exists(record) => Marked::Exists(readable(record)?),
                recorded => recorded,
            })
        })
    }

    fn get(&self, namespace: Arc<str>, key: Key) -> StoreFuture<'_, Option<Box<Record>>> {
        Box::pin(async move { self.0.get(namespace, key).await?.map(readable).transpose() })
    }
}
