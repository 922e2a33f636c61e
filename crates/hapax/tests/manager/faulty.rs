//! A store that fails when told to, over one that does not.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use hapax::store::{Around, Store, StoreError, StoreFuture};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not.
    Passes,
    /// Nothing is done.
    Fails,
    /// It is done, and the answer is lost.
    LosesAnswer,
}

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Store>,
    faults: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
}

impl Faulty {
    pub(super) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::default() })
    }

    /// The next `times` calls of that method fail so.
    pub(super) fn will(&self, method: &'static str, fault: Fault, times: usize) {
        self.faults.lock().unwrap().entry(method).or_default().extend(std::iter::repeat_n(fault, times));
    }

    /// Faults that have not happened yet.
    pub(super) fn left(&self, method: &str) -> usize {
        self.faults.lock().unwrap().get(method).map_or(0, VecDeque::len)
    }

    fn next(&self, method: &str) -> Option<Fault> {
        self.faults.lock().unwrap().get_mut(method)?.pop_front()
    }
}

impl Around for Faulty {
    fn within(&self) -> &dyn Store {
        &*self.inner
    }
    fn location(&self) -> &str {
        "faulty:"
    }
    // The default of a store that says nothing.
    fn default_max_entries(&self) -> Option<u64> {
        None
    }
    fn call<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        call: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let store = "faulty:".to_string();
        match self.next(method) {
            None | Some(Fault::Passes) => call(&*self.inner),
            Some(Fault::Fails) => Box::pin(std::future::ready(Err(StoreError::Unavailable {
                store,
                message: format!("{method} fails on purpose"),
            }))),
            Some(Fault::LosesAnswer) => {
                let done = call(&*self.inner);
                Box::pin(async move {
                    let _ = done.await;
                    Err(StoreError::AnswerLost { store, message: format!("{method} is not heard on purpose") })
                })
            }
        }
    }
}
