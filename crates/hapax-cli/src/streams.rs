//! A command's output: streamed through while it is kept.
//!
//! Each stream has a reader (a future) and a writer (a thread, since standard
//! output may block for as long as a pager likes). Invariants: what is kept is
//! never more than the limit; a slow reader of ours slows the command down, as
//! it would without us; once the command has ended, what it left in its pipes
//! is kept without waiting for our reader, so that recording never depends on it.
//! A command's pipe is closed early only when its output can neither be recorded nor written on.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::terminal::left_at;

/// How long after a command's end its output is still read, if some process
/// it left behind holds the pipe.
pub const GRACE: Duration = Duration::from_secs(2);

/// One read, and the most that is read once that time is over: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// Chunks on their way to a writer.
const QUEUE: usize = 16;
/// Places that stay free while the command lives, for what it leaves in its pipes.
const SPARE: usize = 8;

/// Which stream.
#[derive(Clone, Copy)]
pub enum Which {
    Stdout,
    Stderr,
}

/// What is kept of both streams, until it is too much.
#[derive(Default)]
pub struct Kept {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub too_much: bool,
}

impl Kept {
    fn add(&mut self, which: Which, bytes: &[u8], limit: usize) {
        if self.too_much {
            return;
        }
        if self.stdout.len() + self.stderr.len() + bytes.len() > limit {
            // Half an output is of no use: its memory is given back.
            *self = Self { too_much: true, ..Self::default() };
            return;
        }
        match which {
            Which::Stdout => self.stdout.extend_from_slice(bytes),
            Which::Stderr => self.stderr.extend_from_slice(bytes),
        }
    }
}

/// Reads a stream to its end, keeping it and handing it on. `ended` says when
/// the command has ended.
pub async fn pump(
    mut from: impl AsyncRead + Unpin,
    which: Which,
    to: &Writer,
    kept: &RefCell<Kept>,
    limit: usize,
    mut ended: watch::Receiver<Option<Instant>>,
) {
    let mut buffer = vec![0; CHUNK];
    let mut late = 0;
    while late < CHUNK {
        let end = *ended.borrow();
        let read = match end {
            None => tokio::select! {
                read = from.read(&mut buffer) => read,
                _ = ended.changed() => continue,
            },
            // A read that is ready counts even when the time is over.
            Some(at) => match tokio::time::timeout_at(at + GRACE, from.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return,
            },
        };
        let chunk = match read {
            Ok(0) | Err(_) => return,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
        };
        if end.is_some_and(|at| at.elapsed() > GRACE) {
            late += chunk.len();
        }
        kept.borrow_mut().add(which, chunk, limit);
        to.hand_on(chunk.to_vec(), &mut ended).await;
        // Neither recorded nor read by anyone: the command is to learn of it, as it would without us.
        if kept.borrow().too_much && to.gone.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// The way to one of our own streams.
pub struct Writer {
    queue: mpsc::Sender<Vec<u8>>,
    done: oneshot::Receiver<Option<io::Error>>,
    /// Nothing can be written any more.
    gone: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread that writes to standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::start("hapax-stdout", io::stdout, io::stdout().is_terminal())
    }

    /// Starts a thread that writes to standard error.
    pub fn stderr() -> io::Result<Self> {
        Self::start("hapax-stderr", io::stderr, true)
    }

    /// `seen`: people see it among the lines of standard error.
    fn start<W: Write>(name: &str, out: impl FnOnce() -> W + Send + 'static, seen: bool) -> io::Result<Self> {
        let (queue, mut chunks) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (tell, done) = oneshot::channel();
        let gone = Arc::new(AtomicBool::new(false));
        let tell_gone = gone.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let mut out = out();
            let mut failed = None;
            while let Some(chunk) = chunks.blocking_recv() {
                // Whoever read us may go away; the command runs on, and is recorded.
                if failed.is_none() {
                    failed = write(&mut out, &chunk).err();
                    tell_gone.store(failed.is_some(), Ordering::Relaxed);
                }
                if seen {
                    left_at(&chunk);
                }
            }
            let _ = tell.send(failed);
        })?;
        Ok(Self { queue, done, gone })
    }

    async fn hand_on(&self, chunk: Vec<u8>, ended: &mut watch::Receiver<Option<Instant>>) {
        let may_wait = ended.borrow().is_none();
        if may_wait {
            tokio::select! {
                // The writer's thread only ends after us, so there are places to come.
                Ok(mut places) = self.queue.reserve_many(SPARE + 1) => {
                    if let Some(place) = places.next() {
                        place.send(chunk);
                    }
                    return;
                }
                _ = ended.changed() => {}
            }
        }
        // Into the spare places. Should what was left behind fill even those, the
        // chunk is kept, and shown only if our reader takes some in time.
        let _ = tokio::time::timeout(GRACE, self.queue.send(chunk)).await;
    }

    /// Waits until everything is written; an error other than a reader that went
    /// away is given back.
    pub async fn finish(self) -> Option<io::Error> {
        drop(self.queue);
        self.done.await.ok().flatten().filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
    }
}

/// Writes all of it at once; other programs may have made a shared terminal
/// non-blocking.
fn write(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    let pause = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock => {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        }
        io::ErrorKind::Interrupted => Ok(()),
        _ => Err(e),
    };
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) => pause(e)?,
        }
    }
    loop {
        match out.flush() {
            Ok(()) => return Ok(()),
            Err(e) => pause(e)?,
        }
    }
}

/// Writes a replay to our own streams.
pub fn replay(stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
    let present = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    };
    let first = present(write(&mut io::stdout().lock(), stdout));
    let second = present(write(&mut io::stderr().lock(), stderr));
    first.and(second)
}
