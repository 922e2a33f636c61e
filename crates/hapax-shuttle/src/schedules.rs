//! Callers of one key, each in a thread of its own, under thousands of schedules.
//!
//! A caller does what `execute` does around a flight: it enters; as the leader it
//! looks for a recorded answer, runs the action once if there is none, and ends
//! the flight or goes away without a word; as a joiner it waits, and looks for
//! itself when it is told to. A wait has no end here: whoever is not woken is a
//! deadlock, which `shuttle` reports.

use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::atomic::{AtomicUsize, Ordering};

use crate::flight::{Entered, FlightEnd, Flights};
use crate::recent::Entry;
use crate::{Fingerprint, Key};

/// Schedules for each of the cases.
const SCHEDULES: usize = 3_000;

/// How a leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    /// With an answer for those who joined.
    Finishes,
    /// It is dropped (cancelled) before the action runs.
    Goes,
    /// It panics before the action runs.
    Panics,
}

#[derive(Debug, Default)]
struct World {
    runs: AtomicUsize,
    recorded: AtomicUsize,
    leading: AtomicUsize,
}

/// Calls until it has an answer; the first to lead does as `first` says, all later ones finish.
async fn call(flights: Arc<Flights>, world: Arc<World>, first: Leader, led: Arc<AtomicUsize>) -> usize {
    loop {
        let flight = match flights.enter(&Key(7), Fingerprint, std::time::Instant::now()) {
            Entered::Join(flight) => flight,
            Entered::Lead(guard) => {
                assert_eq!(world.leading.fetch_add(1, Ordering::SeqCst), 0, "a key has two leaders");
                shuttle::future::yield_now().await;
                let is_first = led.fetch_add(1, Ordering::SeqCst) == 0;
                world.leading.fetch_sub(1, Ordering::SeqCst);
                match first {
                    Leader::Goes if is_first => {
                        drop(guard);
                        continue;
                    }
                    Leader::Panics if is_first => {
                        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            let _held = guard;
                            std::panic::resume_unwind(Box::new("the action panics"));
                        }));
                        assert!(unwound.is_err());
                        continue;
                    }
                    _ => {}
                }
                if world.recorded.load(Ordering::SeqCst) == 0 {
                    world.runs.fetch_add(1, Ordering::SeqCst);
                    shuttle::future::yield_now().await;
                    world.recorded.store(1, Ordering::SeqCst);
                }
                guard.finish(FlightEnd::Recorded(Arc::new(Entry(1))));
                return 1;
            }
        };
        match flight.ended(Duration::from_secs(3600)).await {
            Some(FlightEnd::Recorded(entry)) => return usize::try_from(entry.0).unwrap(),
            Some(FlightEnd::Look) => {}
            other => panic!("a joiner was told {other:?}"),
        }
    }
}

fn check(callers: usize, first: Leader) {
    let schedule = move || {
        let (flights, world, led) = (Arc::new(Flights::new()), Arc::new(World::default()), Arc::default());
        let threads: Vec<_> = (0..callers)
            .map(|_| {
                let call = call(Arc::clone(&flights), Arc::clone(&world), first, Arc::clone(&led));
                shuttle::thread::spawn(move || shuttle::future::block_on(call))
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 1, "a caller got no answer");
        }
        assert_eq!(world.runs.load(Ordering::SeqCst), 1, "the action ran not once");
        // The table is empty again: who comes now leads.
        assert!(matches!(flights.enter(&Key(7), Fingerprint, std::time::Instant::now()), Entered::Lead(_)));
    };
    shuttle::check_random(schedule, SCHEDULES);
    shuttle::check_pct(schedule, SCHEDULES, 3);
}

#[test]
fn the_action_runs_once_and_every_joiner_is_told() {
    check(3, Leader::Finishes);
}

#[test]
fn a_leader_that_is_dropped_leaves_no_joiner_asleep() {
    check(3, Leader::Goes);
}

#[test]
fn a_leader_that_panics_leaves_no_joiner_asleep() {
    check(3, Leader::Panics);
}

#[test]
fn a_joiner_that_goes_away_disturbs_nobody() {
    let schedule = || {
        let flights = Arc::new(Flights::new());
        let Entered::Lead(guard) = flights.enter(&Key(7), Fingerprint, std::time::Instant::now()) else {
            panic!("not the first")
        };
        let join = |gives_up: bool| {
            let flights = Arc::clone(&flights);
            shuttle::thread::spawn(move || {
                shuttle::future::block_on(async {
                    let Entered::Join(flight) = flights.enter(&Key(7), Fingerprint, std::time::Instant::now()) else {
                        return;
                    };
                    if gives_up {
                        // Polled once or not at all, then dropped.
                        let mut ended = Box::pin(flight.ended(Duration::from_secs(3600)));
                        std::future::poll_fn(|context| {
                            let _ = ended.as_mut().poll(context);
                            std::task::Poll::Ready(())
                        })
                        .await;
                    } else {
                        assert!(flight.ended(Duration::from_secs(3600)).await.is_some());
                    }
                })
            })
        };
        let threads = [join(true), join(false), join(true)];
        guard.finish(FlightEnd::Look);
        for thread in threads {
            thread.join().unwrap();
        }
    };
    shuttle::check_random(schedule, SCHEDULES);
    shuttle::check_pct(schedule, SCHEDULES, 3);
}
