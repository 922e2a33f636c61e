//! A store that notes how long the store within takes.

use std::sync::Arc;
use std::time::Instant;

use hapax::store::{Around, Store, StoreFuture};

use crate::metrics::{Metrics, OPERATIONS};

#[derive(Debug)]
pub(crate) struct Timed {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Timed {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

impl Around for Timed {
    fn within(&self) -> &dyn Store {
        &*self.store
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        ask: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let future = ask(&*self.store);
        // A wait is no measure of the store, and so it is not among the operations.
        let Some(operation) = OPERATIONS.iter().position(|name| *name == method) else { return future };
        Box::pin(async move {
            let began = Instant::now();
            let answer = future.await;
            self.metrics.stored(operation, began.elapsed(), answer.is_err());
            answer
        })
    }
}
