use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{Around, StoreFuture};

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
