//! The limit for the SQLite store: a bare log that keeps nothing but order.
//!
//! One writer thread appends all that waits in one write, syncs it if asked to, then answers. An
//! execution is two records, each of which its caller waits for: the key at
//! the beginning, the key and the result at the end. No index, no checks, no space ever freed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use tokio::sync::oneshot;

struct Item {
    record: Vec<u8>,
    answer: oneshot::Sender<bool>,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

/// A log and its writer.
pub struct Log {
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
}

/// Whether an answer waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Synced,
    Written,
}

impl Log {
    pub fn open(path: &Path, answers: Answers) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let queue = Arc::new(Queue::default());
        let of_writer = queue.clone();
        let writer =
            std::thread::Builder::new().name("log-writer".into()).spawn(move || write(&of_writer, file, answers))?;
        Ok(Self { queue, writer: Some(writer) })
    }

    /// Appends a record and waits for it.
    pub async fn append(&self, key: &str, result: &str) -> Result<()> {
        let mut record = Vec::with_capacity(8 + key.len() + result.len());
        for part in [key, result] {
            record.extend_from_slice(&u32::try_from(part.len())?.to_le_bytes());
            record.extend_from_slice(part.as_bytes());
        }
        let (answer, written) = oneshot::channel();
        {
            let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.items.push(Item { record, answer });
        }
        self.queue.filled.notify_one();
        if written.await? { Ok(()) } else { Err(anyhow!("the log could not be written")) }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.queue.filled.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(queue: &Queue, mut file: File, answers: Answers) {
    let (mut batch, mut bytes) = (Vec::new(), Vec::new());
    loop {
        {
            let mut state = queue.state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.items.is_empty() {
                if state.closed {
                    return;
                }
                state = queue.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut batch, &mut state.items);
        }
        bytes.clear();
        for item in &batch {
            bytes.extend_from_slice(&item.record);
        }
        let written = append(&mut file, &bytes, answers).is_ok();
        for item in batch.drain(..) {
            let _ = item.answer.send(written);
        }
    }
}

fn append(file: &mut File, bytes: &[u8], answers: Answers) -> io::Result<()> {
    file.write_all(bytes)?;
    if answers == Answers::Synced {
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::open(&path, Answers::Synced).unwrap();
        crate::run::runtime(1).unwrap().block_on(log.append("k", "ab")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"\x01\0\0\0k\x02\0\0\0ab");
    }
}
