//! Whole calls of `execute` in one process under random schedules: each future is
//! polled when it was woken, in random order, and dropped at random; actions fail
//! in every way and panic; the store loses requests and answers.
//!
//! Only what was woken is polled, so that a wakeup that is lost shows as a call
//! that never ends. A schedule follows from its seed, but for the manager's own
//! thread, which writes what dropped calls have left to say.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use hapax::store::memory::MemoryStore;
use hapax::{
    Action, ActionError, Claimed, Error, Hapax, InFlight, Json, Key, OnDoubt, PolicyPatch, State, Verdict, Verifier,
};
use hapax_model::slow::{Pause, Slow};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// No schedule takes a second; past this a call has been forgotten.
const FORGOTTEN: Duration = Duration::from_secs(20);

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

type Call = Pin<Box<dyn Future<Output = Result<u64, Error>>>>;

/// The effects, by key: what each action did.
type Ledger = Arc<Mutex<Vec<Vec<u64>>>>;

#[derive(Clone, Copy, Debug)]
enum Ending {
    Value,
    RetryableBefore,
    UnknownBefore,
    UnknownAfter,
    PanicBefore,
    PanicAfter,
}

fn action(n: usize) -> Action {
    Action::new("act", "target").signal(format!("s{n}"))
}

async fn act(ledger: Ledger, n: usize, value: u64, pauses: [u32; 2], ending: Ending) -> Result<u64, ActionError> {
    Pause(pauses[0]).await;
    match ending {
        Ending::RetryableBefore => return Err(ActionError::retryable("not now")),
        Ending::UnknownBefore => return Err(ActionError::unknown("who knows")),
        Ending::PanicBefore => resume_unwind(Box::new("before")),
        _ => {}
    }
    ledger.lock().unwrap()[n].push(value);
    Pause(pauses[1]).await;
    match ending {
        Ending::UnknownAfter => Err(ActionError::unknown("who knows")),
        Ending::PanicAfter => resume_unwind(Box::new("after")),
        _ => Ok(value),
    }
}

const KEYS: usize = 2;
const CALLS: u64 = 10;

/// What a schedule counts.
#[derive(Debug, Default)]
struct Tally {
    polls: u64,
    drops: u64,
    panics: u64,
    turned_away: u64,
    values: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Doubt {
    Refuse,
    /// Some refuse, some ask a verifier that looks into the ledger.
    ///
    /// Effects here are prompt, and an attempt in doubt is one whose future is gone.
    Verify,
}

/// Whether the manager is shut down at some time in the schedule.
#[derive(Clone, Copy, PartialEq)]
enum Close {
    AtTheEnd,
    Among,
}

fn schedule(seed: u64, doubt: Doubt, losses: u32, close: Close, timers: &tokio::runtime::Runtime, tally: &mut Tally) {
    let mut rng = StdRng::seed_from_u64(seed);
    let ledger: Ledger = Arc::new(Mutex::new(vec![Vec::new(); KEYS]));
    let store = Arc::new(Slow::new(Arc::new(MemoryStore::new()), seed, losses));
    let _timers = timers.enter();
    let hapax = timers.block_on(Hapax::builder().store(store).build()).unwrap();
    let mut calls: Vec<(usize, Arc<Woken>, Call)> = (0..CALLS)
        .map(|value| {
            let n = rng.random_range(0..KEYS);
            let ending = match rng.random_range(0..20) {
                0..3 => Ending::RetryableBefore,
                3 => Ending::UnknownBefore,
                4 => Ending::UnknownAfter,
                5 => Ending::PanicBefore,
                6 => Ending::PanicAfter,
                _ => Ending::Value,
            };
            let mut policy = PolicyPatch::new().in_flight(InFlight::Wait(Duration::from_secs(600)));
            if doubt == Doubt::Verify && rng.random() {
                let ledger = ledger.clone();
                policy = policy.on_doubt(OnDoubt::Verify(Verifier::new(move |_| {
                    let ledger = ledger.clone();
                    async move {
                        let happened = ledger.lock().unwrap()[n].first().copied();
                        Ok(happened.map_or(Verdict::NotHappened, |v| Verdict::Happened(Json::of(&v).unwrap())))
                    }
                })));
            }
            let (hapax, ledger) = (hapax.clone(), ledger.clone());
            let pauses = [rng.random_range(0..4), rng.random_range(0..4)];
            let call: Call = Box::pin(async move {
                let outcome =
                    hapax.execute(&action(n).policy(policy), |_| act(ledger, n, value, pauses, ending)).await?;
                Ok(outcome.value)
            });
            (n, Arc::new(Woken(AtomicBool::new(true))), call)
        })
        .collect();
    // What a shutdown saw when it was done: how many places were taken, and how many effects there were.
    let shut: Arc<Mutex<Option<(usize, usize)>>> = Arc::default();
    if close == Close::Among {
        let (hapax, ledger, shut, pause) = (hapax.clone(), ledger.clone(), shut.clone(), rng.random_range(0..60));
        let call: Call = Box::pin(async move {
            Pause(pause).await;
            let done = hapax.shutdown(Duration::from_secs(600)).await?;
            let effects = ledger.lock().unwrap().iter().map(Vec::len).sum();
            *shut.lock().unwrap() = Some((done.unfinished, effects));
            Err(Error::ShuttingDown)
        });
        calls.push((0, Arc::new(Woken(AtomicBool::new(true))), call));
    }

    let mut told: Vec<Option<u64>> = vec![None; KEYS];
    let began = Instant::now();
    while !calls.is_empty() {
        assert!(began.elapsed() < FORGOTTEN, "seed {seed}: {} calls were never woken again", calls.len());
        let at = rng.random_range(0..calls.len());
        if rng.random_bool(0.004) {
            tally.drops += 1;
            drop(calls.swap_remove(at));
            continue;
        }
        let (n, woken, call) = &mut calls[at];
        if !woken.0.swap(false, Ordering::SeqCst) {
            if calls.iter().all(|(_, woken, _)| !woken.0.load(Ordering::SeqCst)) {
                // All wait for the manager's own thread.
                std::thread::sleep(Duration::from_micros(50));
            }
            continue;
        }
        tally.polls += 1;
        let waker = Waker::from(woken.clone());
        let n = *n;
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut Context::from_waker(&waker)))) {
            Ok(Poll::Pending) => continue,
            Ok(Poll::Ready(Ok(value))) => {
                tally.values += 1;
                assert_eq!(*told[n].get_or_insert(value), value, "seed {seed}: callers were told different values");
            }
            Ok(Poll::Ready(Err(error))) => {
                let fine = matches!(
                    error,
                    Error::InDoubt { .. } | Error::Action { .. } | Error::Store(_) | Error::NotRecorded { .. }
                ) || (close == Close::Among && matches!(error, Error::ShuttingDown));
                tally.turned_away += u64::from(matches!(error, Error::ShuttingDown));
                assert!(fine, "seed {seed}: {error:?}");
            }
            Err(_) => tally.panics += 1,
        }
        drop(calls.swap_remove(at));
    }

    if let Some((unfinished, effects)) = *shut.lock().unwrap() {
        assert_eq!(unfinished, 0, "seed {seed}: the shutdown did not wait");
        let at_the_end: usize = ledger.lock().unwrap().iter().map(Vec::len).sum();
        assert_eq!(effects, at_the_end, "seed {seed}: an effect came after the shutdown was done");
    }
    timers.block_on(async {
        // The places come back, and so shutdown ends at once.
        let shutdown = hapax.shutdown(Duration::from_secs(10)).await.unwrap();
        assert_eq!(shutdown.unfinished, 0, "seed {seed}: a place is still taken");
        for n in 0..KEYS {
            let key = Key::generate(&action(n)).unwrap();
            let effects = ledger.lock().unwrap()[n].clone();
            assert!(effects.len() <= 1, "seed {seed}: the effect happened {} times", effects.len());
            // What dropped calls have left to say is said soon, unless it was lost: then the lease decides.
            let mut record = hapax.record(&key).await.unwrap();
            let until = Instant::now() + if losses == 0 { FORGOTTEN } else { Duration::from_millis(30) };
            while record.as_ref().is_some_and(|r| r.state == State::InProgress) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
                record = hapax.record(&key).await.unwrap();
            }
            let state = record.as_ref().map(|r| r.state);
            assert!(losses > 0 || state != Some(State::InProgress), "seed {seed}: nobody ended the attempt");
            if !effects.is_empty() {
                assert!(state.is_some(), "seed {seed}: the effect happened and the key is free");
            }
            if let Some(told) = told[n] {
                assert_eq!(effects, [told], "seed {seed}: a caller was told a value that never was");
                assert_eq!(record.unwrap().result.unwrap().to::<u64>().unwrap(), told, "seed {seed}");
            }
        }
    });
}

fn schedules(seeds: std::ops::Range<u64>, doubt: Doubt, losses: u32, close: Close) {
    let timers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let (began, count, mut tally) = (Instant::now(), seeds.end - seeds.start, Tally::default());
    for seed in seeds {
        schedule(seed, doubt, losses, close, &timers, &mut tally);
    }
    println!("{count} schedules: {tally:?}, {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn under_every_schedule_all_callers_are_answered_and_the_effect_happens_once() {
    schedules(0..1_500, Doubt::Refuse, 0, Close::AtTheEnd);
}

#[test]
fn under_every_schedule_a_verifier_keeps_it_to_one_effect() {
    schedules(10_000..11_500, Doubt::Verify, 0, Close::AtTheEnd);
}

#[test]
fn under_every_schedule_lost_requests_and_answers_make_no_second_effect() {
    schedules(20_000..20_500, Doubt::Verify, 4, Close::AtTheEnd);
}

#[test]
fn under_every_schedule_a_shutdown_waits_for_what_runs_and_lets_nothing_begin() {
    schedules(30_000..31_500, Doubt::Verify, 0, Close::Among);
}

#[tokio::test]
async fn a_take_over_that_is_cut_short_leaves_the_doubt() {
    for seed in 0..50 {
        let store = Arc::new(Slow::new(Arc::new(MemoryStore::new()), seed, 0));
        let hapax = Hapax::builder().store(store.clone()).build().await.unwrap();
        let Claimed::Started(claim) = hapax.claim(&action(0)).await.unwrap() else { panic!("claimed before") };
        claim.doubt("the effect may have happened").await.unwrap();
        let again = action(0).policy(PolicyPatch::new().on_doubt(OnDoubt::RunAgain));
        let mut call = Box::pin(hapax.execute::<u64, _, _>(&again, |_| std::future::pending()));
        // The first `begin` finds the doubt, the second takes over; its answer may be on the way.
        let until = store.steps() + 2;
        while store.steps() < until {
            assert!(std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await);
        }
        drop(call);
        let key = Key::generate(&action(0)).unwrap();
        let began = Instant::now();
        loop {
            let record = hapax.record(&key).await.unwrap();
            assert!(record.is_some(), "seed {seed}: the doubt is gone");
            if record.unwrap().state == State::InDoubt {
                break;
            }
            assert!(began.elapsed() < FORGOTTEN, "seed {seed}: still in progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
