//! Joining in process: the callers of one key in one process share a flight.
//!
//! The first to enter leads: it alone talks to the store, waits for other
//! processes and runs the action. The others join and are told how it ended.
//! Invariant: a flight in the table has a live leader; the leader's guard takes
//! it out and tells the joiners, however the leader ends (return, panic,
//! dropped future).

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::recent::Entry;
use crate::store::StoreError;
use crate::{ActionError, Fingerprint, Key};

/// A hasher for keys, which bring their hash with them.
#[derive(Clone, Copy, Default)]
pub(crate) struct KeyHash(u64);

impl Hasher for KeyHash {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl BuildHasher for KeyHash {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

/// The precomputed hash of a key.
pub(crate) fn hash_of(key: &Key) -> u64 {
    let mut hasher = KeyHash(0);
    key.hash(&mut hasher);
    hasher.0
}

/// How a flight ended, for those who joined it.
#[derive(Clone, Debug)]
pub(crate) enum FlightEnd {
    /// A result or an error is on record.
    Recorded(Arc<Entry>),
    /// The action failed without effect; the key is free.
    Released(ActionError),
    /// The action failed without effect; the key is in doubt by an attempt before it.
    StillInDoubt(ActionError),
    /// The store failed before the action ran.
    Store(StoreError),
    /// Something else: look for yourself.
    Look,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) fingerprint: Fingerprint,
    /// When it began: what joiners say of the holder when they stop waiting.
    pub(crate) since: Instant,
    // A short critical section that never awaits: a plain lock is right.
    end: Mutex<Option<FlightEnd>>,
    notify: Notify,
}

impl Flight {
    /// Waits for the flight's end, at most this long.
    pub(crate) async fn ended(&self, at_most: Duration) -> Option<FlightEnd> {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before looking, so that an end in between is not missed.
        notified.as_mut().enable();
        if let Some(end) = self.end.lock().clone() {
            return Some(end);
        }
        let _ = tokio::time::timeout(at_most, notified).await;
        self.end.lock().clone()
    }
}

const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Key, Arc<Flight>, KeyHash>>;

/// The flights of this process.
#[derive(Debug)]
pub(crate) struct Flights {
    // Sharded: 512 callers of different keys must not queue on one lock.
    shards: Box<[Shard]>,
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash")
    }
}

pub(crate) enum Entered {
    Lead(FlightGuard),
    Join(Arc<Flight>),
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(KeyHash(0)))).collect() }
    }

    fn shard(&self, key: &Key) -> Option<&Shard> {
        // The table inside uses the low and the topmost bits; take others.
        self.shards.get((hash_of(key) >> 32) as usize % SHARDS)
    }

    pub(crate) fn enter(self: &Arc<Self>, key: &Key, fingerprint: Fingerprint, now: Instant) -> Entered {
        let Some(shard) = self.shard(key) else { unreachable!("the shard number is taken modulo their count") };
        let mut shard = shard.lock();
        match shard.entry_ref(key) {
            hashbrown::hash_map::EntryRef::Occupied(there) => Entered::Join(there.get().clone()),
            hashbrown::hash_map::EntryRef::Vacant(place) => {
                let flight = Arc::new(Flight { fingerprint, since: now, end: Mutex::new(None), notify: Notify::new() });
                place.insert(flight.clone());
                Entered::Lead(FlightGuard { flights: self.clone(), key: key.clone(), flight, end: None })
            }
        }
    }
}

/// The leader's side of a flight. Dropping it ends the flight.
#[derive(Debug)]
pub(crate) struct FlightGuard {
    flights: Arc<Flights>,
    key: Key,
    flight: Arc<Flight>,
    end: Option<FlightEnd>,
}

impl FlightGuard {
    /// Ends the flight for all who joined it.
    pub(crate) fn finish(mut self, end: FlightEnd) {
        self.end = Some(end);
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if let Some(shard) = self.flights.shard(&self.key) {
            shard.lock().remove(&self.key);
        }
        *self.flight.end.lock() = Some(self.end.take().unwrap_or(FlightEnd::Look));
        self.flight.notify.notify_waiters();
    }
}
