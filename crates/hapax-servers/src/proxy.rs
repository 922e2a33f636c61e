//! A TCP proxy between a client and a server that breaks connections where a
//! test wants it: now, before a request reaches the server, or between a
//! request and its answer, which the client then never sees.
//!
//! Invariant: bytes are passed on unchanged and in order; what is cut is cut
//! for both sides.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// What happens to the next connection that carries a matching request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut and the server never sees the request.
    BeforeRequest,
    /// The server gets the request; its answer is thrown away and the connection cut.
    BeforeAnswer,
    /// As [`BeforeAnswer`](Self::BeforeAnswer), and it is the beginning of an [`outage`](Proxy::outage).
    Outage,
}

#[derive(Debug)]
struct Trap {
    fault: Fault,
    /// Bytes that the request must contain.
    containing: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    trap: Mutex<Option<Trap>>,
    sprung: AtomicU64,
    refuse: AtomicBool,
    closed: AtomicBool,
    links: Mutex<Vec<(TcpStream, TcpStream)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn cut(&self) {
        for (client, server) in lock(&self.links).drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

/// The proxy. Dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// A proxy on a free port in front of `server`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            trap: Mutex::new(None),
            sprung: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            links: Mutex::new(Vec::new()),
        });
        let there = shared.clone();
        std::thread::Builder::new().name("proxy".into()).spawn(move || {
            for client in listener.incoming() {
                if there.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if there.refuse.load(Ordering::SeqCst) {
                    continue;
                }
                let _ = link(&there, client);
            }
        })?;
        Ok(Self { shared, address })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on, new connections go there.
    pub fn redirect(&self, server: SocketAddr) {
        *lock(&self.shared.server) = server;
    }

    /// Sets a trap for the next request that contains these bytes (any, if empty); it springs once.
    pub fn trap(&self, fault: Fault, containing: &[u8]) {
        *lock(&self.shared.trap) = Some(Trap { fault, containing: containing.to_vec() });
    }

    /// How many traps have sprung.
    #[must_use]
    pub fn sprung(&self) -> u64 {
        self.shared.sprung.load(Ordering::SeqCst)
    }

    /// Cuts all connections now; new ones are served.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts all connections and serves no new ones until [`restore`](Self::restore).
    pub fn outage(&self) {
        self.shared.refuse.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Serves new connections again.
    pub fn restore(&self) {
        self.shared.refuse.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
        // The listener looks at `closed` when somebody comes.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

fn link(shared: &Arc<Shared>, client: TcpStream) -> Result<()> {
    let to = *lock(&shared.server);
    let server = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    lock(&shared.links).push((client.try_clone()?, server.try_clone()?));
    // Set once the answer to a trapped request must not pass.
    let doomed = Arc::new(AtomicBool::new(false));
    let (requests, answers) = ((client.try_clone()?, server.try_clone()?), (server, client));
    let (there, marked) = (shared.clone(), doomed.clone());
    std::thread::Builder::new().name("proxy-requests".into()).spawn(move || {
        pump(requests.0, requests.1, |bytes| {
            let mut trap = lock(&there.trap);
            let hit = trap.as_ref().is_some_and(|t| {
                t.containing.is_empty() || bytes.windows(t.containing.len()).any(|window| window == t.containing)
            });
            if !hit {
                return true;
            }
            let fault = trap.take().map(|t| t.fault);
            there.sprung.fetch_add(1, Ordering::SeqCst);
            match fault {
                None | Some(Fault::BeforeRequest) => return false,
                Some(Fault::BeforeAnswer) => {}
                Some(Fault::Outage) => there.refuse.store(true, Ordering::SeqCst),
            }
            marked.store(true, Ordering::SeqCst);
            true
        });
    })?;
    let there = shared.clone();
    std::thread::Builder::new().name("proxy-answers".into()).spawn(move || {
        pump(answers.0, answers.1, |_| {
            let passes = !doomed.load(Ordering::SeqCst);
            if !passes && there.refuse.load(Ordering::SeqCst) {
                there.cut();
            }
            passes
        });
    })?;
    Ok(())
}

/// Passes bytes on until the end, or until `pass` says no; then cuts both sides.
fn pump(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..count) else { break };
        if !pass(bytes) || to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte `b` with `b + 1`, and counts them.
    fn server() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let count = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, count) = (stream.unwrap(), count.clone());
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while let Ok(1) = stream.read(&mut byte) {
                        count.fetch_add(1, Ordering::SeqCst);
                        let _ = stream.write_all(&[byte[0] + 1]);
                    }
                });
            }
        });
        (address, seen)
    }

    fn ask(proxy: &Proxy, byte: u8) -> Option<u8> {
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.write_all(&[byte]).ok()?;
        let mut answer = [0];
        stream.read_exact(&mut answer).ok()?;
        Some(answer[0])
    }

    #[test]
    fn what_is_not_trapped_passes_unchanged() {
        let (address, _) = server();
        let proxy = Proxy::start(address).unwrap();
        assert_eq!(ask(&proxy, 1), Some(2));
        proxy.trap(Fault::BeforeRequest, b"\x07");
        assert_eq!(ask(&proxy, 3), Some(4));
        assert_eq!(proxy.sprung(), 0);
    }

    #[test]
    fn a_request_that_is_cut_off_never_reaches_the_server() {
        let (address, seen) = server();
        let proxy = Proxy::start(address).unwrap();
        proxy.trap(Fault::BeforeRequest, b"\x07");
        assert_eq!(ask(&proxy, 7), None);
        assert_eq!((proxy.sprung(), seen.load(Ordering::SeqCst)), (1, 0));
        assert_eq!(ask(&proxy, 7), Some(8), "a trap springs once");
    }

    #[test]
    fn an_answer_that_is_cut_off_was_given() {
        let (address, seen) = server();
        let proxy = Proxy::start(address).unwrap();
        proxy.trap(Fault::BeforeAnswer, b"");
        assert_eq!(ask(&proxy, 7), None);
        assert_eq!((proxy.sprung(), seen.load(Ordering::SeqCst)), (1, 1));
    }

    #[test]
    fn an_outage_lasts_until_it_is_restored() {
        let (address, _) = server();
        let proxy = Proxy::start(address).unwrap();
        proxy.outage();
        assert_eq!(ask(&proxy, 1), None);
        proxy.restore();
        assert_eq!(ask(&proxy, 1), Some(2));
    }
}
