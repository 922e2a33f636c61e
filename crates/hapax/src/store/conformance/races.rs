//! Races: whatever happens at once, exactly one wins, and the record agrees with it.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::handle::{complete, happened, key};
use super::{Handle, Subject, Verdict};
use crate::store::{Begin, Begun, Capacity, Counters, End, Ended, OnFull, Removed, Settled, Settlement};
use crate::{AttemptId, State};

/// Begins one key from many tasks at once; returns the attempts that started.
async fn stampede(handles: &[Handle], text: &str, take_over: Option<AttemptId>) -> Vec<AttemptId> {
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let h = handles[n % handles.len()].clone();
            let begin = Begin { take_over, ..h.ask(text) };
            tokio::spawn(async move {
                let attempt = begin.attempt;
                match h.begin(begin).await {
                    Begun::Started { .. } => Some(attempt),
                    Begun::Exists(record) => {
                        assert_eq!(record.state, State::InProgress, "nobody ended it");
                        None
                    }
                }
            })
        })
        .collect();
    let mut started = Vec::new();
    for task in tasks {
        started.extend(task.await.unwrap());
    }
    started
}

pub(super) async fn of_many_begins_one_starts(s: Subject) -> Verdict {
    let h = s.handle();
    for round in 0..10 {
        let text = format!("k{round}");
        let started = stampede(std::slice::from_ref(&h), &text, None).await;
        assert_eq!(started, [h.record(&text).await.attempt_id]);
    }
    Ok(())
}

pub(super) async fn of_many_begins_over_two_handles_one_starts(s: Subject) -> Verdict {
    let handles = [s.handle(), s.again().await?];
    for round in 0..10 {
        let text = format!("k{round}");
        let started = stampede(&handles, &text, None).await;
        for h in &handles {
            assert_eq!(started, [h.record(&text).await.attempt_id]);
        }
    }
    Ok(())
}

pub(super) async fn of_many_take_overs_one_starts(s: Subject) -> Verdict {
    let h = s.handle();
    for round in 0..5 {
        let text = format!("k{round}");
        let attempt = h.doubted(&text).await;
        let started = stampede(std::slice::from_ref(&h), &text, Some(attempt)).await;
        let record = h.record(&text).await;
        assert_eq!((started, record.attempts), (vec![record.attempt_id], 2));
    }
    Ok(())
}

pub(super) async fn completing_settling_and_taking_over_have_one_winner(s: Subject) -> Verdict {
    let here = s.handle();
    let there = s.again().await.unwrap_or_else(|_| here.clone());
    for round in 0..25 {
        let text = format!("k{round}");
        let attempt = here.doubted(&text).await;
        let (a, b, c, d) = (here.clone(), there.clone(), here.clone(), there.clone());
        let (ta, tb, tc, td) = (text.clone(), text.clone(), text.clone(), text.clone());
        let ending = tokio::spawn(async move { a.end(&ta, attempt, complete("late")).await });
        let settling = tokio::spawn(async move { b.settle(&tb, Some(attempt), happened("settled")).await });
        let taking = tokio::spawn(async move { c.take_over(&tc, attempt).await });
        let freeing = tokio::spawn(async move { d.settle(&td, Some(attempt), Settlement::NotHappened).await });
        let mut winners = Vec::new();
        if matches!(ending.await.unwrap(), Ended::Done { .. }) {
            winners.push("late");
        }
        if matches!(settling.await.unwrap(), Settled::Done(_)) {
            winners.push("settled");
        }
        let taken = taking.await.unwrap();
        let freed = matches!(freeing.await.unwrap(), Settled::Done(_));
        match h_state(&here, &text).await {
            (Some(State::Completed), result) => {
                assert_eq!((winners, taken, freed), (vec![result.unwrap().as_str()], None, false));
            }
            (Some(State::InProgress), _) => {
                // Freed first, the key was absent to the one who wanted to take it over.
                assert_eq!(winners, Vec::<&str>::new());
                let record = here.record(&text).await;
                assert_eq!(taken, Some(record.attempt_id));
                assert_eq!(record.attempts, if freed { 1 } else { 2 });
            }
            (None, _) => assert_eq!((winners, taken, freed), (Vec::new(), None, true)),
            (state, _) => panic!("{state:?} although somebody won: {winners:?} {taken:?} {freed}"),
        }
    }
    Ok(())
}

async fn h_state(h: &Handle, text: &str) -> (Option<State>, Option<String>) {
    let record = h.get(text).await;
    (record.as_ref().map(|r| r.state), record.and_then(|r| r.result).map(|json| json.to().unwrap()))
}

pub(super) async fn removing_and_beginning_do_not_mix(s: Subject) -> Verdict {
    let h = s.handle();
    for round in 0..10 {
        let text = format!("k{round}");
        h.completed(&text).await;
        let (a, ta) = (h.clone(), text.clone());
        let removing = tokio::spawn(async move { a.remove(&ta).await });
        let (b, tb) = (h.clone(), text.clone());
        let beginning = tokio::spawn(async move {
            let begin = b.ask(&tb);
            (begin.attempt, b.begin(begin).await)
        });
        let (attempt, begun) = beginning.await.unwrap();
        assert!(matches!(removing.await.unwrap(), Removed::Removed), "it was recorded");
        match begun {
            Begun::Started { .. } => assert_eq!(h.record(&text).await.attempt_id, attempt),
            Begun::Exists(record) => {
                assert_eq!((record.state, h.get(&text).await), (State::Completed, None));
            }
        }
    }
    Ok(())
}

pub(super) async fn counters_of_many_add_up(s: Subject) -> Verdict {
    let here = s.handle();
    let there = s.again().await.unwrap_or_else(|_| here.clone());
    here.completed("k").await;
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let h = if n % 2 == 0 { here.clone() } else { there.clone() };
            tokio::spawn(async move { h.count(Counters { hits: n, ..Counters::default() }, vec![(key("k"), 1)]).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for h in [here, there] {
        assert_eq!((h.counters().await.hits, h.record("k").await.attempt_count), (780, 41));
    }
    Ok(())
}

pub(super) async fn a_full_store_never_goes_over_its_limit(s: Subject) -> Verdict {
    let here = s.handle();
    let there = s.again().await.unwrap_or_else(|_| here.clone());
    let capacity = Some(Capacity { max_entries: 10, on_full: OnFull::Reject });
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let h = if n % 2 == 0 { here.clone() } else { there.clone() };
            tokio::spawn(async move { h.store.begin(Begin { capacity, ..h.ask(&format!("k{n}")) }).await.is_ok() })
        })
        .collect();
    let mut began = 0;
    for task in tasks {
        began += u64::from(task.await.unwrap());
    }
    assert_eq!((began, here.tally().await), (10, (10, 0, 0, 0)));
    Ok(())
}

/// Polls a future so many times and drops it.
async fn dropped_after<T>(polls: usize, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        // Made anew: it must not be held over an await.
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(super) async fn a_dropped_future_leaves_no_half_step(s: Subject) -> Verdict {
    let h = s.handle();
    for polls in 0..6 {
        let text = format!("k{polls}");
        let begin = h.ask(&text);
        let attempt = begin.attempt;
        dropped_after(polls, h.store.begin(begin)).await;
        // It began or it did not, now or a little later.
        match h.begin(h.ask(&text)).await {
            Begun::Started { .. } => h.ends(&text, h.record(&text).await.attempt_id, End::Release).await,
            Begun::Exists(record) => {
                assert_eq!((record.state, record.attempt_id), (State::InProgress, attempt));
                h.ends(&text, attempt, End::Release).await;
            }
        }
        // The dropped one may come as late as this; either way one attempt is under way.
        let again = h.ask(&text);
        let own = again.attempt;
        let attempt = match h.begin(again).await {
            Begun::Started { .. } => own,
            Begun::Exists(record) => {
                assert_eq!((record.state, record.attempt_id), (State::InProgress, attempt));
                attempt
            }
        };
        dropped_after(polls, h.store.end(h.space.clone(), key(&text), attempt, complete("v"))).await;
        let ended = h.end(&text, attempt, complete("v")).await;
        assert!(matches!(ended, Ended::Done { .. }), "the same end twice: {ended:?}");
        dropped_after(polls, h.store.remove(h.space.clone(), key(&text))).await;
        dropped_after(polls, h.store.clear("elsewhere".into())).await;
        dropped_after(polls, h.store.query(h.space.clone(), crate::store::Filter::default(), None, 10)).await;
        dropped_after(polls, h.store.changed(h.space.clone(), key(&text), attempt, Duration::from_secs(5))).await;
        h.remove(&text).await;
        assert_eq!(h.result(&text).await, None);
    }
    // Once all is done, what is counted is what is listed.
    let since = Instant::now();
    loop {
        let (listed, (p, d, c, f)) = (h.all_keys().await, h.tally().await);
        if listed.len() as u64 == p + d + c + f {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "listed {listed:?}, counted {p} {d} {c} {f}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
