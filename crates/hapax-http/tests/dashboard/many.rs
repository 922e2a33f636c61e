//! The dashboard with many records, many events, and a token that may less than the page thought.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::store::Store;
use hapax::{Hapax, Key};
use hapax_http::ServeConfig;
use serde_json::json;

use super::browser::{Browser, Page};
use super::common::{Http, serve, serve_on, token};
use super::{LIVE, READY, is_clean};

/// Set to another number of records and another store than `memory:`, the first test measures those.
const RECORDS: &str = "HAPAX_DASHBOARD_RECORDS";
const STORE: &str = "HAPAX_DASHBOARD_STORE";
const ROWS: &str = "document.querySelectorAll('#records .row').length";

async fn filled(store: &Arc<dyn Store>, count: usize) {
    let hapax = Hapax::builder().store(store.clone()).max_entries(10_000_000).build().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..64 {
        let hapax = hapax.clone();
        tasks.spawn(async move {
            for n in (part..count).step_by(64) {
                let (action, target) = [("create_task", "trello"), ("send_mail", "smtp")][n % 2];
                let key = Key::given(&format!("signal-{}:{action}:{target}:{n:016x}", n / 200)).unwrap();
                hapax.mark_executed(&key, &json!({"id": n}), None).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let _ = hapax.shutdown(Duration::from_secs(5)).await.unwrap();
}

async fn asked(http: &Http, path: &str) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        http.get(path).await.is(200);
        best = best.min(began.elapsed());
    }
    eprintln!("{best:>9.1?}  {path}");
    best
}

/// Milliseconds from now until the expression is true, by the page's own clock.
async fn rendered(page: &Page<'_>, act: &str, done: &str) -> f64 {
    let script = format!(
        "new Promise((resolve, reject) => {{ const began = performance.now(); {act}; \
         const look = () => {done} ? requestAnimationFrame(() => resolve(performance.now() - began)) \
           : performance.now() - began > 20000 ? reject(new Error('never')) : requestAnimationFrame(look); look() }})"
    );
    let took = page.js(&script).await.as_f64().unwrap();
    eprintln!("{took:>7.1}ms  {act}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_are_paged_through_newest_first() {
    let Some(browser) = Browser::start().await else { return };
    let address = std::env::var(STORE).unwrap_or_else(|_| "memory:".into());
    let store = hapax::store::open(&address).await.unwrap();
    filled(&store, std::env::var(RECORDS).map_or(20_000, |n| n.parse().unwrap())).await;
    let server = serve_on("max_entries = 10000000", store.clone()).await;
    let http = server.client();
    // Each is bounded work, however many records there are. The bound is for a busy machine.
    for path in [
        "/v1/overview",
        "/v1/records?limit=50&order=desc",
        "/v1/records?limit=50&order=desc&actionType=send_mail",
        "/v1/records?limit=50&order=desc&signalId=signal-3",
        "/v1/records?limit=50&order=desc&state=completed",
        "/v1/records?limit=50&order=desc&state=failed",
    ] {
        assert!(asked(&http, path).await < Duration::from_secs(2), "{path}");
    }

    let page = browser.page().await;
    page.width(1280, 900).await;
    page.open(&format!("http://{}/", server.address)).await;
    page.until(&format!("{READY} && {LIVE}")).await;
    page.until(&format!("{ROWS} === 100")).await;
    let keys = "[...document.querySelectorAll('#records .row')].map((r) => r.dataset.key)";
    let first = http.get("/v1/records?limit=200&order=desc").await.json();
    let newest: Vec<_> = first["records"].as_array().unwrap().iter().map(|r| r["key"].clone()).collect();
    assert_eq!(page.js(keys).await, json!(newest[..100]));

    // All records: older ones by Load more, which leaves what is there where it was.
    let more = "document.querySelector('.more button')";
    page.click(".more button").await;
    page.until(&format!("{ROWS} === 150")).await;
    page.click(".more button").await;
    page.until(&format!("{ROWS} === 200")).await;
    assert_eq!(page.js(keys).await, json!(newest));
    page.until("document.activeElement.dataset.key && document.activeElement === document.querySelectorAll('#records .row')[150]").await;
    http.post("/v1/claims", &json!({"key": "late", "actionType": "a", "target": "t"})).await.is(201);
    page.until("document.querySelector('[aria-label=\"Running now\"]').textContent.includes('late')").await;
    assert_eq!(page.js(ROWS).await, 200, "a list that someone has paged through stays as it is");
    for rows in [250, 300, 350, 400, 450, 500] {
        rendered(&page, &format!("{more}.click()"), &format!("{ROWS} === {rows}")).await;
    }
    assert_eq!(page.js(&format!("{more}.hidden")).await, true);
    page.until("document.querySelector('#records').closest('section').textContent.includes('narrow it further')").await;
    page.click("form.search button").await;
    page.until(&format!("{ROWS} === 100 && document.querySelector('#records .row').dataset.key === 'late'")).await;

    // By a filter, to the end.
    page.click("#by-signal").await;
    page.write("signal-3").await;
    page.until(&format!("{ROWS} === 50 && location.hash === '#signal=signal-3'")).await;
    for rows in [100, 150, 200] {
        page.until(&format!("!{more}.hidden")).await;
        page.click(".more button").await;
        page.until(&format!("{ROWS} === {rows}")).await;
    }
    page.until(&format!("{more}.hidden")).await;
    let at = |n: usize| format!("document.querySelectorAll('#records .row')[{n}].dataset.key");
    let of_signal = http.get("/v1/records?limit=200&order=desc&signalId=signal-3").await.json();
    for n in [0, 99, 199] {
        assert_eq!(page.js(&at(n)).await, of_signal["records"][n]["key"], "{n}");
    }
    let took =
        rendered(&page, "document.querySelector('form.search button').click()", &format!("{ROWS} === 100")).await;
    assert!(took < 2_000.0, "{took} ms");
    is_clean(&page, server.address).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events_leaves_the_page_responsive() {
    let Some(browser) = Browser::start().await else { return };
    let server = serve("max_entries = 200000").await;
    let page = browser.page().await;
    page.width(1280, 900).await;
    page.open(&format!("http://{}/", server.address)).await;
    page.until(&format!("{READY} && {LIVE}")).await;
    // The longest that the page was busy without a pause, and how often it asked.
    page.js("window.longest = 0; new PerformanceObserver((list) => { for (const e of list.getEntries()) window.longest = Math.max(window.longest, e.duration) }).observe({ entryTypes: ['longtask'] })")
        .await;
    let looks = || {
        let asked = page.events("Network.requestWillBeSent");
        asked
            .iter()
            .filter(|r| r["params"]["request"]["url"].as_str().is_some_and(|u| u.ends_with("/v1/overview")))
            .count()
    };
    let (before, began, length) = (looks(), Instant::now(), Duration::from_secs(4));
    let mut tasks = tokio::task::JoinSet::new();
    // A thousand a second, each its own key, as far as the machine goes along.
    for part in 0..10 {
        let http = server.client();
        tasks.spawn(async move {
            let mut turn = tokio::time::interval(Duration::from_millis(10));
            let mut count = 0;
            while began.elapsed() < length {
                turn.tick().await;
                let mark = json!({"result": count, "actionType": "a", "target": "t"});
                http.put(&format!("/v1/records/flood-{part}-{count}"), &mark).await.is(201);
                count += 1;
            }
            count
        });
    }
    // A click is answered while it goes on.
    tokio::time::sleep(length / 2).await;
    let asked = Instant::now();
    page.click("#keys").await;
    page.until("document.querySelector('dialog[open]')").await;
    let answered = asked.elapsed();
    page.press("Escape").await;
    let mut events = 0;
    while let Some(count) = tasks.join_next().await {
        events += count.unwrap();
    }
    let (took, asked) = (began.elapsed(), looks() - before);
    let longest = page.js("window.longest").await.as_f64().unwrap();
    eprintln!(
        "{events} events in {took:.1?}: {asked} looks, longest task {longest:.0} ms, a click after {answered:.1?}"
    );
    assert!(events > 100, "{events} events are no flood");
    // One look in 1.5 s, whatever comes.
    assert!(asked as u128 <= took.as_millis() / 1_500 + 2, "{asked} looks");
    page.until(&format!("{ROWS} === 100 && document.querySelector('#records').textContent.includes('flood-')")).await;
    page.until(&format!("[...document.querySelectorAll('.tile')].find((t) => t.textContent.startsWith('Records')).textContent.replace(/\\D/g, '') === '{events}'")).await;
    is_clean(&page, server.address).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_removed_by_who_may_and_help_is_a_key_away() {
    let Some(browser) = Browser::start().await else { return };
    let toml = |role: &str| token("holder", "default", role) + &token("other", "default", "admin");
    let server = serve(&toml("admin")).await;
    let http = server.client().bearer("other");
    for key in ["first", "second"] {
        http.put(&format!("/v1/records/{key}"), &json!({"result": 1, "actionType": "a", "target": "t"})).await.is(201);
    }
    let page = browser.page().await;
    page.width(1280, 900).await;
    page.open(&format!("http://{}/", server.address)).await;
    page.click("#token").await;
    page.write("holder").await;
    page.press("Enter").await;
    page.until(&format!("{READY} && {LIVE} && {ROWS} === 2")).await;

    // The list of keys, by its own key.
    page.press("?").await;
    page.until("document.querySelector('dialog[open]').textContent.includes('Search by key')").await;
    page.shot("keys").await;
    // The other keys rest meanwhile.
    page.press("t").await;
    assert_eq!(page.js("document.documentElement.dataset.theme ?? null").await, json!(null));
    page.press("Escape").await;
    page.until("!document.querySelector('dialog')").await;
    // In a field it is a letter.
    page.press("/").await;
    page.until("document.activeElement.id === 'by-key'").await;
    page.press("?").await;
    page.until("document.activeElement.value === '?'").await;
    assert_eq!(page.js("document.querySelector('dialog')").await, json!(null));
    page.click("form.search button").await;
    page.until(&format!("{ROWS} === 2")).await;

    // Keeping it is the first answer; removing needs another click.
    page.click("#records [data-key=first]").await;
    page.click("dialog .removal button").await;
    page.until("document.querySelector('dialog .removal').textContent.includes('runs the action again')").await;
    page.click("dialog .removal .ghost").await;
    page.until("document.querySelector('dialog .removal').textContent.includes('Remove record')").await;
    http.get("/v1/records/first").await.is(200);
    page.click("dialog .removal button").await;
    page.click("dialog .removal .danger").await;
    page.until(&format!("!document.querySelector('dialog') && {ROWS} === 1")).await;
    http.get("/v1/records/first").await.is(404);

    // The token may less by now than the page knows: the server's word is shown, and nothing is gone.
    page.click("#records [data-key=second]").await;
    page.click("dialog .removal button").await;
    let config = ServeConfig::from_toml(&toml("read")).unwrap();
    server.reloader.as_ref().unwrap().reload(config).await.unwrap();
    page.click("dialog .removal .danger").await;
    page.until(
        "document.querySelector('dialog .removal [role=alert]').textContent.includes('may read and this needs admin')",
    )
    .await;
    page.shot("refused").await;
    http.get("/v1/records/second").await.is(200);
    page.press("Escape").await;
    // Once it has looked again, it does not offer it.
    http.put("/v1/records/third", &json!({"result": 1, "actionType": "a", "target": "t"})).await.is(201);
    page.until("document.getElementById('where').textContent.endsWith('read')").await;
    page.click("#records [data-key=second]").await;
    page.until("document.querySelector('dialog .removal button').disabled").await;
    page.until("document.querySelector('dialog .removal').textContent.includes('needs the role admin')").await;
    is_clean(&page, server.address).await;
    server.stop().await;
}
