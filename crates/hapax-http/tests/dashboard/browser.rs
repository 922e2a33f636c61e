//! Chromium, driven by the DevTools protocol over its own pipe: no driver
//! beside it, no port, no further crate.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// How long a condition may take to come true; a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Browsers at a time: each takes a core and more.
static TURNS: Semaphore = Semaphore::const_new(2);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

pub struct Browser {
    _turn: SemaphorePermit<'static>,
    _child: Child,
    _profile: tempfile::TempDir,
    input: tokio::sync::Mutex<ChildStdin>,
    next: AtomicU64,
    waiting: Waiting,
    events: Arc<Mutex<Vec<Value>>>,
}

/// A page of the browser.
pub struct Page<'a> {
    browser: &'a Browser,
    session: String,
}

impl Browser {
    /// Starts Chromium; `None` when it is missing and that was allowed.
    pub async fn start() -> Option<Self> {
        let turn = TURNS.acquire().await.unwrap();
        let profile = tempfile::tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        // Chromium reads commands from descriptor 3 and answers on 4.
        let started = Command::new("sh")
            .args([
                "-c",
                "command -v chromium >/dev/null || exit 127; exec chromium \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null",
            ])
            .args(["chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args([
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-extensions",
            ])
            .args(["--disable-component-update", "--hide-scrollbars", "--window-size=1280,900", &data])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = started.unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (waiting, events) = (Waiting::default(), Arc::new(Mutex::new(Vec::new())));
        tokio::spawn(listen(BufReader::new(output), waiting.clone(), events.clone()));
        let browser = Self {
            _turn: turn,
            _child: child,
            _profile: profile,
            input: tokio::sync::Mutex::new(input),
            next: AtomicU64::new(1),
            waiting,
            events,
        };
        match browser.call(None, "Browser.getVersion", json!({})).await {
            Some(_) => Some(browser),
            None if std::env::var_os("HAPAX_SKIP_BROWSER").is_some_and(|v| v == "1") => {
                eprintln!("SKIPPED: there is no Chromium, and HAPAX_SKIP_BROWSER=1: the dashboard was NOT tested");
                None
            }
            None => panic!(
                "the dashboard is tested in Chromium, which did not start: `apt-get install chromium`, \
                 or HAPAX_SKIP_BROWSER=1 to go without"
            ),
        }
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Option<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, answer);
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.lock().await.write_all(&bytes).await.ok()?;
        let answer = tokio::time::timeout(Duration::from_secs(60), answered).await.expect("Chromium answers").ok()?;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        Some(answer["result"].clone())
    }

    pub async fn page(&self) -> Page<'_> {
        let context = self.call(None, "Target.createBrowserContext", json!({})).await.unwrap();
        let asked = json!({"url": "about:blank", "browserContextId": context["browserContextId"]});
        let target = self.call(None, "Target.createTarget", asked).await.unwrap();
        let asked = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", asked).await.unwrap();
        let page = Page { browser: self, session: attached["sessionId"].as_str().unwrap().into() };
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        page
    }
}

async fn listen(mut output: impl AsyncBufReadExt + Unpin, waiting: Waiting, events: Arc<Mutex<Vec<Value>>>) {
    let mut bytes = Vec::new();
    while output.read_until(0, &mut bytes).await.is_ok_and(|n| n > 0) {
        bytes.pop();
        let message: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bytes.clear();
        match message["id"].as_u64() {
            Some(id) => {
                if let Some(waiter) = waiting.lock().unwrap().remove(&id) {
                    let _ = waiter.send(message);
                }
            }
            None => events.lock().unwrap().push(message),
        }
    }
    // Whoever still waits learns that Chromium is gone.
    waiting.lock().unwrap().clear();
}

impl Page<'_> {
    pub async fn call(&self, method: &str, params: Value) -> Value {
        self.browser.call(Some(&self.session), method, params).await.expect("Chromium runs")
    }

    pub async fn open(&self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
    }

    pub async fn js(&self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until the expression is true.
    #[track_caller]
    pub fn until(&self, expression: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let began = Instant::now();
            // While a page loads there may be nothing to ask.
            while self.js(&format!("(() => {{ try {{ return !!({expression}) }} catch {{ return false }} }})()")).await
                != true
            {
                if began.elapsed() > PATIENCE {
                    let seen = self.js("document.body.innerText.slice(0, 3000)").await;
                    panic!("{at}: never true: {expression}\n{}", seen.as_str().unwrap_or(""));
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
    }

    /// Clicks with the mouse in the middle of the element, which nothing may cover.
    pub async fn click(&self, selector: &str) {
        let s = json!(selector);
        self.until(&format!("document.querySelector({s})?.getClientRects().length")).await;
        self.js(&format!("document.querySelector({s}).scrollIntoView({{block: 'center', behavior: 'instant'}})")).await;
        let hit = format!(
            "(() => {{ const e = document.querySelector({s}), r = e.getBoundingClientRect(), x = r.x + r.width / 2, \
             y = r.y + r.height / 2, top = document.elementFromPoint(x, y); \
             return e.disabled || !(e === top || e.contains(top)) ? null : [x, y] }})()"
        );
        self.until(&hit).await;
        let place = self.js(&hit).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    pub async fn write(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    pub async fn press(&self, key: &str) {
        let text = match key {
            "Enter" => "\r",
            key if key.len() == 1 => key,
            _ => "",
        };
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            _ => 0,
        };
        let event = json!({"type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", event).await;
        let event = json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", event).await;
    }

    pub async fn width(&self, width: u32, height: u32) {
        let asked = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", asked).await;
    }

    pub async fn scheme(&self, scheme: &str) {
        let asked = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", asked).await;
    }

    /// Writes what is seen to `target/screenshots`.
    pub async fn shot(&self, name: &str) {
        use base64::Engine as _;
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("screenshots");
        std::fs::create_dir_all(&target).unwrap();
        std::fs::write(target.join(format!("{name}.png")), png).unwrap();
    }

    /// Events of this page with the method.
    pub fn events(&self, method: &str) -> Vec<Value> {
        let events = self.browser.events.lock().unwrap();
        events.iter().filter(|e| e["method"] == method && e["sessionId"] == *self.session).cloned().collect()
    }
}
