//! The numbers, in Prometheus' text format.
//!
//! Counts lie in stripes, and a thread adds to its own: two processors that count on one cache line wait for each
//! other. A stripe's lock is taken by its thread, and by whoever asks for the text, which adds the stripes up.
//! Labels are routes as they are written in the router, never paths: their number is bounded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hapax::{Error, RemoteClaimed};
use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::app::{App, Tenant};

/// The upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];
/// The most stripes: more threads share them.
const MOST_STRIPES: usize = 64;

/// A histogram of durations.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    micros: u64,
}

impl Histogram {
    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some((bucket, _)) = self.buckets.iter_mut().zip(BOUNDS).find(|(_, bound)| seconds <= *bound) {
            *bucket += 1;
        }
        self.count += 1;
        self.micros = self.micros.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(0));
    }

    fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, count)| *sum += count);
        self.count += other.count;
        self.micros = self.micros.saturating_add(other.micros);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            sum += bucket;
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
        }
        let count = self.count;
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        #[allow(clippy::cast_precision_loss)] // a sum of seconds needs no 53 bits
        let seconds = self.micros as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum{braced} {seconds}");
        let _ = writeln!(out, "{name}_count{braced} {count}");
    }
}

/// How claims went.
const OUTCOMES: [&str; 7] = ["claimed", "replayed", "in_flight", "in_doubt", "mismatch", "shutting_down", "error"];

/// The store's operations.
pub(crate) const OPERATIONS: [&str; 16] = [
    "now",
    "begin",
    "heartbeat",
    "end",
    "settle",
    "mark",
    "get",
    "remove",
    "clear",
    "sweep",
    "evict_oldest",
    "query",
    "count",
    "counters",
    "reset_counters",
    "census",
];

/// What is counted.
#[derive(Debug, Default)]
struct Counts {
    /// By route.
    requests: BTreeMap<String, Vec<Requests>>,
    durations: Histogram,
    // Of one stripe, these may be below zero: what begins on one thread may end on another.
    running: i64,
    connections: i64,
    outcomes: [u64; OUTCOMES.len()],
    waits: Histogram,
    actions: Histogram,
    store: [Histogram; OPERATIONS.len()],
    store_errors: u64,
}

/// The requests of a route by one method that were answered with one status.
#[derive(Clone, Copy, Debug)]
struct Requests {
    method: &'static str,
    status: u16,
    count: u64,
}

impl Counts {
    fn requested(&mut self, route: &str, these: Requests) {
        let all = match self.requests.get_mut(route) {
            Some(all) => all,
            None => self.requests.entry(route.to_string()).or_default(),
        };
        match all.iter_mut().find(|of| of.status == these.status && of.method == these.method) {
            Some(of) => of.count += these.count,
            None => all.push(these),
        }
    }

    fn add(&mut self, other: &Self) {
        for (route, all) in &other.requests {
            all.iter().for_each(|these| self.requested(route, *these));
        }
        self.durations.add(&other.durations);
        self.running += other.running;
        self.connections += other.connections;
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(sum, count)| *sum += count);
        self.waits.add(&other.waits);
        self.actions.add(&other.actions);
        self.store.iter_mut().zip(&other.store).for_each(|(sum, of)| sum.add(of));
        self.store_errors += other.store_errors;
    }
}

/// Aligned, so that no two stripes share a cache line (or the pair of them that is fetched together).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Mutex<Counts>);

/// Everything that is counted in this process.
#[derive(Debug)]
pub(crate) struct Metrics {
    stripes: Box<[Stripe]>,
}

impl Default for Metrics {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { stripes: (0..threads.min(MOST_STRIPES)).map(|_| Stripe::default()).collect() }
    }
}

/// A request under way.
pub(crate) struct Running {
    // Until it is counted as done.
    metrics: Option<Arc<Metrics>>,
    began: Instant,
}

impl Running {
    pub(crate) fn done(mut self, method: &Method, route: &str, status: StatusCode) {
        let these = Requests { method: method_label(method), status: status.as_u16(), count: 1 };
        if let Some(metrics) = self.metrics.take() {
            let took = self.began.elapsed();
            metrics.count(|counts| {
                counts.running -= 1;
                counts.requested(route, these);
                counts.durations.observe(took);
            });
        }
    }
}

/// Methods of a client's own invention must not make up labels.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics.take() {
            metrics.count(|counts| counts.running -= 1);
        }
    }
}

impl Metrics {
    /// Adds to this thread's stripe.
    fn count(&self, add: impl FnOnce(&mut Counts)) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        let thread = THREAD.try_with(|thread| *thread).unwrap_or(0);
        if let Some(Stripe(counts)) = self.stripes.get(thread % self.stripes.len().max(1)) {
            add(&mut counts.lock());
        }
    }

    /// What all stripes hold.
    fn sum(&self) -> Counts {
        let mut sum = Counts::default();
        self.stripes.iter().for_each(|Stripe(counts)| sum.add(&counts.lock()));
        sum
    }

    pub(crate) fn request(self: &Arc<Self>) -> Running {
        self.count(|counts| counts.running += 1);
        Running { metrics: Some(self.clone()), began: Instant::now() }
    }

    /// A connection that was opened (1) or closed (-1).
    pub(crate) fn connection(&self, change: i64) {
        self.count(|counts| counts.connections += change);
    }

    pub(crate) fn claimed(&self, answer: &Result<RemoteClaimed, Error>, waited: Duration) {
        let outcome = match answer {
            Ok(RemoteClaimed::Started(_)) => "claimed",
            Ok(RemoteClaimed::Replay(_)) => "replayed",
            Err(error) => Self::refusal(error),
        };
        self.claim(outcome, waited);
    }

    /// The outcome of a claim that was refused.
    pub(crate) fn refusal(error: &Error) -> &'static str {
        match error {
            Error::InFlight { .. } => "in_flight",
            Error::InDoubt { .. } => "in_doubt",
            Error::ParamsMismatch { .. } => "mismatch",
            Error::ShuttingDown => "shutting_down",
            _ => "error",
        }
    }

    /// A claim that went like this, after so long.
    pub(crate) fn claim(&self, outcome: &str, waited: Duration) {
        self.count(|counts| {
            if let Some((count, _)) = counts.outcomes.iter_mut().zip(OUTCOMES).find(|(_, name)| *name == outcome) {
                *count += 1;
            }
            counts.waits.observe(waited);
        });
    }

    pub(crate) fn action(&self, duration: Duration) {
        self.count(|counts| counts.actions.observe(duration));
    }

    pub(crate) fn stored(&self, operation: usize, took: Duration, failed: bool) {
        self.count(|counts| {
            if let Some(histogram) = counts.store.get_mut(operation) {
                histogram.observe(took);
            }
            counts.store_errors += u64::from(failed);
        });
    }

    /// The text that Prometheus reads, with the numbers of this namespace alone if there is one.
    pub(crate) async fn text(&self, app: &App, only: Option<&Tenant>) -> String {
        let counts = self.sum();
        let mut out = String::with_capacity(16 << 10);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "hapax_build_info", "gauge", "The version.");
        let _ = writeln!(out, "hapax_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        head(&mut out, "hapax_http_requests_total", "counter", "Requests by method, route and status.");
        for (route, Requests { method, status, count }) in
            counts.requests.iter().flat_map(|(route, all)| all.iter().map(move |of| (route, of)))
        {
            let _ = writeln!(
                out,
                "hapax_http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        head(
            &mut out,
            "hapax_http_request_duration_seconds",
            "histogram",
            "Time from a request's head to its answer's.",
        );
        counts.durations.write(&mut out, "hapax_http_request_duration_seconds", "");
        for (name, help, value) in [
            ("hapax_http_requests_running", "Requests under way.", counts.running),
            ("hapax_http_connections", "Open connections.", counts.connections),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        head(&mut out, "hapax_claims_total", "counter", "Claims by how they went.");
        for (count, outcome) in counts.outcomes.iter().zip(OUTCOMES) {
            let _ = writeln!(out, "hapax_claims_total{{outcome=\"{outcome}\"}} {count}");
        }
        head(&mut out, "hapax_claim_wait_seconds", "histogram", "Time from a claim to its answer.");
        counts.waits.write(&mut out, "hapax_claim_wait_seconds", "");
        head(&mut out, "hapax_action_duration_seconds", "histogram", "Time that completed and failed actions took.");
        counts.actions.write(&mut out, "hapax_action_duration_seconds", "");
        head(&mut out, "hapax_store_duration_seconds", "histogram", "Time that the store took, by operation.");
        for (histogram, operation) in counts.store.iter().zip(OPERATIONS) {
            if histogram.count > 0 {
                histogram.write(&mut out, "hapax_store_duration_seconds", &format!("operation=\"{operation}\""));
            }
        }
        head(&mut out, "hapax_store_errors_total", "counter", "Operations that the store failed to do.");
        let _ = writeln!(out, "hapax_store_errors_total {}", counts.store_errors);
        tenants(&mut out, app, only).await;
        out
    }
}

/// What the store knows of each namespace.
async fn tenants(out: &mut String, app: &App, only: Option<&Tenant>) {
    type Pick = fn(&hapax::Stats) -> u64;
    const GAUGES: [(&str, &str, Pick); 3] = [
        ("hapax_records", "Records kept.", |s| s.total_cached),
        ("hapax_in_progress", "Live attempts.", |s| s.in_progress),
        ("hapax_in_doubt", "Keys in doubt: someone must settle them.", |s| s.in_doubt),
    ];
    const COUNTERS: [(&str, &str, Pick); 8] = [
        ("hapax_hits_total", "Calls answered from the record.", |s| s.hits),
        ("hapax_misses_total", "Calls that found no record.", |s| s.misses),
        ("hapax_duplicates_prevented_total", "Calls whose action did not run again.", |s| s.duplicates_prevented),
        ("hapax_executions_total", "Actions begun.", |s| s.executions),
        ("hapax_failures_total", "Actions that ended in an error.", |s| s.failures),
        ("hapax_waits_joined_total", "Calls that waited for another's attempt.", |s| s.waits_joined),
        ("hapax_mismatches_total", "Calls refused for other params.", |s| s.mismatches),
        ("hapax_evicted_total", "Records evicted before their time.", |s| s.evicted),
    ];
    let mut stats = BTreeMap::new();
    for (namespace, tenant) in &app.live().tenants {
        if only.is_some_and(|only| only.hapax.config().namespace != *namespace) {
            continue;
        }
        match tenant.hapax.stats().await {
            Ok(of) => {
                stats.insert(namespace.clone(), of);
            }
            Err(error) => tracing::warn!(%error, namespace, "no statistics for the metrics"),
        }
    }
    let all = GAUGES.iter().map(|row| ("gauge", row)).chain(COUNTERS.iter().map(|row| ("counter", row)));
    for (kind, (name, help, pick)) in all {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (namespace, stats) in &stats {
            // A namespace is visible ASCII: two of those need an escape here.
            let label = namespace.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(out, "{name}{{namespace=\"{label}\"}} {}", pick(stats));
        }
    }
}
