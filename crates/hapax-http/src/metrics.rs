//! The numbers, in Prometheus' text format.
//!
//! A request adds to atomics, and takes one short lock for its route's counter;
//! the text is made when it is asked for. Labels are routes as they are written
//! in the router, never paths: their number is bounded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hapax::{Error, RemoteClaimed};
use http::{Method, StatusCode};
use parking_lot::RwLock;

use crate::app::App;

/// The upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some((bucket, _)) = self.buckets.iter().zip(BOUNDS).find(|(_, bound)| seconds <= *bound) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        #[allow(clippy::cast_precision_loss)] // a sum of seconds needs no 53 bits
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
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

/// Everything that is counted in this process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    // By route; written once per new combination, read on every request.
    requests: RwLock<BTreeMap<String, Vec<Requests>>>,
    durations: Histogram,
    running: AtomicI64,
    pub(crate) connections: AtomicI64,
    outcomes: [AtomicU64; OUTCOMES.len()],
    waits: Histogram,
    actions: Histogram,
    store: [Histogram; OPERATIONS.len()],
    store_errors: AtomicU64,
}

/// The requests of a route by one method that were answered with one status.
#[derive(Debug)]
struct Requests {
    method: &'static str,
    status: u16,
    count: AtomicU64,
}

/// A request under way.
pub(crate) struct Running {
    metrics: Arc<Metrics>,
    began: Instant,
}

impl Running {
    pub(crate) fn done(self, method: &Method, route: &str, status: StatusCode) {
        let (method, status) = (method_label(method), status.as_u16());
        let is_it = |of: &&Requests| of.status == status && of.method == method;
        let known = self.metrics.requests.read();
        if let Some(of) = known.get(route).and_then(|all| all.iter().find(is_it)) {
            of.count.fetch_add(1, Ordering::Relaxed);
        } else {
            drop(known);
            let mut requests = self.metrics.requests.write();
            let all = requests.entry(route.to_string()).or_default();
            match all.iter().find(is_it) {
                Some(of) => {
                    of.count.fetch_add(1, Ordering::Relaxed);
                }
                None => all.push(Requests { method, status, count: AtomicU64::new(1) }),
            }
        }
        self.metrics.durations.observe(self.began.elapsed());
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
        self.metrics.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(crate) fn request(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running { metrics: self.clone(), began: Instant::now() }
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
        if let Some((counter, _)) = self.outcomes.iter().zip(OUTCOMES).find(|(_, name)| *name == outcome) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.waits.observe(waited);
    }

    pub(crate) fn action(&self, duration: Duration) {
        self.actions.observe(duration);
    }

    pub(crate) fn stored(&self, operation: usize, took: Duration, failed: bool) {
        if let Some(histogram) = self.store.get(operation) {
            histogram.observe(took);
        }
        if failed {
            self.store_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The text that Prometheus reads.
    pub(crate) async fn text(&self, app: &App) -> String {
        let mut out = String::with_capacity(16 << 10);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "hapax_build_info", "gauge", "The version.");
        let _ = writeln!(out, "hapax_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        head(&mut out, "hapax_http_requests_total", "counter", "Requests by method, route and status.");
        for (route, Requests { method, status, count }) in
            self.requests.read().iter().flat_map(|(route, all)| all.iter().map(move |of| (route, of)))
        {
            let count = count.load(Ordering::Relaxed);
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
        self.durations.write(&mut out, "hapax_http_request_duration_seconds", "");
        for (name, help, value) in [
            ("hapax_http_requests_running", "Requests under way.", &self.running),
            ("hapax_http_connections", "Open connections.", &self.connections),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {}", value.load(Ordering::Relaxed));
        }
        head(&mut out, "hapax_claims_total", "counter", "Claims by how they went.");
        for (count, outcome) in self.outcomes.iter().zip(OUTCOMES) {
            let _ = writeln!(out, "hapax_claims_total{{outcome=\"{outcome}\"}} {}", count.load(Ordering::Relaxed));
        }
        head(&mut out, "hapax_claim_wait_seconds", "histogram", "Time from a claim to its answer.");
        self.waits.write(&mut out, "hapax_claim_wait_seconds", "");
        head(&mut out, "hapax_action_duration_seconds", "histogram", "Time that completed and failed actions took.");
        self.actions.write(&mut out, "hapax_action_duration_seconds", "");
        head(&mut out, "hapax_store_duration_seconds", "histogram", "Time that the store took, by operation.");
        for (histogram, operation) in self.store.iter().zip(OPERATIONS) {
            if histogram.count.load(Ordering::Relaxed) > 0 {
                histogram.write(&mut out, "hapax_store_duration_seconds", &format!("operation=\"{operation}\""));
            }
        }
        head(&mut out, "hapax_store_errors_total", "counter", "Operations that the store failed to do.");
        let _ = writeln!(out, "hapax_store_errors_total {}", self.store_errors.load(Ordering::Relaxed));
        tenants(&mut out, app).await;
        out
    }
}

/// What the store knows of each namespace.
async fn tenants(out: &mut String, app: &App) {
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
