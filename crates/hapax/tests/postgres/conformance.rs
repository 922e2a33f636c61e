//! The suite that every store passes, directly and through PgBouncer in transaction mode.

use std::sync::Arc;
use std::time::Duration;

use hapax::store::Store;
use hapax::store::conformance::{Subject, model};

use crate::common::{open, pooled_url, url};

fn subject(store: impl Store, url: String) -> Subject {
    // Long enough for a connection to be opened on a busy machine.
    Subject::new(Arc::new(store)).tick(Duration::from_millis(400)).opened_again_by(move || {
        let url = url.clone();
        async move { Arc::new(open(&url).await) as Arc<dyn Store> }
    })
}

async fn direct() -> Subject {
    let url = url();
    subject(open(&url).await, url)
}

async fn pooled() -> Subject {
    let url = pooled_url();
    subject(open(&url).await, url)
}

mod directly {
    hapax::conformance_tests!(crate::conformance::direct);
}

mod behind_pgbouncer {
    hapax::conformance_tests!(crate::conformance::pooled);
}

#[test]
fn it_answers_as_the_reference_does() {
    model::check(direct, 0..4, 100);
}
