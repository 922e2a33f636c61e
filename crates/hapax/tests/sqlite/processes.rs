//! Many processes on one file.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hapax::store::{Beat, Begin, End, Ended, Settled, Settlement, Store};
use hapax::{Action, Hapax, OnDoubt, PolicyPatch, State};

use super::child::{Player, micros};
use super::{HOUR, ask, completed, get, key, open, place, space, start, state, until};

#[tokio::test]
async fn a_killed_owners_key_is_in_doubt_at_once() {
    let (_directory, path) = place();
    let store = open(&path);
    for seen in [true, false] {
        let mut holder = Player::new("holder", &path);
        assert_eq!(holder.hear(), "begun");
        assert_eq!(state(&store, "held").await, Some(State::InProgress), "its owner lives");
        if seen {
            holder.kill();
        } else {
            holder.kill_unseen();
        }
        // Its lease would run for an hour.
        let waited = until(Duration::from_secs(2), "it is in doubt", || async {
            state(&store, "held").await == Some(State::InDoubt)
        })
        .await;
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        let record = get(&store, "held").await.unwrap();
        assert_eq!((record.error.as_deref(), record.lease_until), (Some("its owner process is gone"), None));
        let census = store.census(space()).await.unwrap();
        assert_eq!((census.in_progress, census.in_doubt), (0, 1));
        // It is like any other doubt: no heartbeat, a late answer, a take-over, a settlement.
        assert_eq!(
            store.heartbeat(space(), vec![(key("held"), record.attempt_id, HOUR)]).await.unwrap(),
            [Beat::Lapsed]
        );
        let begin = Begin { take_over: Some(record.attempt_id), ..ask("held") };
        let attempt = begin.attempt;
        store.begin(begin).await.unwrap();
        assert_eq!(state(&store, "held").await, Some(State::InProgress));
        let ended = store.end(space(), key("held"), attempt, End::Release).await.unwrap();
        assert!(matches!(ended, Ended::Done { .. }));
    }
}

#[tokio::test]
async fn who_waits_for_a_killed_process_is_told() {
    let (_directory, path) = place();
    let mut holder = Player::new("holder", &path);
    assert_eq!(holder.hear(), "begun");
    let store = open(&path);
    let attempt = get(&store, "held").await.unwrap().attempt_id;
    let since = Instant::now();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move {
            while state(&store, "held").await == Some(State::InProgress) {
                store.changed(space(), key("held"), attempt, Duration::from_secs(30)).await.unwrap();
            }
            since.elapsed()
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    holder.kill();
    let waited = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    let settled = store.settle(space(), key("held"), Some(attempt), Settlement::NotHappened).await.unwrap();
    assert!(matches!(settled, Settled::Done(None)), "{settled:?}");
}

#[tokio::test]
async fn a_waiter_in_another_process_learns_of_a_completion_at_once() {
    let (_directory, path) = place();
    let store = open(&path);
    let mut runner = Player::new("runner", &path);
    assert_eq!(runner.hear(), "ready");
    let mut delays = Vec::new();
    for n in 0..15 {
        let text = format!("k{n}");
        runner.tell(&text);
        assert_eq!(runner.hear(), "begun");
        let attempt = get(&store, &text).await.unwrap().attempt_id;
        let waiting = {
            let (store, text) = (store.clone(), text.clone());
            tokio::spawn(async move {
                while state(&store, &text).await == Some(State::InProgress) {
                    store.changed(space(), key(&text), attempt, Duration::from_secs(30)).await.unwrap();
                }
                micros()
            })
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
        runner.tell("go on");
        let learnt = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        let recorded: u128 = runner.hear().parse().unwrap();
        delays.push(learnt.saturating_sub(recorded));
        assert_eq!(state(&store, &text).await, Some(State::Completed));
    }
    delays.sort_unstable();
    let median = delays[delays.len() / 2];
    eprintln!(
        "learnt of a completion after {} ms (median), {} ms (worst)",
        median / 1000,
        delays[delays.len() - 1] / 1000
    );
    // 50 ms is the promise; the rest is for a machine that does much else.
    assert!(median < 200_000, "{delays:?}");
    runner.ends();
}

#[tokio::test]
async fn many_processes_open_a_brand_new_file_at_once_and_one_of_them_begins_each_key() {
    let (_directory, path) = place();
    let mut rivals: Vec<Player> = (0..6).map(|_| Player::new("rival", &path)).collect();
    for rival in &rivals {
        assert_eq!(rival.hear(), "ready");
    }
    for rival in &mut rivals {
        rival.tell("go");
    }
    let mut begun = Vec::new();
    for rival in rivals {
        while let Ok(n) = rival.hear().parse::<u32>() {
            begun.push(n);
        }
        rival.ends();
    }
    begun.sort_unstable();
    assert_eq!(begun, (0..50).collect::<Vec<u32>>(), "each by one, none by two");
    let store = open(&path);
    assert_eq!(store.census(space()).await.unwrap().in_doubt, 50, "all of them ended without a word");
}

async fn acknowledged_results_survive(role: &str) {
    let (_directory, path) = place();
    let mut writer = Player::new(role, &path);
    let mut acknowledged = BTreeSet::new();
    while acknowledged.len() < 60 {
        acknowledged.insert(writer.hear());
    }
    writer.kill();
    let store = open(&path);
    for text in &acknowledged {
        let record = get(&store, text).await.unwrap_or_else(|| panic!("{text} was acknowledged"));
        assert_eq!((record.state, record.result.unwrap().to::<String>().unwrap()), (State::Completed, text.clone()));
    }
    let census = store.census(space()).await.unwrap();
    assert!(census.in_progress == 0 && census.in_doubt <= 1, "{census:?}");
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_the_process() {
    acknowledged_results_survive("writer-sync").await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_the_process_when_buffered() {
    acknowledged_results_survive("writer-buffered").await;
}

#[tokio::test]
async fn a_clear_in_another_process_is_seen_by_remembered_results_within_a_second() {
    let (_directory, path) = place();
    let hapax = Hapax::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let mut cleaner = Player::new("cleaner", &path);
    assert_eq!(cleaner.hear(), "ready");
    let action = Action::new("create_task", "trello");
    let run = |value: u32| {
        let (hapax, action) = (hapax.clone(), action.clone());
        async move { hapax.execute(&action, move |_| async move { Ok(value) }).await.unwrap().value }
    };
    for round in 0..3 {
        assert_eq!(run(round).await, round);
        // Until it is answered from memory: the store then vouches for its epoch.
        until(Duration::from_secs(5), "an epoch", || async { hapax.store().epoch().is_some() }).await;
        assert_eq!(run(99).await, round);
        cleaner.tell("clear");
        assert_eq!(cleaner.hear(), "1");
        let since = Instant::now();
        until(Duration::from_millis(1500), "the clear", || async { run(round + 1).await == round + 1 }).await;
        assert!(since.elapsed() < Duration::from_millis(1500));
        hapax.clear_all().await.unwrap();
    }
}

#[tokio::test]
async fn statistics_add_up_over_processes() {
    let (_directory, path) = place();
    for _ in 0..2 {
        let manager = Player::new("manager", &path);
        assert_eq!(manager.hear(), "done");
        manager.ends();
    }
    let hapax = Hapax::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let action = Action::new("create_task", "trello").signal("a");
    let outcome = hapax.execute(&action, |_| async { Ok(0_u32) }).await.unwrap();
    assert!(outcome.is_replay() && outcome.value != 0);
    let stats = hapax.stats().await.unwrap();
    assert_eq!((stats.executions, stats.misses, stats.hits), (3, 3, 1 + 4 + 1));
    assert_eq!((stats.total_cached, stats.duplicates_prevented), (3, 6));
    let record = hapax.record(&action.generate_key().unwrap()).await.unwrap().unwrap();
    assert_eq!((record.attempts, record.attempt_count), (1, 3));
}

#[tokio::test]
async fn two_managers_of_one_process_share_a_file() {
    let (_directory, path) = place();
    let url = format!("sqlite:{}?durability=buffered", path.display());
    let (one, two) = (Hapax::open(&url).await.unwrap(), Hapax::open(&url).await.unwrap());
    let other = Hapax::builder().store_url(&url).namespace("other").build().await.unwrap();
    let action = Action::new("create_task", "trello");
    let hapax::Claimed::Started(claim) = one.claim(&action).await.unwrap() else { panic!("nobody had it") };
    let waiting = {
        let (two, action) = (two.clone(), action.clone());
        tokio::spawn(async move { two.execute(&action, |_| async { Ok("two".to_string()) }).await.unwrap() })
    };
    // Not in doubt, though another handle's: the process lives.
    let live = two.record(&action.generate_key().unwrap()).await.unwrap().unwrap();
    assert_eq!(live.state, State::InProgress);
    claim.complete("one").await.unwrap();
    let outcome = waiting.await.unwrap();
    assert_eq!((outcome.value.as_str(), outcome.is_replay()), ("one", true));
    let outcome = other.execute(&action, |_| async { Ok("other".to_string()) }).await.unwrap();
    assert_eq!(outcome.value, "other");
    for hapax in [one, two, other] {
        assert_eq!(hapax.shutdown(Duration::from_secs(5)).await.unwrap().unfinished, 0);
    }
}

#[tokio::test]
async fn a_pid_that_was_given_to_another_process_is_no_life_sign() {
    let (_directory, path) = place();
    let store = open(&path);
    start(&store, "mine").await;
    start(&store, "reused").await;
    {
        // As if this process's pid had belonged to one that started at another time.
        let conn = rusqlite::Connection::open(&path).unwrap();
        let mut token: Vec<u8> =
            conn.query_row("SELECT token FROM records WHERE key = 'reused'", [], |row| row.get(0)).unwrap();
        token[24] ^= 1;
        assert_eq!(conn.execute("UPDATE records SET token = ?1 WHERE key = 'reused'", [token]).unwrap(), 1);
    }
    assert_eq!(state(&store, "mine").await, Some(State::InProgress));
    let record = get(&store, "reused").await.unwrap();
    assert_eq!((record.state, record.error.as_deref()), (State::InDoubt, Some("its owner process is gone")));
}

#[tokio::test]
async fn a_policy_that_runs_again_takes_a_dead_owners_key_over() {
    let (_directory, path) = place();
    let mut holder = Player::new("holder", &path);
    assert_eq!(holder.hear(), "begun");
    let store = open(&path);
    let hapax = Hapax::builder().store(store.clone()).build().await.unwrap();
    completed(&store, "other").await;
    holder.kill();
    let action = Action::new("create_task", "trello").key(key("held"));
    let refused = hapax.execute(&action, |_| async { Ok(1) }).await.unwrap_err();
    // Its params are others than the holder's: nothing runs whatever the policy.
    assert!(matches!(refused, hapax::Error::ParamsMismatch { .. }), "{refused}");
    let record = get(&store, "held").await.unwrap();
    assert_eq!(record.state, State::InDoubt);
    let settled = store.settle(space(), key("held"), Some(record.attempt_id), Settlement::NotHappened).await.unwrap();
    assert!(matches!(settled, Settled::Done(None)));
    let again = action.policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));
    assert_eq!(hapax.execute(&again, |_| async { Ok(1) }).await.unwrap().value, 1);
}
