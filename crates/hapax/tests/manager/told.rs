//! What is told: every step has its event, with the key, and none carries params or results.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hapax::{Action, ActionError, Claimed, Hapax};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Metadata, Subscriber};

use super::run;

const SECRET: &str = "hunter2";
const PRECIOUS: &str = "the-result-itself";

/// A span or an event, as text.
#[derive(Clone, Debug)]
struct Line {
    target: String,
    name: String,
    fields: Vec<(String, String)>,
}

#[derive(Clone, Default)]
struct Listener {
    lines: Arc<Mutex<Vec<Line>>>,
    spans: Arc<AtomicU64>,
}

struct Fields<'a>(&'a mut Vec<(String, String)>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name().into(), format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name().into(), value.into()));
    }
}

impl Listener {
    fn hear(&self, metadata: &Metadata<'_>, record: impl FnOnce(&mut Fields<'_>)) {
        let mut fields = Vec::new();
        record(&mut Fields(&mut fields));
        let line = Line { target: metadata.target().into(), name: metadata.name().into(), fields };
        self.lines.lock().unwrap().push(line);
    }
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.hear(span.metadata(), |fields| span.record(fields));
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        self.hear(event.metadata(), |fields| event.record(fields));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn every_step_is_told_with_its_key_and_nothing_tells_params_or_results() {
    let listener = Listener::default();
    // One subscriber for all threads of the process: other tests are heard too, and must be as discreet.
    tracing::subscriber::set_global_default(listener.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let act = Action::new("log_in", "bank").signal("told").params(json!({"password": SECRET}));
    let key = act.generate_key().unwrap();
    runtime.block_on(async {
        let hapax = Hapax::builder().namespace("told").build().await.unwrap();
        let runs = AtomicUsize::new(0);
        run(&hapax, &act, &runs, PRECIOUS).await.unwrap();
        run(&hapax, &act, &runs, PRECIOUS).await.unwrap();
        hapax.check_executed(&key).await.unwrap();
        let other = Hapax::builder().store(hapax.store().clone()).namespace("told").build().await.unwrap();
        run(&other, &act, &runs, PRECIOUS).await.unwrap();
        let mismatch = act.clone().key(key.clone()).params(json!({"password": "other"}));
        run(&other, &mismatch, &runs, PRECIOUS).await.unwrap_err();
        hapax.clear_key(&key).await.unwrap();
        let Claimed::Started(claim) = hapax.claim(&act).await.unwrap() else { panic!("it was cleared") };
        drop(claim);
        let doubted = run(&hapax, &act, &runs, PRECIOUS).await.unwrap_err();
        assert!(!format!("{doubted} {doubted:?}").contains(SECRET), "nor does an error tell");
        let settlement =
            hapax::store::Settlement::Happened { result: hapax::Json::of(PRECIOUS).unwrap(), ttl: hapax::Ttl::Never };
        hapax.settle(&key, settlement).await.unwrap();
        let failing = act.clone().signal("failing");
        hapax.execute::<String, _, _>(&failing, |_| async { Err(ActionError::permanent("no")) }).await.unwrap_err();
        let large = act.clone().signal("large");
        hapax.configure(|c| c.max_result_bytes = 10).unwrap();
        run(&hapax, &large, &runs, PRECIOUS).await.unwrap_err();
        let _ = hapax.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    });
    let lines = listener.lines.lock().unwrap().clone();
    let ours: Vec<&Line> = lines.iter().filter(|l| l.target.starts_with("hapax")).collect();
    for line in &ours {
        for secret in [SECRET, PRECIOUS] {
            assert!(line.fields.iter().all(|(_, value)| !value.contains(secret)), "it tells: {line:?}");
        }
    }
    let with_key = |message: &str| {
        ours.iter().any(|line| {
            let says = line.name == message || line.fields.iter().any(|(n, v)| n == "message" && v == message);
            says && line.fields.iter().any(|(n, v)| n == "key" && v.contains(":log_in:bank:"))
        })
    };
    for step in [
        "hapax.execute",
        "hapax.claim",
        "attempt began",
        "attempt ended",
        "replayed from memory",
        "replayed from the store",
        "params mismatch; nothing ran",
        "a claim was dropped; its key is in doubt",
        "settled",
        "the result was not recorded; the key is in doubt",
    ] {
        assert!(with_key(step), "no {step:?} with a key among {ours:#?}");
    }
}

#[test]
fn every_name_of_the_seed_is_found_in_the_documentation() {
    let sources = [
        include_str!("../../src/manager.rs"),
        include_str!("../../src/execute.rs"),
        include_str!("../../src/key.rs"),
        include_str!("../../src/canonical.rs"),
        include_str!("../../src/config.rs"),
        include_str!("../../src/action.rs"),
    ]
    .concat();
    for name in [
        "generateIdempotencyKey",
        "parseIdempotencyKey",
        "paramsAreEquivalent",
        "checkExecuted",
        "markExecuted",
        "executeWithIdempotency",
        "cleanupExpired",
        "cleanupOldestEntries",
        "clearIdempotencyKey",
        "clearAllCache",
        "getIdempotencyRecord",
        "getCachedKeys",
        "getIdempotencyStats",
        "resetStats",
        "getCacheInfo",
        "getConfig",
        "startAutoCleanup",
        "stopAutoCleanup",
        "findKeysByActionType",
        "findKeysByTarget",
        "findKeysBySignalId",
        "getExpiringSoon",
    ] {
        assert!(sources.contains(&format!("#[doc(alias = \"{name}\")]")), "nobody who looks for {name} finds it");
    }
    // The one whose name is the same here.
    assert!(sources.contains("pub fn configure("));
}
