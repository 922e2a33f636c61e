//! The dashboard in Chromium, by real clicks and keys. Screenshots go to `target/screenshots`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod many;

use std::net::SocketAddr;

use browser::{Browser, Page};
use common::{Http, Running, serve, token};
use hapax_http::{ApiServer, ServeConfig};
use serde_json::json;
use tokio::sync::oneshot;

const READY: &str = "document.querySelector('main').dataset.view === 'ready'";
const LIVE: &str = "document.getElementById('live').dataset.state === 'on'";
const RLO: &str = "\u{202e}gpj.exe\u{200b}\u{1f600}";

/// A server at an address that it had before.
async fn serve_at(address: SocketAddr, toml: &str) -> Running {
    let mut config = ServeConfig::from_toml(toml).unwrap();
    config.listen = address;
    let server = ApiServer::bind(config).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        server.run(stop).await.unwrap();
    });
    Running::new(address, stop, task)
}

async fn doubt(http: &Http, action: &serde_json::Value) -> String {
    let key = action["key"].as_str().unwrap();
    let attempt = http.claim(action).await;
    let lost = json!({"key": key, "error": "connection lost", "class": "unknown"});
    http.post(&format!("/v1/claims/{attempt}/fail"), &lost).await.is(200);
    attempt
}

/// Nothing was run that should not, nothing was asked of anyone else.
async fn is_clean(page: &Page<'_>, address: SocketAddr) {
    assert!(page.js("window.pwned ?? null").await.is_null(), "foreign text was run");
    let thrown = page.events("Runtime.exceptionThrown");
    assert!(thrown.is_empty(), "{thrown:?}");
    let asked = page.events("Network.requestWillBeSent");
    assert!(!asked.is_empty());
    for request in asked {
        let url = request["params"]["request"]["url"].as_str().unwrap().to_string();
        assert!(url.starts_with(&format!("http://{address}/")), "asked of another origin: {url}");
    }
    let logged = page.events("Log.entryAdded").into_iter().filter(|e| e["params"]["entry"]["source"] != "network");
    let logged: Vec<_> = logged.collect();
    assert!(logged.is_empty(), "{logged:?}");
}

async fn fits(page: &Page<'_>) {
    let wide = "document.scrollingElement.scrollWidth <= innerWidth";
    assert_eq!(page.js(wide).await, true, "it scrolls sideways");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_text_stays_text_at_every_width() {
    let Some(browser) = Browser::start().await else { return };
    let server = serve("").await;
    let http = server.client();
    let image = "<img src=x onerror=\"window.pwned=1\">";
    let script = "\"><script>window.pwned=2</script>";
    let long = "long ".repeat(2_000);
    let key = "<img/src=x/onerror=window.pwned=3>";
    let claim = json!({"key": key, "signalId": script, "actionType": image, "target": RLO, "params": {image: [script, long]},
        "keepParams": "full", "tags": {"<b>tag": image},
        "owner": {"host": "h", "pid": 1, "label": "<svg onload=window.pwned=4>"}});
    let attempt = http.claim(&claim).await;
    http.complete(&attempt, key, &json!({"html": image, "long": "x".repeat(10_000)})).await.is(200);
    let failing = json!({"key": "'-alert(1)-'", "actionType": script, "target": "wide".repeat(128)});
    let attempt = http.claim(&failing).await;
    let error = json!({"key": "'-alert(1)-'", "error": format!("{image}{script}{RLO}{long}")});
    http.post(&format!("/v1/claims/{attempt}/fail"), &error).await.is(200);
    doubt(&http, &json!({"key": "javascript:window.pwned=5", "actionType": image, "target": "a".repeat(300)})).await;

    let page = browser.page().await;
    page.width(1280, 900).await;
    page.scheme("light").await;
    page.open(&format!("http://{}/", server.address)).await;
    page.until(&format!("{READY} && {LIVE}")).await;
    page.until("document.querySelectorAll('#records .row').length === 3").await;
    // What would turn the text around is named.
    page.until("document.querySelector('#records').textContent.includes('⟨U+202E⟩gpj.exe⟨U+200B⟩')").await;
    assert_eq!(page.js("document.querySelectorAll('main img, main script, main b').length").await, 0);
    fits(&page).await;
    let selector = "#records .row[data-key^='<img']";
    page.click(selector).await;
    page.until("document.querySelector('dialog.sheet [data-secret=result]')").await;
    assert_eq!(page.js("document.body.textContent.includes('xxxxxxxxxx')").await, false, "the result shows unasked");
    page.click("[data-secret=params]").await;
    page.click("[data-secret=result]").await;
    page.until("document.querySelector('dialog.sheet').textContent.includes('xxxxxxxxxx')").await;
    page.shot("hostile-record").await;
    page.press("Escape").await;
    page.until("!document.querySelector('dialog')").await;
    for (scheme, ground) in [("light", "rgb(247, 248, 250)"), ("dark", "rgb(14, 16, 20)")] {
        page.scheme(scheme).await;
        page.until(&format!("getComputedStyle(document.body).backgroundColor === '{ground}'")).await;
        page.width(360, 740).await;
        page.until("innerWidth === 360").await;
        fits(&page).await;
        page.shot(&format!("phone-{scheme}")).await;
        page.width(1280, 900).await;
        page.until("innerWidth === 1280").await;
        fits(&page).await;
        page.shot(&format!("hostile-{scheme}")).await;
    }
    is_clean(&page, server.address).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_shows_as_it_was_recorded() {
    let Some(browser) = Browser::start().await else { return };
    let server = serve("").await;
    let result = r#"{"id":9007199254740993,"f":1.10,"s":"a,\"}]:{\\","e":[],"o":{ },"n":[1E400,{"result":-0.0}]}"#;
    let body = format!(r#"{{"result":{result},"actionType":"a","target":"t"}}"#);
    server.client().send(http::Method::PUT, "/v1/records/exact", body).await.is(201);
    let page = browser.page().await;
    page.open(&format!("http://{}/", server.address)).await;
    page.click("#records .row[data-key=exact]").await;
    page.click("[data-secret=result]").await;
    let shown = page.js("document.querySelector('dialog.sheet .secret pre').textContent").await;
    let lines = [
        "{",
        "  \"id\": 9007199254740993,",
        "  \"f\": 1.10,",
        r#"  "s": "a,\"}]:{\\","#,
        "  \"e\": [],",
        "  \"o\": {},",
        "  \"n\": [",
        "    1E400,",
        "    {",
        "      \"result\": -0.0",
        "    }",
        "  ]",
        "}",
    ];
    assert_eq!(shown.as_str().unwrap(), lines.join("\n"));
    is_clean(&page, server.address).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_first_record_to_a_settled_doubt() {
    let Some(browser) = Browser::start().await else { return };
    let server = serve("").await;
    let http = server.client();
    let page = browser.page().await;
    page.width(1280, 900).await;
    page.scheme("light").await;
    page.open(&format!("http://{}/", server.address)).await;
    page.until(&format!("{READY} && {LIVE}")).await;
    page.until("document.querySelector('#records').textContent.includes('curl')").await;
    page.shot("empty").await;

    // What happens shows without a reload.
    page.js("window.sameDocument = true").await;
    for n in 0..30 {
        let key = format!("signal-{n}:create_task:trello:{n:016x}");
        let (action, target) = [("create_task", "trello"), ("send_mail", "smtp"), ("charge_card", "stripe")][n % 3];
        let claim = json!({"key": key, "signalId": format!("signal-{n}"), "actionType": action,
            "target": target, "params": {"n": n}, "keepParams": "full"});
        let attempt = http.claim(&claim).await;
        if n % 10 == 9 {
            let failed = json!({"key": key, "error": "card declined", "durationMs": 130});
            http.post(&format!("/v1/claims/{attempt}/fail"), &failed).await.is(200);
        } else {
            let done = json!({"key": key, "result": {"id": n}, "durationMs": 40 * n, "ttl": if n % 4 == 0 { "30m" } else { "1d" }});
            http.post(&format!("/v1/claims/{attempt}/complete"), &done).await.is(200);
        }
        for _ in 0..n % 5 {
            http.post("/v1/claims", &claim).await.is(200);
        }
    }
    http.claim(&json!({"key": "running", "actionType": "export", "target": "s3"})).await;
    doubt(&http, &json!({"key": "pay:1", "actionType": "charge_card", "target": "stripe"})).await;
    doubt(&http, &json!({"key": "pay:2", "actionType": "charge_card", "target": "stripe"})).await;
    page.until("document.querySelectorAll('.doubt .row').length === 2").await;
    page.until("document.querySelectorAll('#records .row').length === 33").await;
    page.until("document.querySelector('.tile dd').textContent === '60'").await;
    assert_eq!(page.js("window.sameDocument").await, true);
    page.shot("desktop-light").await;
    page.scheme("dark").await;
    page.shot("desktop-dark").await;
    page.press("t").await;
    page.until("document.documentElement.dataset.theme === 'light'").await;

    // Searching, by the keyboard alone.
    page.press("/").await;
    page.until("document.activeElement.id === 'by-key'").await;
    page.click("#by-action").await;
    page.write("send_mail").await;
    page.until("document.querySelectorAll('#records .row').length === 10 && location.hash === '#action=send_mail'")
        .await;
    page.press("Escape").await;
    page.until("document.activeElement === document.body").await;
    // Leaving the field leaves the filter.
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(
        page.js("document.querySelector('#by-action').value + location.hash").await,
        "send_mail#action=send_mail"
    );
    page.js("document.querySelector('#records .row').focus()").await;
    page.press("j").await;
    page.until("document.activeElement === document.querySelectorAll('#records .row')[1]").await;
    page.press("Enter").await;
    page.until("document.querySelector('dialog.sheet [data-secret=params]')").await;
    assert_eq!(page.js("document.querySelector('dialog.sheet pre')").await, json!(null), "params show unasked");
    assert_eq!(page.js("/undefined|false|NaN/.test(document.querySelector('dialog').textContent)").await, false);
    page.shot("record").await;
    page.press("Escape").await;
    page.until("!document.querySelector('dialog') && !location.hash.includes('record')").await;
    page.until("document.activeElement === document.querySelectorAll('#records .row')[1]").await;

    // A link carries the filter.
    page.open("about:blank").await;
    page.open(&format!("http://{}/#state=failed", server.address)).await;
    page.until(&format!("{READY} && document.querySelectorAll('#records .row').length === 3")).await;

    // It happened, with a result that must be JSON, after a look.
    let settle = |key: &str| format!(".doubt li:has([data-key='{key}']) .settle");
    page.click(&settle("pay:1")).await;
    assert_eq!(page.js("document.querySelector('dialog [type=submit]').disabled").await, true);
    page.click("dialog [value=happened]").await;
    page.click("#settle-result").await;
    page.write("{\"id\": ").await;
    assert_eq!(page.js("document.querySelector('dialog [type=submit]').disabled").await, true, "nobody has looked");
    page.click("#settle-sure").await;
    page.shot("settle").await;
    page.click("dialog [type=submit]").await;
    page.until("document.querySelector('dialog [role=alert]').textContent.includes('no JSON')").await;
    assert_eq!(http.get("/v1/records/pay%3A1").await.json()["state"], "in_doubt");
    page.click("#settle-result").await;
    page.write("7}").await;
    page.click("dialog [type=submit]").await;
    page.until("!document.querySelector('dialog') && document.querySelectorAll('.doubt .row').length === 1").await;
    let settled = http.get("/v1/records/pay%3A1").await.json();
    assert_eq!((&settled["state"], &settled["result"]), (&json!("completed"), &json!({"id": 7})));

    // It did not.
    page.click(&settle("pay:2")).await;
    page.click("dialog [value=not_happened]").await;
    page.click("#settle-sure").await;
    page.click("dialog [type=submit]").await;
    page.until("!document.querySelector('dialog') && document.querySelector('.doubt').hidden").await;
    http.get("/v1/records/pay%3A2").await.is(404);

    // Another attempt than the one that was looked into: nothing changes.
    let before = json!({"key": "pay:3", "actionType": "charge_card", "target": "stripe"});
    doubt(&http, &before).await;
    page.click(&settle("pay:3")).await;
    http.post("/v1/records/pay%3A3/settle", &json!({"verdict": "not_happened"})).await.is(200);
    doubt(&http, &before).await;
    page.click("dialog [value=not_happened]").await;
    page.click("#settle-sure").await;
    page.click("dialog [type=submit]").await;
    page.until("document.querySelector('dialog [role=alert]').textContent.includes('Nothing was changed')").await;
    assert_eq!(http.get("/v1/records/pay%3A3").await.json()["state"], "in_doubt");
    is_clean(&page, server.address).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_roles_and_a_server_that_goes_and_comes() {
    let Some(browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let toml = format!(
        "store = \"sqlite:{}\"\n{}{}",
        dir.path().join("d.db").display(),
        token("reader", "default", "read"),
        token("writer", "default", "write")
    );
    let server = serve(&toml).await;
    let address = server.address;
    doubt(&server.client().bearer("writer"), &json!({"key": "k", "actionType": "charge", "target": "stripe"})).await;

    let page = browser.page().await;
    page.width(1280, 900).await;
    page.open(&format!("http://{address}/")).await;
    page.click("#token").await;
    page.write("wrong").await;
    page.press("Enter").await;
    page.until("document.querySelector('[role=alert].problem')?.textContent.includes('not known')").await;
    page.shot("sign-in").await;
    page.click("#token").await;
    page.write("reader").await;
    page.click(".sign-in button").await;
    page.until(&format!("{READY} && {LIVE}")).await;
    assert_eq!(page.js("localStorage.length").await, 0, "the token stays in the tab");
    page.until("document.querySelector('.doubt .settle').disabled").await;
    page.until("document.querySelector('.doubt').textContent.includes('needs the role write')").await;
    page.click(".doubt .row").await;
    page.until("document.querySelector('dialog #settle').disabled").await;
    page.shot("read-only").await;
    page.press("Escape").await;

    server.stop().await;
    page.until("!document.getElementById('banner').hidden").await;
    page.until("document.getElementById('live').dataset.state === 'off'").await;
    page.shot("disconnected").await;
    let server = serve_at(address, &toml).await;
    page.until(&format!("document.getElementById('banner').hidden && {LIVE}")).await;
    doubt(&server.client().bearer("writer"), &json!({"key": "k2", "actionType": "charge", "target": "stripe"})).await;
    page.until("document.querySelectorAll('.doubt .row').length === 2").await;

    page.click("#leave").await;
    page.until("document.querySelector('#token') && sessionStorage.length === 0").await;
    is_clean(&page, address).await;
    server.stop().await;
}

#[tokio::test]
async fn files_are_cached_by_their_tags_and_nothing_may_frame_them() {
    let server = serve("").await;
    let page = server.client().get("/").await;
    let policy = page.is(200).header("content-security-policy").unwrap().to_string();
    for part in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "trusted-types 'none'"] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    for path in text.split('"').filter(|part| part.starts_with("/assets/")) {
        let file = server.client().get(path).await;
        assert_eq!(file.is(200).header("x-content-type-options"), Some("nosniff"));
        assert_eq!(file.header("referrer-policy"), Some("no-referrer"));
        let tag = file.header("etag").unwrap();
        let again = server.client().with("if-none-match", tag).get(path).await;
        assert!(again.is(304).body.is_empty());
        server.client().with("if-none-match", "\"other\"").get(path).await.is(200);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_overview_is_bounded_and_comes_to_the_newest() {
    let server = serve("").await;
    let http = server.client();
    let began = http.get("/v1/overview").await.is(200).json();
    assert_eq!((&began["role"], &began["lookedAt"]), (&json!("admin"), &json!(0)));
    for n in 0..120 {
        let key = format!("n-{n}");
        let claim = json!({"key": key, "actionType": if n < 100 { "a" } else { "b" }, "target": "t",
            "params": {"secret": 1}, "keepParams": "full"});
        let attempt = http.claim(&claim).await;
        let done = json!({"key": key, "result": "secret", "durationMs": n});
        http.post(&format!("/v1/claims/{attempt}/complete"), &done).await.is(200);
    }
    let claim = json!({"key": "n-1", "actionType": "a", "target": "t", "params": {"secret": 1}});
    http.post("/v1/claims", &claim).await.is(200);
    // A look holds for two seconds.
    let began = std::time::Instant::now();
    let answer = loop {
        let answer = http.get("/v1/overview").await;
        if answer.is(200).json()["lookedAt"] == 120 {
            break answer;
        }
        assert!(began.elapsed().as_secs() < 10, "{answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"), "params and results stay out");
    let seen = answer.json();
    assert_eq!(seen["newest"].as_array().unwrap().len(), 100);
    assert_eq!(seen["newest"][0]["key"], "n-119");
    assert_eq!(seen["slowest"][0]["durationMs"], 119);
    let kinds: Vec<_> = seen["kinds"].as_array().unwrap().iter().map(|k| (&k["actionType"], &k["records"])).collect();
    assert_eq!(kinds, [(&json!("a"), &json!(100)), (&json!("b"), &json!(20))]);
    let minutes = seen["minutes"].as_array().unwrap();
    assert_eq!(minutes.iter().map(|m| m["duplicatesPrevented"].as_u64().unwrap()).sum::<u64>(), 1);
    server.stop().await;
}
