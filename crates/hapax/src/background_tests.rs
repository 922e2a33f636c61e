use super::*;
use crate::claim::{Claim, Claimed};
use crate::stats::bump;
use crate::store::memory::MemoryStore;
use crate::store::{Around, StoreFuture};
use crate::{Action, Hapax, PolicyPatch, State};

/// Takes down how many heartbeats came in each request and whose, and renews them all.
#[derive(Debug, Default)]
struct Renewing {
    within: MemoryStore,
    requests: Mutex<Vec<Vec<AttemptId>>>,
}

impl Around for Renewing {
    fn within(&self) -> &dyn Store {
        &self.within
    }
    fn heartbeat(&self, _: Arc<str>, beats: Vec<(Key, AttemptId, Duration)>) -> StoreFuture<'_, Vec<Beat>> {
        let answers = vec![Beat::Renewed; beats.len()];
        self.requests.lock().push(beats.into_iter().map(|(_, attempt, _)| attempt).collect());
        Box::pin(std::future::ready(Ok(answers)))
    }
}

#[tokio::test]
async fn every_lease_that_is_due_is_renewed_at_once_those_due_longest_first() {
    let (leases, store, namespace) = (Leases::default(), Renewing::default(), Arc::from("default"));
    let key = Key::given("key").unwrap();
    let lease = Duration::from_secs(30);
    let begun = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
    // Begun one after the other; the attempts' ids are in the order of nothing.
    let attempts: Vec<_> = (0..2500_u32).map(|n| (AttemptId::from_bytes(scattered(n)), n)).collect();
    for (attempt, n) in &attempts {
        leases.add(*attempt, key.clone(), lease, begun + Duration::from_millis((*n).into()), Arc::default());
    }
    // And one whose time has not come.
    leases.add(AttemptId::new(), key, lease, Instant::now(), Arc::default());
    beat(&leases, &store, &namespace).await;
    let requests = std::mem::take(&mut *store.requests.lock());
    assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
    assert!(requests.concat().iter().eq(attempts.iter().map(|(attempt, _)| attempt)));
    beat(&leases, &store, &namespace).await;
    assert!(store.requests.lock().is_empty(), "all are renewed");
}

fn scattered(n: u32) -> [u8; 16] {
    u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
}

/// Holds up what it is told to until it is let through, and takes down what was asked.
#[derive(Debug)]
struct Gated {
    within: MemoryStore,
    held: &'static [&'static str],
    /// A call that is held up fails when it is let through.
    fails: bool,
    gate: tokio::sync::Semaphore,
    asked: Mutex<Vec<&'static str>>,
}

impl Gated {
    fn new(held: &'static [&'static str], fails: bool) -> Arc<Self> {
        let gate = tokio::sync::Semaphore::new(0);
        Arc::new(Self { within: MemoryStore::default(), held, fails, gate, asked: Mutex::default() })
    }

    fn asked(&self, method: &str) -> usize {
        self.asked.lock().iter().filter(|m| **m == method).count()
    }

    /// Waits until it was asked so often.
    async fn until_asked(&self, method: &str, times: usize) {
        let since = Instant::now();
        while self.asked(method) < times {
            assert!(since.elapsed() < Duration::from_secs(20), "{method} is not asked {times} times");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Around for Gated {
    fn within(&self) -> &dyn Store {
        &self.within
    }
    // It stays open, to be looked into.
    fn close(&self) -> StoreFuture<'_, ()> {
        self.asked.lock().push("close");
        Box::pin(std::future::ready(Ok(())))
    }
    fn call<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        ask: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        self.asked.lock().push(method);
        if !self.held.contains(&method) {
            return ask(&self.within);
        }
        Box::pin(async move {
            let _through = self.gate.acquire().await;
            if self.fails {
                return Err(StoreError::Unavailable { store: "gated:".into(), message: "on purpose".into() });
            }
            ask(&self.within).await
        })
    }
}

fn action() -> Action {
    Action::new("create_task", "trello")
}

async fn claim(hapax: &Hapax, action: &Action) -> Claim {
    match hapax.claim(action).await.unwrap() {
        Claimed::Started(claim) => claim,
        Claimed::Replay(record) => panic!("{record:?}"),
    }
}

#[tokio::test]
async fn a_sweep_and_a_flush_that_take_their_time_hold_up_no_heartbeat() {
    let store = Gated::new(&["sweep", "count"], false);
    let builder = Hapax::builder().auto_cleanup(Some(Duration::from_secs(1)));
    let hapax = Hapax::start(builder, store.clone(), false).unwrap();
    let claim = claim(&hapax, &action().policy(PolicyPatch::new().lease(Duration::from_secs(1)))).await;
    store.until_asked("sweep", 1).await;
    store.until_asked("count", 1).await;
    let before = store.asked("heartbeat");
    store.until_asked("heartbeat", before + 3).await;
    assert_eq!((store.asked("sweep"), store.asked("count")), (1, 1), "one of each at a time");
    store.gate.add_permits(1000);
    claim.complete("done").await.unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_a_flush_that_is_under_way_and_not_past_its_limit() {
    let store = Gated::new(&["count"], false);
    let hapax = Hapax::start(Hapax::builder(), store.clone(), true).unwrap();
    claim(&hapax, &action()).await.complete("done").await.unwrap();
    store.until_asked("count", 1).await;
    let closing = tokio::spawn({
        let hapax = hapax.clone();
        async move { hapax.shutdown(Duration::from_secs(60)).await }
    });
    // Time to go wrong in.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(store.asked("close"), 0);
    store.gate.add_permits(1000);
    assert_eq!(closing.await.unwrap().unwrap().unfinished, 0);
    assert_eq!(store.asked("close"), 1);

    let store = Gated::new(&["sweep"], false);
    let builder = Hapax::builder().auto_cleanup(Some(Duration::from_secs(1)));
    let hapax = Hapax::start(builder, store.clone(), true).unwrap();
    store.until_asked("sweep", 1).await;
    assert_eq!(hapax.shutdown(Duration::from_millis(10)).await.unwrap().unfinished, 0);
    assert_eq!(store.asked("close"), 1);
}

#[test]
fn who_falls_asleep_looks_once_more_after_saying_so() {
    let asleep = AtomicBool::new(false);
    // A lease that comes after the first look, from one who does not find the thread asleep yet.
    let leases = Leases::default();
    assert!(!fall_asleep(&asleep, || {
        assert!(asleep.load(Ordering::Relaxed), "whoever comes from now on will wake it");
        leases.add(AttemptId::new(), Key::given("key").unwrap(), TICK, Instant::now(), Arc::default());
        !leases.is_empty()
    }));
    assert!(!asleep.load(Ordering::Relaxed));
    assert!(fall_asleep(&asleep, || false) && asleep.load(Ordering::Relaxed));
}

/// A shutdown waits for the end of an attempt that was dropped `before` it.
async fn assert_waited_for(store: Arc<Gated>, hapax: Hapax, key: &Key, wanted: Option<State>) {
    let closing = tokio::spawn({
        let hapax = hapax.clone();
        async move { hapax.shutdown(Duration::from_secs(60)).await }
    });
    store.until_asked("end", 1).await;
    // Time to go wrong in.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(store.asked("close"), 0);
    store.gate.add_permits(1000);
    assert_eq!(closing.await.unwrap().unwrap().unfinished, 0);
    assert_eq!(store.asked("close"), 1);
    let record = store.within.get(Arc::from("default"), key.clone()).await.unwrap();
    assert_eq!(record.map(|record| record.state), wanted);
}

#[tokio::test]
async fn a_shutdown_waits_for_ends_that_were_handed_to_the_background() {
    let key = action().generate_key().unwrap();
    let store = Gated::new(&["end"], false);
    let hapax = Hapax::start(Hapax::builder(), store.clone(), true).unwrap();
    drop(claim(&hapax, &action()).await);
    assert_waited_for(store, hapax, &key, Some(State::InDoubt)).await;

    // A call that is dropped in `begin`: nothing ran, and the key is free.
    let store = Gated::new(&["begin", "end"], false);
    let hapax = Hapax::start(Hapax::builder(), store.clone(), true).unwrap();
    let action = action();
    let mut call = Box::pin(hapax.claim(&action));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_pending())).await);
    drop(call);
    assert_waited_for(store, hapax.clone(), &key, None).await;
}

#[tokio::test]
async fn a_shutdown_whose_last_count_fails_closes_the_store_all_the_same() {
    let store = Gated::new(&["count"], true);
    store.gate.add_permits(1000);
    let hapax = Hapax::start(Hapax::builder(), store.clone(), true).unwrap();
    claim(&hapax, &action()).await.complete("done").await.unwrap();
    assert!(hapax.shutdown(Duration::from_secs(60)).await.is_err());
    assert_eq!(store.asked("close"), 1);
    assert_eq!(hapax.shutdown(Duration::from_secs(60)).await.unwrap().unfinished, 0);
    assert_eq!(store.asked("close"), 1);
}

#[tokio::test]
async fn whatever_is_counted_wakes_the_thread() {
    let hapax = Hapax::start(Hapax::builder(), Arc::new(MemoryStore::default()), true).unwrap();
    let inner = &hapax.inner;
    claim(&hapax, &action()).await.complete("done").await.unwrap();
    let other = action().signal("other").policy(PolicyPatch::new().in_flight(crate::InFlight::Reject));
    let live = claim(&hapax, &other).await;
    let key = action().generate_key().unwrap();
    let asleep = &inner.background.waker.asleep;
    let woken = || !asleep.swap(true, Ordering::Relaxed);
    // The thread itself may look in between and see that it is awake: that is no harm.
    woken();
    assert!(hapax.check_executed(&key).await.unwrap().is_some());
    assert!(woken() || inner.recent.is_dirty());
    asleep.store(true, Ordering::Relaxed);
    assert!(hapax.claim(&other).await.is_err());
    assert!(woken(), "turned away");
    live.complete("done").await.unwrap();
}

#[tokio::test]
async fn two_flushes_that_fail_at_once_lose_nothing() {
    let store = Gated::new(&["count"], true);
    let hapax = Hapax::start(Hapax::builder(), store.clone(), true).unwrap();
    let inner = hapax.inner.clone();
    bump(&inner.gauges.misses);
    let (mut first, mut second) = (Box::pin(inner.flush()), Box::pin(inner.flush()));
    let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx).is_pending())).await;
    bump(&inner.gauges.misses);
    let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())).await;
    store.gate.add_permits(1000);
    let _ = (first.await, second.await);
    let since = Instant::now();
    // Should the background have one of them at this moment, it brings it back.
    while inner.undelivered_misses() < 2 {
        assert!(since.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
