//! Noticing what other processes do: the epoch, and the end of attempts that callers here wait for.
//!
//! The epoch is polled while it is asked for: each bucket counts its removals in the same step that makes them. A waiter
//! marks the record it waits for, and whatever ends that attempt publishes the record's key; one subscription of the
//! store hears it. Messages get lost, so waiters look for themselves as well, and when the lease runs out. What is made of
//! what is seen is [`shared`](crate::store::shared)'s.
//!
//! Invariant: the epoch changes when another server, or the same one after a restart, may be answering.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::error::Failure;
use super::node::pause;
use super::op::{self, Op, Resend};
use super::options::Mode;
use super::row::{Bucket, Space};
use super::topology::Request;
use super::{Shared, query, startup};
use crate::store::StoreError;
use crate::store::shared::{EPOCH_EVERY, Trust, Waiters, coarse};
use crate::{AttemptId, Key};

/// The most namespaces that are polled; with more, nothing is vouched for.
const MAX_POLLED: usize = 64;
/// With so few, those of other processes are polled as well.
const MAX_FOREIGN: usize = 4;
/// How often a waiter looks while the subscription stands, and while it does not.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_DEAF: Duration = Duration::from_millis(100);
/// How long the subscription may be silent before it is tried, and how long it stays without waiters.
const SILENCE: Duration = Duration::from_secs(5);
const UNUSED: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Watch {
    trust: Trust,
    /// By the names of records.
    waiters: Waiters<String>,
    is_polling: AtomicBool,
    is_listening: AtomicBool,
    /// Whether the subscription stands.
    hears: AtomicBool,
    closed: AtomicBool,
    /// What the last poll found: the topology's generation, and the buckets' epochs by lane.
    seen: Mutex<(u64, HashMap<usize, String>)>,
}

impl Watch {
    /// Something recorded has gone before its time, by this process.
    pub(super) fn raise(&self) {
        self.trust.raise();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.wake_all();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// The epoch, if it can be vouched for.
#[inline]
pub(super) fn epoch(shared: &Arc<Shared>) -> Option<u64> {
    let epoch = shared.watch.trust.epoch();
    if epoch.is_none() {
        poke(shared);
    }
    epoch
}

#[cold]
fn poke(shared: &Arc<Shared>) {
    let watch = &shared.watch;
    if !watch.is_closed() && !watch.is_polling.load(Ordering::Acquire) && !watch.is_polling.swap(true, Ordering::AcqRel)
    {
        shared.driver.handle.spawn(poll(Arc::downgrade(shared)));
    }
}

async fn poll(shared: Weak<Shared>) {
    let mut failed = false;
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            let watch = &shared.watch;
            if watch.is_closed() {
                return;
            }
            if !watch.trust.is_wanted() {
                watch.is_polling.store(false, Ordering::Release);
                return;
            }
            let began = coarse();
            match look(&shared).await {
                Ok(Looked::All) => {
                    watch.trust.confirm(began);
                    failed = false;
                }
                Ok(Looked::TooMany) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        tracing::debug!(store = %shared.topology.location, %error, "what other processes remove cannot be seen");
                    }
                }
            }
        }
        tokio::time::sleep(EPOCH_EVERY).await;
    }
}

enum Looked {
    All,
    TooMany,
}

/// Compares the epochs with those of the last time.
async fn look(shared: &Arc<Shared>) -> Result<Looked, StoreError> {
    let watch = &shared.watch;
    let mut spaces = shared.registered();
    if spaces.len() > MAX_POLLED {
        return Ok(Looked::TooMany);
    }
    let generation = shared.topology.generation();
    if spaces.len() < MAX_FOREIGN {
        // Nothing of a namespace that was not used here can be remembered here, but where it costs little it is vouched
        // for as well.
        let all = query::namespaces(shared).await?;
        if all.len() <= MAX_FOREIGN {
            spaces = all;
        }
    }
    let mut differs = false;
    let mut layout = None;
    for space in &spaces {
        let (epochs, found) = epochs(shared, space, layout.is_none()).await?;
        layout = layout.or(found);
        let mut seen = watch.seen.lock();
        for (lane, epoch) in epochs {
            // What was never seen counts as never raised.
            let before = seen.1.insert(lane, epoch.clone());
            differs |= before.unwrap_or_default() != epoch;
        }
    }
    differs |= std::mem::replace(&mut watch.seen.lock().0, generation) != generation;
    if layout.is_some_and(|found| found != *shared.layout.lock()) {
        startup::look_again(shared).await?;
        differs = true;
    }
    if differs {
        watch.raise();
    }
    Ok(Looked::All)
}

/// A bucket's lane and its epoch.
type Epoch = (usize, String);

/// The epochs of a namespace's buckets, and the layout that is written down, if that is wanted: on one server in the same
/// request, in a cluster beside them.
async fn epochs(
    shared: &Arc<Shared>,
    space: &Arc<Space>,
    wants_layout: bool,
) -> Result<(Vec<Epoch>, Option<String>), StoreError> {
    if !matches!(shared.topology.options().mode, Mode::Cluster(_)) {
        return get(shared, &space.buckets, wants_layout.then(|| startup::layout_key(shared))).await;
    }
    let epochs = query::each(shared, space.buckets.iter().cloned(), |shared, bucket| async move {
        let (mut epochs, _) = get(&shared, std::slice::from_ref(&bucket), None).await?;
        Ok(epochs.pop().unwrap_or((bucket.lane, String::new())))
    });
    if !wants_layout {
        return Ok((epochs.await?, None));
    }
    let (epochs, layout) = tokio::join!(epochs, startup::found_layout(shared, shared.topology.command_timeout()));
    Ok((epochs?, Some(layout?)))
}

/// The epochs of buckets that lie on one server, and what stands under another key there.
async fn get(
    shared: &Shared,
    buckets: &[Arc<Bucket>],
    other: Option<String>,
) -> Result<(Vec<Epoch>, Option<String>), StoreError> {
    let Some(slot) = buckets.first().map(|b| b.slot) else { return Ok((Vec::new(), None)) };
    let make = |_| {
        let mut cmd = redis::cmd("MGET");
        for bucket in buckets {
            cmd.arg(&bucket.epoch);
        }
        cmd.arg(&other);
        cmd
    };
    let request = Request { slot, is_write: false, resend: Resend::Safe, make: &make };
    let Value::Array(found) = shared.topology.exec(&request).await? else {
        return Err(shared.odd("the server gave no epochs".into()));
    };
    let mut texts: Vec<String> = found.iter().map(query::text).collect();
    let other = if other.is_some() { texts.pop() } else { None };
    Ok((buckets.iter().map(|b| b.lane).zip(texts).collect(), other))
}

/// Waits until the key may no longer be in progress by `attempt`.
pub(super) async fn changed(
    shared: &Arc<Shared>,
    space: &Space,
    key: &Key,
    attempt: AttemptId,
    at_most: Duration,
) -> Result<(), StoreError> {
    let watch = &shared.watch;
    let deadline = Instant::now() + at_most.min(Duration::from_secs(86_400));
    let (bucket, record) = shared.place(space, key)?;
    let Some(waiting) = watch.waiters.register(record.clone(), attempt) else {
        tokio::time::sleep(at_most.min(LOOK_DEAF)).await;
        return Ok(());
    };
    listen(shared);
    loop {
        let answer = shared.driver.run(bucket, Op::watch(record.clone(), attempt)).await?;
        let Some(lease) = op::watched(&answer).map_err(|m| shared.odd(m))? else { return Ok(()) };
        let look = if watch.hears.load(Ordering::Acquire) { LOOK_EVERY } else { LOOK_DEAF };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || watch.is_closed() {
            return Ok(());
        }
        let nap = left.min(look).min(lease + Duration::from_millis(1));
        if tokio::time::timeout(nap, waiting.woken()).await.is_ok() {
            return Ok(());
        }
    }
}

fn listen(shared: &Arc<Shared>) {
    let watch = &shared.watch;
    if !watch.is_listening.load(Ordering::Acquire) && !watch.is_listening.swap(true, Ordering::AcqRel) {
        let weak = Arc::downgrade(shared);
        shared.driver.handle.spawn(async move {
            let mut failures = 0;
            loop {
                let Some(shared) = weak.upgrade() else { return };
                let heard = hear(shared, &weak).await;
                let Some(shared) = weak.upgrade() else { return };
                shared.watch.hears.store(false, Ordering::Release);
                match heard {
                    Heard::Enough => {
                        shared.watch.is_listening.store(false, Ordering::Release);
                        return;
                    }
                    Heard::Lost => failures = 1,
                    Heard::Failed(failure) => {
                        failures += 1;
                        tracing::debug!(store = %shared.topology.location, ?failure, "no subscription; waiters look for themselves");
                    }
                }
                drop(shared);
                tokio::time::sleep(pause(failures) * if failures > 5 { 10 } else { 1 }).await;
            }
        });
    }
}

/// Why a subscription ended.
enum Heard {
    Enough,
    Lost,
    Failed(Failure),
}

async fn hear(shared: Arc<Shared>, weak: &Weak<Shared>) -> Heard {
    let topology = shared.topology.clone();
    let channel = format!("{}:wake", shared.prefix);
    let (pushed, mut pushes) = mpsc::unbounded_channel::<PushInfo>();
    let subscribed = async {
        let node = topology.node_for(0, Instant::now() + topology.command_timeout()).await?;
        let config = AsyncConnectionConfig::new().set_push_sender(pushed);
        let mut connection = topology.dial().connect(&node.address, ProtocolVersion::RESP3, config).await?;
        let subscribing = tokio::time::timeout(topology.command_timeout(), connection.subscribe(&channel)).await;
        match subscribing {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(error)) => Err(super::error::connecting(&node.address.to_string(), &error)),
            Err(_) => Err(Failure::Unsent("the subscription was not answered".into())),
        }
    };
    let mut connection = match subscribed.await {
        Ok(connection) => connection,
        Err(failure) => return Heard::Failed(failure),
    };
    shared.watch.hears.store(true, Ordering::Release);
    // The task must not keep the store alive.
    drop(shared);
    let mut used = Instant::now();
    loop {
        let push = tokio::time::timeout(SILENCE, pushes.recv()).await;
        let Some(shared) = weak.upgrade() else { return Heard::Enough };
        if shared.watch.is_closed() {
            return Heard::Enough;
        }
        if shared.watch.waiters.any() {
            used = Instant::now();
        } else if used.elapsed() > UNUSED {
            return Heard::Enough;
        }
        match push {
            Ok(Some(push)) if push.kind == PushKind::Message => {
                if let Some(Value::BulkString(record)) = push.data.get(1)
                    && let Ok(record) = String::from_utf8(record.clone())
                {
                    shared.watch.waiters.wake(&record);
                }
            }
            Ok(Some(push)) if push.kind == PushKind::Disconnection => return Heard::Lost,
            Ok(None) => return Heard::Lost,
            Ok(Some(_)) => {}
            Err(_) => {
                drop(shared);
                let ping = redis::cmd("PING");
                let pinged =
                    tokio::time::timeout(topology.command_timeout(), connection.send_packed_command(&ping)).await;
                if !matches!(pinged, Ok(Ok(_))) {
                    return Heard::Lost;
                }
            }
        }
    }
}
