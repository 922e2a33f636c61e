//! The store's own thread: it groups what waits for the same bucket into one script call, and sees each call through.
//!
//! The client's tasks and timers run on a runtime of the store's own, so that a caller may await from any executor, or
//! from none, and may drop its runtime at any time. Grouping is by need: a bucket whose last call is answered sends
//! what has come meanwhile as one call, so that a single caller never waits for others and many share the cost.
//!
//! Invariants: every operation that was taken in is answered, within the command limit; the queue has a limit in
//! operations and in bytes; operations of one call that fails as a whole are told so each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fold;
use super::op::{Op, Resend};
use super::row::Bucket;
use super::script::TRANSITION;
use super::topology::{How, Request, Topology};
use crate::store::StoreError;
use crate::store::shared::{Asked, passed_by};

/// The most operations that wait or are under way.
pub(super) const QUEUE_LIMIT: usize = 65_536;
/// The most bytes that they hold; a single larger one is taken in when nothing else waits.
const QUEUE_BYTES: usize = 256 << 20;
/// The most operations in one script call, so that none holds the server for long.
pub(super) const GROUP_LIMIT: usize = 64;
/// The most bytes in one script call, if it has several operations.
const GROUP_BYTES: usize = 512 << 10;
/// The most calls under way for one bucket.
const CALLS_PER_BUCKET: usize = 1;
/// How long the thread outlives the store to finish what was taken in.
const DRAIN: Duration = Duration::from_secs(10);

type Answer = Result<Vec<u8>, StoreError>;

/// An operation, and who waits for it.
#[derive(Debug)]
struct Item {
    bucket: Arc<Bucket>,
    op: Op,
    size: usize,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
enum Command {
    Do(Item),
    Stop(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Load {
    ops: AtomicUsize,
    bytes: AtomicUsize,
    /// Tasks of several requests that are under way.
    tasks: AtomicUsize,
}

/// Counts a task for as long as it runs.
#[derive(Debug)]
pub(super) struct Busy(Arc<Load>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The handle by which work is given to the thread.
#[derive(Debug)]
pub(super) struct Driver {
    commands: mpsc::UnboundedSender<Command>,
    pub(super) handle: tokio::runtime::Handle,
    pub(super) topology: Arc<Topology>,
    load: Arc<Load>,
    closed: Arc<AtomicBool>,
}

impl Driver {
    /// Starts the thread; it ends with [`stop`](Self::stop), or when the handle is dropped.
    pub(super) fn start(topology: Arc<Topology>) -> Result<Self, StoreError> {
        let failed = |what: &str, e: &std::io::Error| StoreError::Unavailable {
            store: topology.location.clone(),
            message: format!("{what}: {e}; raise the limit on threads or open files"),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed("no runtime", &e))?;
        let handle = runtime.handle().clone();
        let (commands, receiver) = mpsc::unbounded_channel();
        let load = Arc::new(Load::default());
        let closed = Arc::new(AtomicBool::new(false));
        let work = drive(topology.clone(), receiver, load.clone());
        std::thread::Builder::new()
            .name("hapax-redis".into())
            .spawn(move || {
                runtime.block_on(work);
                // Tasks of queries and waiters that are left end here.
                runtime.shutdown_background();
            })
            .map_err(|e| failed("no thread", &e))?;
        Ok(Self { commands, handle, topology, load, closed })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn closed(&self) -> StoreError {
        StoreError::Closed { store: self.topology.location.clone() }
    }

    /// The thread ended with the answer outstanding.
    pub(super) fn gone(&self) -> StoreError {
        StoreError::AnswerLost {
            store: self.topology.location.clone(),
            message: "the store was closed before the server answered".into(),
        }
    }

    /// Counts a task in: the thread does not end before it.
    pub(super) fn busy(&self) -> Busy {
        self.load.tasks.fetch_add(1, Ordering::AcqRel);
        Busy(self.load.clone())
    }

    /// Takes an operation in.
    pub(super) fn send(&self, bucket: &Arc<Bucket>, op: Op) -> Result<oneshot::Receiver<Answer>, StoreError> {
        if self.is_closed() {
            return Err(self.closed());
        }
        let size = op.size();
        let ops = self.load.ops.fetch_add(1, Ordering::Relaxed);
        let bytes = self.load.bytes.fetch_add(size, Ordering::Relaxed);
        if ops >= QUEUE_LIMIT || (ops > 0 && bytes.saturating_add(size) > QUEUE_BYTES) {
            self.load.ops.fetch_sub(1, Ordering::Relaxed);
            self.load.bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(StoreError::Overloaded { store: self.topology.location.clone(), limit: QUEUE_LIMIT });
        }
        let (answer, receiver) = oneshot::channel();
        let item = Item { bucket: bucket.clone(), op, size, since: Instant::now(), answer };
        if self.commands.send(Command::Do(item)).is_err() {
            return Err(self.closed());
        }
        Ok(receiver)
    }

    /// Does an operation.
    pub(super) async fn run(&self, bucket: &Arc<Bucket>, op: Op) -> Answer {
        self.send(bucket, op)?.await.map_err(|_| self.gone())?
    }

    /// Takes nothing more in, finishes what was taken in, and ends the thread.
    pub(super) fn stop(&self) -> oneshot::Receiver<()> {
        self.closed.store(true, Ordering::Release);
        let (done, ended) = oneshot::channel();
        let _ = self.commands.send(Command::Stop(done));
        ended
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Item>,
    calls: usize,
}

impl Lane {
    /// What goes into the next call: operations that may all be sent again, or none of which may.
    fn group(&mut self) -> Vec<Item> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(item) = self.waiting.front() {
            let too_many = group.len() >= GROUP_LIMIT || (bytes > 0 && bytes + item.size > GROUP_BYTES);
            // What must not be sent twice keeps nothing else from being sent again.
            let goes_with = |other: &Item| item.op.resend == other.op.resend && item.op.resend != Resend::Never;
            if too_many || group.last().is_some_and(|last| !goes_with(last)) {
                break;
            }
            bytes += item.size;
            group.extend(self.waiting.pop_front());
        }
        group
    }
}

async fn drive(topology: Arc<Topology>, mut commands: mpsc::UnboundedReceiver<Command>, load: Arc<Load>) {
    let mut lanes: HashMap<usize, Lane> = HashMap::new();
    let mut calls: JoinSet<usize> = JoinSet::new();
    let mut taken = Vec::new();
    let mut stopped = None;
    let mut touched = Vec::new();
    loop {
        tokio::select! {
            biased;
            count = commands.recv_many(&mut taken, 1024), if stopped.is_none() => {
                if count == 0 {
                    break;
                }
                for command in taken.drain(..) {
                    match command {
                        Command::Do(item) => {
                            touched.push(item.bucket.lane);
                            lanes.entry(item.bucket.lane).or_default().waiting.push_back(item);
                        }
                        Command::Stop(done) => stopped = Some((done, Instant::now() + DRAIN)),
                    }
                }
            }
            Some(ended) = calls.join_next(), if !calls.is_empty() => {
                if let Ok(lane) = ended {
                    if let Some(lane) = lanes.get_mut(&lane) {
                        lane.calls = lane.calls.saturating_sub(1);
                    }
                    touched.push(lane);
                }
            }
            () = tokio::time::sleep(Duration::from_millis(2)), if stopped.is_some() => {}
        }
        for number in touched.drain(..) {
            let Some(lane) = lanes.get_mut(&number) else { continue };
            while lane.calls < CALLS_PER_BUCKET && !lane.waiting.is_empty() {
                let group = lane.group();
                lane.calls += 1;
                calls.spawn(call(topology.clone(), group, load.clone(), number));
            }
            if lane.calls == 0 {
                lanes.remove(&number);
            }
        }
        if let Some((_, latest)) = &stopped
            && ((calls.is_empty() && load.tasks.load(Ordering::Acquire) == 0) || Instant::now() > *latest)
        {
            break;
        }
    }
    if let Some((done, _)) = stopped {
        let _ = done.send(());
    }
}

/// Gives back what a group holds of the queue's limits, however its call ends.
struct Held {
    load: Arc<Load>,
    ops: usize,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.load.ops.fetch_sub(self.ops, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

async fn call(topology: Arc<Topology>, group: Vec<Item>, load: Arc<Load>, lane: usize) -> usize {
    let _held = Held { load, ops: group.len(), bytes: group.iter().map(|i| i.size).sum() };
    let late = topology.command_timeout();
    let (group, overdue): (Vec<_>, Vec<_>) = group.into_iter().partition(|item| item.since.elapsed() < late);
    for item in overdue {
        let message = format!("it waited for {late:?} (command_timeout) behind others that the server did not answer");
        let _ = item.answer.send(Err(StoreError::Unavailable { store: topology.location.clone(), message }));
    }
    let Some(first) = group.first() else { return lane };
    let bucket = first.bucket.clone();
    let resend = first.op.resend;
    let make = |how: How| -> Cmd {
        let mut cmd = TRANSITION.call(group.len() + 4, how);
        cmd.arg(&bucket.index).arg(&bucket.epoch).arg(&bucket.log).arg(&bucket.removals);
        for item in &group {
            cmd.arg(&item.op.key);
        }
        for item in &group {
            item.op.write(&mut cmd, how.sent_before);
        }
        cmd
    };
    let is_write = group.iter().any(|i| i.op.is_write);
    // What has waited behind other calls in an outage gets what is left of its time.
    let limit = topology.command_timeout();
    let left = limit.saturating_sub(first.since.elapsed()).max(limit / 4);
    let (asked, mut log) = (Asked::now(), None);
    let answer = topology.exec_within(&Request { slot: bucket.slot, is_write, resend, make: &make }, left).await;
    let odd = |message: String| StoreError::Damaged { store: topology.location.clone(), message };
    match answer {
        Err(error) => group.into_iter().for_each(|item| {
            let _ = item.answer.send(Err(error.clone()));
        }),
        Ok(Value::Array(mut answers)) if answers.len() == group.len() || answers.len() == group.len() + 1 => {
            if let Some(Value::Int(length)) = answers.get(group.len()) {
                log = usize::try_from(*length).ok();
                answers.truncate(group.len());
            }
            topology.learn(answers.first(), asked);
            for (item, answer) in group.into_iter().zip(answers) {
                let answer = match answer {
                    Value::BulkString(bytes) if bytes.first() == Some(&b'!') => {
                        Err(refused(&topology.location, &bytes))
                    }
                    Value::BulkString(bytes) if bytes == b"?" => Err(passed_by(&topology.location)),
                    Value::BulkString(bytes) => Ok(bytes),
                    Value::Array(parts) => match parts.as_slice() {
                        [Value::BulkString(head), Value::BulkString(record)] => Ok([&head[..], record].concat()),
                        _ => Err(odd("the server gave an answer in parts that hapax does not know".into())),
                    },
                    other => {
                        let said: String = format!("{other:?}").chars().take(40).collect();
                        Err(odd(format!("the server gave an answer that hapax does not know ({said})")))
                    }
                };
                let _ = item.answer.send(answer);
            }
        }
        Ok(_) => group.into_iter().for_each(|item| {
            let _ =
                item.answer.send(Err(odd("the server answered another number of operations than it was asked".into())));
        }),
    }
    if let Some(length) = log {
        // Behind the answers and before the bucket's next call: no log grows faster than it is dealt with.
        fold::keep_up(&topology, &bucket, length).await;
    }
    lane
}

/// What the script says of one operation that failed.
fn refused(store: &str, answer: &[u8]) -> StoreError {
    let store = store.to_string();
    let said: String = String::from_utf8_lossy(answer.get(1..).unwrap_or_default())
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    if said.starts_with("NEWER") {
        return StoreError::Damaged {
            store,
            message: "a record is of a newer hapax, or something else was written in its place; upgrade hapax, or give another prefix".into(),
        };
    }
    if said.contains("OOM") {
        return StoreError::Full { store, message: said };
    }
    if said.contains("WRONGTYPE") {
        return StoreError::Damaged {
            store,
            message: format!("something else stands under one of hapax's keys ({said}); give another prefix"),
        };
    }
    StoreError::Unavailable { store, message: said }
}
