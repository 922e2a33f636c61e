//! `hapax serve` and `hapax proxy` as processes: the configuration is read again at SIGHUP, and SIGTERM drains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[macro_use]
mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Home, PATIENCE, finish, kill, wait_until};
use rustix::process::Signal;

struct Server {
    child: Child,
    address: String,
    home: Home,
}

impl Server {
    fn start(settings: &str) -> Self {
        Self::start_with(settings, &["serve"]).0
    }

    /// It, and what comes after its first line.
    fn start_with(settings: &str, args: &[&str]) -> (Self, BufReader<ChildStdout>) {
        let home = Home::new();
        home.write("serve.toml", settings);
        let more = ["--server-config", "serve.toml", "--listen", "127.0.0.1:0"];
        let mut command: Command = home.hapax([args, &more].concat());
        let log = File::create(home.path("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let address = after(&mut lines, "listening on http://");
        (Self { child, address, home }, lines)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    fn ask(&self, token: &str, request: &str, body: &str) -> std::io::Result<String> {
        ask(&self.address, token, request, body)
    }

    fn status(&self, token: &str) -> u16 {
        status(&self.address, token, "GET /v1/stats")
    }

    /// How it ended, and how long that took.
    fn ended(&mut self, within: Duration) -> (ExitStatus, Duration) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, began.elapsed());
            }
            assert!(began.elapsed() < within, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of a server that is started like this in this home; it is gone when this returns.
fn served_in(home: &Home, args: &[&str], env: &[(&str, &str)], meanwhile: impl FnOnce(&str)) {
    let mut command = home.hapax(args);
    command.args(["--listen", "127.0.0.1:0"]).envs(env.iter().copied()).stdout(Stdio::piped());
    let mut child = command.stderr(File::create(home.path("log")).unwrap()).spawn().unwrap();
    let address = after(&mut BufReader::new(child.stdout.take().unwrap()), "listening on http://");
    let mut server = Server { child, address, home: Home::new() };
    meanwhile(&server.address);
    server.signal(Signal::TERM);
    assert_eq!(server.ended(PATIENCE).0.code(), Some(0));
}

/// The next line, which begins like this.
fn after(lines: &mut impl BufRead, begin: &str) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim().strip_prefix(begin).unwrap_or_else(|| panic!("{line:?} is not {begin}…")).to_string()
}

fn status(address: &str, token: &str, request: &str) -> u16 {
    let answer = ask(address, token, request, "{}").unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The whole answer to one request on a connection of its own.
fn ask(address: &str, token: &str, request: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let auth = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let head = format!("{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{auth}");
    write!(stream, "{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn tokens(names: &[&str]) -> String {
    let one = |name: &&str| {
        let hash = hapax_http::TokenHash::of(name);
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nrole = \"admin\"\n")
    };
    names.iter().map(one).collect()
}

#[test]
fn a_hangup_takes_up_tokens_and_a_broken_file_changes_nothing() {
    let server = Server::start(&tokens(&["first", "kept"]));
    assert_eq!((server.status("first"), server.status("kept"), server.status("later")), (200, 200, 401));
    server.home.write("serve.toml", &tokens(&["kept", "later"]));
    server.signal(Signal::HUP);
    wait_until("the new token is known", || server.status("later") == 200);
    assert_eq!((server.status("first"), server.status("kept")), (401, 200));
    for broken in ["[[token", "lisen = \"127.0.0.1:1\"", "[limits]\nconnections = 0"] {
        let before = server.log().matches("was not reloaded").count();
        server.home.write("serve.toml", broken);
        server.signal(Signal::HUP);
        wait_until("it says so", || server.log().matches("was not reloaded").count() > before);
        assert_eq!((server.status("first"), server.status("later")), (401, 200), "{broken}");
    }
    // A file that is right again is taken up.
    server.home.write("serve.toml", &tokens(&["first"]));
    server.signal(Signal::HUP);
    wait_until("the first token is back", || server.status("first") == 200);
    assert_eq!(server.status("later"), 401);
}

#[test]
fn flags_and_the_environment_name_the_store_beside_a_servers_file_too() {
    let upstream = Server::start("");
    let home = Home::new();
    let digits = "0a".repeat(32);
    home.write("key", &digits);
    home.write("limits.toml", "[limits]\nconnections = 100");
    home.write("named.toml", "store = \"sqlite:of-the-file.db\"\nnamespace = \"of-the-file\"");
    let encryption = "[encryption]\ncurrent = 'a'\n[[encryption.key]]\nid = 'a'\nfile = 'key'\n";
    home.write("own.toml", &format!("store = 'sqlite:own.db'\nnamespace = 'own'\n{encryption}"));
    let proxy = ["proxy", "--upstream", &format!("http://{}", upstream.address)].map(String::from);
    let flag = ["--store", "sqlite:flag.db", "--namespace", "flag"];
    let variables = [("HAPAX_STORE", "sqlite:variable.db"), ("HAPAX_NAMESPACE", "variable")];
    for (file, flags, env, database, namespace) in [
        ("limits.toml", &flag[..], &[][..], "flag.db", "flag"),
        ("named.toml", &flag[..], &variables[..], "flag.db", "flag"),
        ("limits.toml", &[], &variables[..], "variable.db", "variable"),
        ("named.toml", &[], &variables[..], "variable.db", "variable"),
        ("named.toml", &[], &[], "of-the-file.db", "of-the-file"),
        ("named.toml", &["--config", "own.toml"], &[], "of-the-file.db", "of-the-file"),
        ("limits.toml", &["--config", "own.toml"], &[], "own.db", "own"),
        // Only where nobody names a store it is the server's default.
        ("limits.toml", &[], &[], "", "default"),
    ] {
        for proxies in [false, true] {
            let at = format!("{file} {flags:?} {env:?} {proxies}");
            let command: Vec<&str> = if proxies { proxy.iter().map(String::as_str).collect() } else { vec!["serve"] };
            let args = [&command, &["--server-config", file][..], flags].concat();
            served_in(&home, &args, env, |address| {
                let claim = "POST /v1/mark/k HTTP/1.1\r\nidempotency-key: k\r\nx-rest:";
                if proxies {
                    ask(address, "", claim, "{}").unwrap();
                    if !database.is_empty() {
                        // Without a word the proxy has a namespace of its own.
                        let of_proxy = if flags.contains(&"--config") { "proxy" } else { namespace };
                        let of_proxy = if file == "named.toml" { namespace } else { of_proxy };
                        let store = format!("sqlite:{database}");
                        let ls = home.json(["--json", "--store", &store, "--namespace", of_proxy, "stats"]);
                        assert_eq!(ls["totalCached"], 1, "{at} {ls}");
                    }
                } else if !database.is_empty() {
                    let store = format!("http://{address}");
                    home.ok(["--store", &store, "--namespace", namespace, "mark", "k", "--result", "1"]);
                }
            });
            for name in ["flag.db", "variable.db", "of-the-file.db", "own.db"] {
                assert_eq!(home.path(name).exists(), name == database, "{name}: {at}");
            }
            assert!(!home.database().exists(), "{at}");
            if !database.is_empty() && !proxies {
                let store = format!("sqlite:{database}");
                let done = home.run(["--store", &store, "--namespace", namespace, "check", "k"]);
                // With keys of the command's own, the server has sealed it.
                let code = if flags.contains(&"--config") { 64 } else { 0 };
                assert_eq!(done.code, Some(code), "{at}: {done:?}");
            }
            for name in ["flag.db", "variable.db", "of-the-file.db", "own.db"] {
                let _ = std::fs::remove_file(home.path(name));
            }
        }
    }
    // A variable that is meant for the commands is not taken for nothing.
    let done = finish(home.hapax(["serve", "--server-config", "named.toml"]).env("HAPAX_STORE", "http://127.0.0.1:1"));
    assert!(done.code == Some(64) && done.stderr.contains("no other server"), "{done:?}");
}

#[test]
fn paths_in_a_servers_file_are_taken_from_its_directory() {
    let home = Home::new();
    home.write("etc/key", &"0a".repeat(32));
    home.write("tls-key", "no key");
    let encryption = "[encryption]\ncurrent = 'a'\n[[encryption.key]]\nid = 'a'\nfile = 'key'\n";
    for (store, database) in [("sqlite:beside.db", "etc/beside.db"), ("sqlite:~/home.db", "home.db")] {
        home.write("etc/serve.toml", &format!("store = '{store}'\n{encryption}"));
        served_in(&home, &["serve", "--server-config", "etc/serve.toml"], &[], |_| {});
        assert!(home.path(database).exists(), "{database}");
    }
    assert!(!home.path("~").exists() && !home.path("beside.db").exists());
    home.write("etc/serve.toml", "[tls]\ncert = 'cert.pem'\nkey = '~/tls-key'");
    let done = home.run(["serve", "--listen", "127.0.0.1:0", "--server-config", "etc/serve.toml"]);
    assert!(done.stderr.contains("etc/cert.pem"), "{done:?}");
    home.write("etc/serve.toml", "store = 'http://127.0.0.1:1'");
    let done = home.run(["serve", "--server-config", "etc/serve.toml"]);
    assert!(done.code == Some(64) && done.stderr.contains("no other server"), "{done:?}");
}

#[test]
fn a_termination_answers_what_waits_and_accepts_no_more() {
    let mut server = Server::start("store = \"sqlite:hapax.db\"");
    server.ask("", "POST /v1/claims", r#"{"key":"k"}"#).unwrap();
    let address = server.address.clone();
    let waiting =
        std::thread::spawn(move || ask(&address, "", "POST /v1/claims", r#"{"key":"k","wait":"60s"}"#).unwrap());
    let running = || server.ask("", "GET /metrics", "").unwrap().contains("hapax_http_requests_running 2");
    wait_until("it waits", running);
    server.signal(Signal::TERM);
    let (status, took) = server.ended(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(took < Duration::from_secs(10), "{took:?}");
    let answer = waiting.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting-down"), "{answer}");
    assert!(server.ask("", "GET /healthz", "").is_err(), "nobody listens any more");
}

/// A request whose body does not come, so that a drain would wait for it.
fn stuck(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!("POST /v1/claims HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", server.address);
    write!(stream, "{head}content-length: 20\r\n\r\n{{").unwrap();
    wait_until("it is under way", || {
        server.ask("", "GET /metrics", "").unwrap().contains("hapax_http_requests_running 2")
    });
    stream
}

#[test]
fn a_drain_ends_at_its_limit_and_at_a_second_signal() {
    let mut server = Server::start("[limits]\ndrain = \"500ms\"\nbody_time = \"60s\"");
    let slow = stuck(&server);
    server.signal(Signal::TERM);
    let (status, took) = server.ended(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(took > Duration::from_millis(400), "it waited for what was under way: {took:?}");
    assert!(server.log().contains("still under way"), "{}", server.log());
    drop(slow);

    let mut server = Server::start("[limits]\ndrain = \"1h\"\nbody_time = \"1h\"");
    let slow = stuck(&server);
    server.signal(Signal::TERM);
    wait_until("it drains", || server.ask("", "GET /healthz", "").is_err());
    assert!(server.child.try_wait().unwrap().is_none(), "it waits for what is under way");
    server.signal(Signal::TERM);
    let (status, _) = server.ended(PATIENCE);
    assert_eq!(status.code(), Some(143), "as a process that a termination ends: {}", server.log());
    drop(slow);
}

#[test]
fn a_proxy_is_watched_on_a_listener_of_its_own() {
    let upstream = Server::start("");
    let settings = format!("upstream = \"http://{}\"\n{}", upstream.address, tokens(&["ops"]));
    let (mut proxy, mut lines) = Server::start_with(&settings, &["proxy", "--admin", "127.0.0.1:0"]);
    let admin = after(&mut lines, "metrics and health on http://");
    for path in ["GET /healthz", "GET /readyz"] {
        assert_eq!(status(&admin, "", path), 200, "{path}");
    }
    assert_eq!((status(&admin, "", "GET /metrics"), status(&admin, "", "GET /v1/records")), (401, 404));
    // What is the upstream's stays the upstream's.
    assert_eq!(status(&proxy.address, "", "GET /v1/stats"), 200);
    let claim = "POST /v1/claims HTTP/1.1\r\nidempotency-key: k\r\nx-rest:";
    let answer = proxy.ask("", claim, r#"{"key":"k"}"#).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    wait_until("the execution is counted", || {
        let text = ask(&admin, "ops", "GET /metrics", "").unwrap();
        text.contains("hapax_executions_total{namespace=\"proxy\"} 1")
            && text.contains("hapax_http_requests_total{method=\"POST\",route=\"\",status=\"201\"} 1")
            && text.contains("hapax_store_duration_seconds_count{operation=\"begin\"} 1")
    });
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended(PATIENCE).0.code(), Some(0), "{}", proxy.log());
    assert!(TcpStream::connect(&admin).is_err(), "nobody listens any more");

    let done = proxy.home.run(["proxy", "--upstream", "http://127.0.0.1:1", "--admin", "0.0.0.0:0"]);
    assert!(done.code.is_some_and(|code| code != 0) && done.stderr.contains("not a loopback address"), "{done:?}");
}

#[test]
fn a_hangup_gives_a_proxy_another_upstream_and_a_broken_file_changes_nothing() {
    let (first, second) = (Server::start(""), Server::start(&tokens(&["x"])));
    let to = |server: &Server| format!("upstream = \"http://{}\"\n", server.address);
    let (proxy, _lines) = Server::start_with(&to(&first), &["proxy"]);
    assert_eq!(proxy.status(""), 200);
    proxy.home.write("serve.toml", &to(&second));
    proxy.signal(Signal::HUP);
    wait_until("the second is asked", || proxy.status("") == 401);
    for broken in ["upstream = 7".to_string(), to(&first) + "fates = { \"600\" = \"keep\" }"] {
        let before = proxy.log().matches("was not reloaded").count();
        proxy.home.write("serve.toml", &broken);
        proxy.signal(Signal::HUP);
        wait_until("it says so", || proxy.log().matches("was not reloaded").count() > before);
        assert_eq!(proxy.status(""), 401, "{broken}");
    }
    // Keys are asked for from the next request on.
    proxy.home.write("serve.toml", &(to(&first) + "require = [\"POST\"]"));
    proxy.signal(Signal::HUP);
    wait_until("the first is back", || proxy.status("") == 200);
    assert_eq!(status(&proxy.address, "", "POST /v1/claims"), 400);
}

#[test]
fn who_has_no_token_is_told_where_to_put_it() {
    let server = Server::start(&tokens(&["known"]));
    let store = format!("http://{}", server.address);
    for token in ["", "unknown"] {
        let done = finish(server.home.hapax(["--store", &store, "ls"]).env("HAPAX_TOKEN", token));
        assert_eq!(done.code, Some(64), "{done:?}");
        assert!(done.stderr.contains("HAPAX_TOKEN") && !done.stderr.contains("Authorization"), "{done:?}");
    }
    let done = finish(server.home.hapax(["--store", &store, "ls"]).env("HAPAX_TOKEN", "known"));
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn over_http_a_stale_attempt_settles_nothing() {
    let server = Server::start("");
    let store = format!("http://{}", server.address);
    let hapax = |args: &[&str]| server.home.run([&["--store", &store], args].concat());
    let stuck = ["--key", "k", "--on-doubt", "rerun", "--", "sh", "-c", "kill -9 $$"];
    let attempt = || -> String {
        assert_eq!(hapax(&[&["run"], &stuck[..]].concat()).code, Some(76));
        let record: serde_json::Value = serde_json::from_str(&hapax(&["--json", "get", "k"]).stdout).unwrap();
        record["attemptId"].as_str().unwrap().to_string()
    };
    let (stale, current) = (attempt(), attempt());
    let done = hapax(&["settle", "--attempt", &stale, "--not-happened", "k"]);
    assert!(done.code == Some(65) && done.stderr.contains("is stale, nothing was settled"), "{done:?}");
    let done = hapax(&["settle", "--attempt", &current, "--happened", "1", "k"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(hapax(&["check", "k"]).code, Some(0));
    // One that still has its lease is not stale: it is said until when it counts.
    server.ask("", "POST /v1/claims", r#"{"key":"held"}"#).unwrap();
    let record: serde_json::Value = serde_json::from_str(&hapax(&["--json", "get", "held"]).stdout).unwrap();
    let done = hapax(&["settle", "--attempt", record["attemptId"].as_str().unwrap(), "--not-happened", "held"]);
    assert!(done.code == Some(75) && !done.stderr.contains("stale"), "{done:?}");
    assert!(done.stderr.contains("counts as running until "), "{done:?}");
}

#[test]
fn the_world_is_let_in_with_tokens_only() {
    let home = Home::new();
    let done = home.run(["serve", "--listen", "0.0.0.0:0"]);
    assert!(done.code.is_some_and(|code| code != 0) && done.stderr.contains("not a loopback address"), "{done:?}");
}

#[test]
fn what_the_dockerfile_copies_and_runs_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let dockerfile = read("deploy/Dockerfile");
    let line = |begin: &str| dockerfile.lines().find_map(|line| line.strip_prefix(begin)).unwrap();
    // The image that builds has the Rust that the workspace asks for, at least.
    let minor = |text: &str| -> u32 {
        text.split_once("1.").unwrap().1.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let manifest = read("Cargo.toml");
    let wanted = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(minor(line("FROM rust:")) >= minor(wanted), "{wanted}");
    // What is built is this binary, and it lies where it is copied from.
    assert_eq!(line("RUN cargo build "), format!("--release --locked --package {}", env!("CARGO_PKG_NAME")));
    assert_eq!(line("COPY --from=build "), "/src/target/release/hapax /usr/local/bin/hapax");
    assert_eq!(std::path::Path::new(env!("CARGO_BIN_EXE_hapax")).file_stem().unwrap(), "hapax");
    assert!(root.join("Cargo.lock").exists(), "--locked needs it");
    // What is left out of the build's context holds nothing that the build needs.
    assert_eq!(read("deploy/Dockerfile.dockerignore"), "target\n.git\n");
    // Its command is one that hapax knows; only the mounted configuration is missing here.
    let words = |begin: &str| -> Vec<String> { serde_json::from_str(line(begin)).unwrap() };
    assert_eq!(words("ENTRYPOINT "), ["hapax"]);
    let done = Home::new().run(words("CMD "));
    assert!(done.code == Some(64) && done.stderr.contains("/etc/hapax/serve.toml cannot be read"), "{done:?}");
}
