//! The streams of one HTTP/2 connection: which are open, and whether the peer takes what is there for it.
//!
//! In HTTP/1 a peer that takes nothing lets a write wait, and an idle one sends no head: both have their limits
//! elsewhere. In HTTP/2 a peer may open no window and answer pings, and the connection looks alive. So each piece of an
//! answer notes when some of it was taken. An answer that has nothing to send at the moment waits for nobody.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::Instant;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Streams {
    // Set by its first request; requests of HTTP/1 are not followed.
    is_http1: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// Of each open stream how many pieces are not taken, and since when none was taken further.
    open: HashMap<u64, (usize, Instant)>,
    /// When the last stream ended.
    idle_since: Instant,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is nothing to look at before this.
    Well(Instant),
    /// It has had no stream for too long.
    Idle,
    /// Its peer does not take what is there.
    Stalled,
    /// It speaks HTTP/1.
    NotHere,
}

impl Streams {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { next: 0, open: HashMap::new(), idle_since: Instant::now() };
        Arc::new(Self { is_http1: AtomicBool::new(false), state: Mutex::new(state) })
    }

    /// A request has come; the stream is open while what is returned lives.
    pub(crate) fn open(self: &Arc<Self>, version: http::Version) -> Option<Arc<Stream>> {
        if version != http::Version::HTTP_2 {
            if !self.is_http1.load(Ordering::Relaxed) {
                self.is_http1.store(true, Ordering::Relaxed);
            }
            return None;
        }
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.open.insert(id, (0, Instant::now()));
        Some(Arc::new(Stream { id, streams: self.clone() }))
    }

    /// How it stands, when it may have no stream for `idle`, and a piece may wait for `silence`.
    pub(crate) fn look(&self, idle: Duration, silence: Duration) -> Standing {
        if self.is_http1.load(Ordering::Relaxed) {
            return Standing::NotHere;
        }
        let (now, state) = (Instant::now(), self.state.lock());
        if state.open.is_empty() {
            let until = state.idle_since + idle;
            return if until <= now { Standing::Idle } else { Standing::Well(until) };
        }
        let oldest = state.open.values().filter(|(pieces, _)| *pieces > 0).map(|(_, since)| *since).min();
        let until = oldest.map_or(now, |since| since.min(now)) + silence;
        if until <= now { Standing::Stalled } else { Standing::Well(until) }
    }
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u64,
    streams: Arc<Streams>,
}

impl Stream {
    /// Notes that a piece came (1), went (-1) or got on (0).
    fn note(&self, change: isize) {
        if let Some((pieces, since)) = self.streams.state.lock().open.get_mut(&self.id) {
            // A piece that joins others does not make the peer any faster.
            if change <= 0 || *pieces == 0 {
                *since = Instant::now();
            }
            *pieces = pieces.saturating_add_signed(change);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.streams.state.lock();
        state.open.remove(&self.id);
        state.idle_since = Instant::now();
    }
}

pin_project! {
    /// An answer's body, whose pieces are followed.
    pub(crate) struct Followed<B> {
        #[pin]
        body: B,
        stream: Option<Arc<Stream>>,
    }
}

impl<B> Followed<B> {
    pub(crate) fn new(body: B, stream: Option<Arc<Stream>>) -> Self {
        Self { body, stream }
    }
}

impl<B: Body<Data = Bytes>> Body for Followed<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| Piece::new(data, this.stream.clone())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer.
pub(crate) struct Piece {
    data: Bytes,
    stream: Option<Arc<Stream>>,
}

impl Piece {
    fn new(data: Bytes, stream: Option<Arc<Stream>>) -> Self {
        if let Some(stream) = &stream {
            stream.note(1);
        }
        Self { data, stream }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        if let Some(stream) = &self.stream {
            stream.note(0);
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.note(-1);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    const IDLE: Duration = Duration::from_secs(10);
    const SILENCE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn it_is_the_peer_that_must_get_on() {
        let pass = tokio::time::advance;
        let streams = Streams::new();
        let look = || streams.look(IDLE, SILENCE);
        assert_eq!(look(), Standing::Well(Instant::now() + IDLE));
        let stream = streams.open(Version::HTTP_2).unwrap();
        let other = streams.open(Version::HTTP_2);
        // Nothing is there to take, for however long.
        pass(IDLE * 2).await;
        assert_eq!(look(), Standing::Well(Instant::now() + SILENCE));
        let mut piece = Piece::new(Bytes::from_static(b"abc"), Some(stream.clone()));
        pass(SILENCE * 2 / 3).await;
        assert_eq!(look(), Standing::Well(Instant::now() + SILENCE / 3));
        piece.advance(1);
        pass(SILENCE * 2 / 3).await;
        assert!(matches!(look(), Standing::Well(_)), "some of it was taken");
        let next = Piece::new(Bytes::from_static(b"d"), Some(stream.clone()));
        pass(SILENCE * 2 / 3).await;
        assert_eq!(look(), Standing::Stalled, "more to take is no progress");
        drop((piece, next));
        assert!(matches!(look(), Standing::Well(_)));
        drop((stream, other));
        pass(IDLE * 2 / 3).await;
        assert!(matches!(look(), Standing::Well(_)));
        pass(IDLE / 2).await;
        assert_eq!(look(), Standing::Idle);
        assert!(streams.open(Version::HTTP_11).is_none());
        assert_eq!(look(), Standing::NotHere);
    }
}
