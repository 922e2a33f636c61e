//! The conformance suite and the reference model, on every store of this crate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use hapax::ManualClock;
use hapax::store::conformance::{Subject, cases, model};
use hapax::store::memory::MemoryStore;

async fn memory() -> Subject {
    let clock = ManualClock::new();
    Subject::new(Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())))).clock(clock)
}

/// As a store whose time is a server's.
async fn memory_in_real_time() -> Subject {
    Subject::new(Arc::new(MemoryStore::new()))
}

mod on_memory {
    hapax::conformance_tests!(super::memory);
}

#[path = "conformance/flawed.rs"]
mod flawed;

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;
    use hapax::store::Store;
    use hapax::store::sqlite::{Durability, SqliteOptions, SqliteStore};

    fn subject(durability: Durability, clock: Option<ManualClock>) -> Subject {
        let directory = tempfile::tempdir().unwrap();
        let mut options = SqliteOptions::new(directory.path().join("hapax.db")).durability(durability);
        if let Some(clock) = &clock {
            options = options.clock(Arc::new(clock.clone()));
        }
        let store = Arc::new(SqliteStore::open(options.clone()).unwrap());
        let subject = Subject::new(store).keeping(directory).opened_again_by(move || {
            let options = options.clone();
            async move { Arc::new(SqliteStore::open(options).unwrap()) as Arc<dyn Store> }
        });
        match clock {
            Some(clock) => subject.clock(clock),
            None => subject,
        }
    }

    async fn sync() -> Subject {
        subject(Durability::Sync, Some(ManualClock::new()))
    }

    async fn buffered() -> Subject {
        subject(Durability::Buffered, Some(ManualClock::new()))
    }

    /// As a store whose time is a server's.
    async fn in_real_time() -> Subject {
        subject(Durability::Buffered, None)
    }

    mod on_sqlite {
        hapax::conformance_tests!(super::sync);
    }

    mod on_sqlite_in_real_time {
        hapax::conformance_tests!(super::in_real_time);
    }

    #[test]
    fn sqlite_answers_as_the_reference_does() {
        model::check(buffered, seeds(60), 150);
    }

    #[test]
    fn sqlite_in_real_time_answers_as_the_reference_does() {
        model::check(in_real_time, seeds(10), 150);
    }
}

/// Other seeds with `HAPAX_SEEDS=FROM..TO`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let Ok(given) = std::env::var("HAPAX_SEEDS") else { return 0..count };
    let (from, to) = given.split_once("..").expect("HAPAX_SEEDS is FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn memory_answers_as_the_reference_does() {
    model::check(memory, seeds(300), 200);
}

#[test]
fn memory_in_real_time_answers_as_the_reference_does() {
    model::check(memory_in_real_time, seeds(30), 200);
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let mut names: Vec<_> = cases().iter().map(|case| case.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
