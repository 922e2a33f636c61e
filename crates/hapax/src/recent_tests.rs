use super::*;
use crate::{Clock, SystemClock};

fn entry(key: &str, bytes: usize, epoch: u64, until: Option<Timestamp>) -> Arc<Entry> {
    let answer = Answer::Result(Json::of(&"x".repeat(bytes)).unwrap());
    let mut entry =
        Entry::new(Key::given(key).unwrap(), Fingerprint::from_bytes([0; 32]), answer, SystemClock.now(), 7);
    (entry.epoch, entry.until) = (Some(epoch), until);
    Arc::new(entry)
}

fn recent(capacity: usize) -> Recent {
    Recent::new(capacity, crate::background::Background::start().unwrap().0.waker())
}

#[test]
fn presentations_past_the_limit_of_keys_are_still_counted() {
    let recent = recent(0);
    for n in 0..MAX_ORPHANS + 3 {
        recent.hit_elsewhere(&entry(&format!("key-{n}"), 1, 1, None));
    }
    let gathered = recent.gather();
    let all = MAX_ORPHANS as u64 + 3;
    assert_eq!((gathered.presented.len(), gathered.hits, gathered.time_saved_ms), (MAX_ORPHANS, all, 7 * all));
}

#[test]
fn presentations_of_one_key_are_written_once() {
    let (recent, one, other) = (recent(0), entry("one", 1, 1, None), entry("other", 1, 1, None));
    for _ in 0..5 {
        recent.hit_elsewhere(&one);
    }
    recent.hit_elsewhere(&other);
    let mut gathered = recent.gather();
    gathered.presented.sort_unstable_by_key(|(_, count)| *count);
    assert_eq!(gathered.presented, [(other.key.clone(), 1), (one.key.clone(), 5)]);
    assert_eq!((gathered.hits, gathered.time_saved_ms), (6, 42));
}

/// Keys of one shard.
fn keys(recent: &Recent) -> impl Iterator<Item = String> {
    let shards: Vec<_> = recent.shards.iter().map(|lock| std::ptr::from_ref(&lock.0)).collect();
    (0..).map(|n| format!("key-{n}")).filter(move |key| {
        let place = (hash_of(&Key::given(key).unwrap()) >> 40) as usize % SHARDS;
        shards.get(place) == shards.first()
    })
}

fn has(recent: &Recent, key: &str) -> bool {
    let key = Key::given(key).unwrap();
    recent.shard(&key).unwrap().read().map.contains_key(&key)
}

#[track_caller]
fn assert_consistent(recent: &Recent) {
    for lock in &recent.shards {
        let shard = lock.0.read();
        assert_eq!(shard.map.len(), shard.order.len());
        assert!(shard.order.iter().all(|key| shard.map.contains_key(key)));
        assert_eq!(shard.bytes, shard.map.values().map(|entry| entry.weight()).sum::<usize>());
        assert!(shard.bytes <= SHARD_BYTES, "{}", shard.bytes);
    }
}

#[test]
fn remembered_results_stay_within_their_bytes_and_the_oldest_go() {
    let (recent, now) = (recent(1 << 20), SystemClock.now());
    for n in 0..400 {
        recent.insert(entry(&format!("key-{n}"), 200_000, 1, None), now);
        assert_consistent(&recent);
        assert!(has(&recent, &format!("key-{n}")));
    }
    assert!(!has(&recent, "key-0") && recent.len() < 200);

    // Of one shard: the one that has just come in stays, and were its key the oldest.
    let (recent, now) = (self::recent(1 << 20), SystemClock.now());
    let of_one: Vec<_> = keys(&recent).take(4).collect();
    let [a, b, c, d] = of_one.as_slice() else { panic!("{of_one:?}") };
    for key in [a, b, c] {
        recent.insert(entry(key, 300_000, 1, None), now);
    }
    recent.insert(entry(a, 500_000, 1, None), now);
    assert_consistent(&recent);
    assert!(has(&recent, a) && !has(&recent, b) && has(&recent, c));
    recent.insert(entry(d, 300_000, 1, None), now);
    assert_consistent(&recent);
    assert!(has(&recent, d));
    // Too large: not remembered, and what was remembered is not what the store has any more.
    recent.insert(entry(d, 600_000, 1, None), now);
    assert_consistent(&recent);
    assert!(!has(&recent, d));
}

#[test]
fn what_can_answer_no_more_goes_when_others_come_or_with_the_sweep() {
    let (recent, now) = (recent(1 << 20), SystemClock.now());
    let of_one: Vec<_> = keys(&recent).take(6).collect();
    let [expires, old, live, new, later, last] = of_one.as_slice() else { panic!("{of_one:?}") };
    let until = now.plus(std::time::Duration::from_secs(5));
    recent.insert(entry(live, 10, 2, None), now);
    recent.insert(entry(expires, 10, 2, Some(until)), now);
    recent.insert(entry(old, 10, 1, None), now);
    assert_eq!(recent.len(), 3, "an epoch that is behind says nothing of others");
    recent.hit(&recent.shard(&Key::given(old).unwrap()).unwrap().read().map[&Key::given(old).unwrap()]);
    recent.insert(entry(new, 10, 2, None), now);
    assert!(has(&recent, expires) && !has(&recent, old) && has(&recent, live));
    assert_eq!(recent.gather().hits, 1, "what was counted of it is not lost");
    recent.insert(entry(later, 10, 2, None), until);
    assert!(!has(&recent, expires));
    assert_consistent(&recent);

    recent.insert(entry(last, 10, 2, Some(until)), now);
    recent.sweep(now, None);
    assert_eq!(recent.len(), 4);
    recent.sweep(until, None);
    assert!(!has(&recent, last) && recent.len() == 3);
    recent.sweep(until, Some(3));
    assert_eq!(recent.len(), 0);
    assert_consistent(&recent);
}

#[test]
fn the_number_remembered_is_limited_too() {
    let (recent, now) = (recent(SHARDS), SystemClock.now());
    for key in keys(&recent).take(3) {
        recent.insert(entry(&key, 10, 1, None), now);
        assert!(has(&recent, &key) && recent.len() == 1);
        assert_consistent(&recent);
    }
}
