//! `hapax serve` as a process: the configuration is read again at SIGHUP, and SIGTERM drains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[macro_use]
mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Home, PATIENCE, kill, wait_until};
use rustix::process::Signal;

struct Server {
    child: Child,
    address: String,
    home: Home,
}

impl Server {
    fn start(settings: &str) -> Self {
        let home = Home::new();
        home.write("serve.toml", settings);
        let mut command: Command = home.hapax(["serve", "--server-config", "serve.toml", "--listen", "127.0.0.1:0"]);
        let log = File::create(home.path("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("the first line").to_string();
        Self { child, address, home }
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
        let answer = self.ask(token, "GET /v1/stats", "").unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
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
fn the_world_is_let_in_with_tokens_only() {
    let home = Home::new();
    let done = home.run(["serve", "--listen", "0.0.0.0:0"]);
    assert!(done.code.is_some_and(|code| code != 0) && done.stderr.contains("not a loopback address"), "{done:?}");
}
