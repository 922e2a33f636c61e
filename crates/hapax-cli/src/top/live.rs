//! When `hapax top` looks at the store, and what a server tells in between.
//!
//! While a server tells, looks are rare; while it does not, or the store is none, they come every `--interval`.
//! Invariants: what is told during a look is put upon it, since the look may have begun before; no more than
//! [`MEANWHILE`] is kept for that, and what was missed makes another look, at most one a second.

use std::time::Duration;

use hapax_http::Told;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often it looks all the same: what expires is not told.
const ANEW: Duration = Duration::from_secs(30);
/// At least between two looks for what was missed.
const CALM: Duration = Duration::from_secs(1);
/// What is kept of what is told during a look.
const MEANWHILE: usize = 1_000;
/// What is taken up between two drawings.
const BATCH: usize = 256;

/// What a server tells, and when to look.
pub struct Live {
    feed: Option<mpsc::Receiver<Told>>,
    every: Duration,
    is_told: bool,
    began: Instant,
    due: Instant,
    is_looking: bool,
    meanwhile: Vec<Told>,
}

impl Live {
    /// The store was looked at just now.
    pub fn new(feed: Option<mpsc::Receiver<Told>>, every: Duration) -> Self {
        let now = Instant::now();
        Self { feed, every, is_told: false, began: now, due: now + every, is_looking: false, meanwhile: Vec::new() }
    }

    /// When the next look is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether the server tells what happens; nothing if the store is no server.
    pub fn is_told(&self) -> Option<bool> {
        self.feed.as_ref().map(|_| self.is_told)
    }

    /// What is told next, in one go.
    pub async fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        match &mut self.feed {
            Some(feed) => feed.recv_many(&mut told, BATCH).await,
            None => std::future::pending().await,
        };
        if told.is_empty() {
            // It ends for good only with the store itself.
            self.feed = None;
        }
        for told in &told {
            self.hear(told);
        }
        told
    }

    fn hear(&mut self, told: &Told) {
        let soon = (self.began + self.every.min(CALM)).max(Instant::now());
        match told {
            Told::Open => (self.is_told, self.due) = (true, soon),
            Told::Missed => self.due = soon,
            Told::Lost(_) => (self.is_told, self.due) = (false, self.due.min(Instant::now() + self.every)),
            told if self.is_looking && self.meanwhile.len() < MEANWHILE => self.meanwhile.push(told.clone()),
            _ if self.is_looking => self.due = soon,
            _ => {}
        }
    }

    /// A look begins.
    pub fn looks(&mut self) {
        self.is_looking = true;
        self.began = Instant::now();
        self.due = self.began + if self.is_told { ANEW } else { self.every };
    }

    /// A look has ended, well or not; gives what was told meanwhile.
    pub fn looked(&mut self, well: bool) -> Vec<Told> {
        self.is_looking = false;
        if !well {
            self.due = Instant::now() + self.every;
        }
        std::mem::take(&mut self.meanwhile)
    }
}

#[cfg(test)]
mod tests {
    use hapax::Key;

    use super::*;

    fn gone(key: &str) -> Told {
        Told::Gone(Key::given(key).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_rare_while_the_server_tells_and_come_back_when_it_is_lost() {
        let (tell, feed) = mpsc::channel(10);
        let every = Duration::from_secs(2);
        let mut live = Live::new(Some(feed), every);
        assert_eq!((live.due(), live.is_told()), (Instant::now() + every, Some(false)));
        tell.send(Told::Open).await.unwrap();
        live.told().await;
        assert_eq!((live.due(), live.is_told()), (Instant::now() + CALM, Some(true)), "it looks anew");
        live.looks();
        tell.send(gone("a")).await.unwrap();
        live.told().await;
        assert_eq!(live.looked(true).len(), 1, "what was told during the look is put upon it");
        assert_eq!(live.due(), Instant::now() + ANEW);
        tell.send(gone("b")).await.unwrap();
        live.told().await;
        assert_eq!(live.looked(true).len(), 0);
        tokio::time::advance(Duration::from_secs(10)).await;
        tell.send(Told::Missed).await.unwrap();
        live.told().await;
        assert_eq!(live.due(), Instant::now());
        live.looks();
        live.looked(true);
        tell.send(Told::Lost(String::new())).await.unwrap();
        live.told().await;
        assert_eq!((live.due(), live.is_told()), (Instant::now() + every, Some(false)));
        live.looks();
        tokio::time::advance(every).await;
        live.looked(false);
        assert_eq!(live.due(), Instant::now() + every, "a failed look is not repeated at once");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_is_kept_during_a_look_makes_another_one() {
        let (tell, feed) = mpsc::channel(2 * MEANWHILE);
        let mut live = Live::new(Some(feed), Duration::from_secs(60));
        live.looks();
        for _ in 0..=MEANWHILE {
            tell.send(gone("k")).await.unwrap();
        }
        let mut count = 0;
        while count <= MEANWHILE {
            let told = live.told().await.len();
            assert!(told <= BATCH);
            count += told;
        }
        assert_eq!(live.looked(true).len(), MEANWHILE);
        assert_eq!(live.due(), Instant::now() + CALM);
    }
}
