//! What the metrics learn of the layer's claims: how each went and how long it took to say so, and how long the
//! handler ran whose answer was recorded. Just as the API's claims are counted.

use std::sync::Arc;
use std::time::Instant;

use hapax::Error;

use crate::metrics::Metrics;

/// One request's claim, from the moment when its key is known.
pub(super) struct Count {
    metrics: Option<Arc<Metrics>>,
    began: Instant,
}

impl Count {
    pub(super) fn begin(metrics: Option<&Arc<Metrics>>) -> Self {
        Self { metrics: metrics.cloned(), began: Instant::now() }
    }

    /// The handler runs.
    pub(super) fn claimed(&self) -> Timed {
        if let Some(metrics) = &self.metrics {
            metrics.claim("claimed", self.began.elapsed());
        }
        Timed { metrics: self.metrics.clone(), began: Instant::now() }
    }

    /// The handler did not run: there was an answer, or a refusal.
    pub(super) fn answered<T>(&self, answer: &Result<T, Error>) {
        if let Some(metrics) = &self.metrics {
            let outcome = answer.as_ref().map_or_else(Metrics::refusal, |_| "replayed");
            metrics.claim(outcome, self.began.elapsed());
        }
    }
}

/// A handler that runs.
pub(super) struct Timed {
    metrics: Option<Arc<Metrics>>,
    began: Instant,
}

impl Timed {
    pub(super) fn done(self) {
        if let Some(metrics) = self.metrics {
            metrics.action(self.began.elapsed());
        }
    }
}
