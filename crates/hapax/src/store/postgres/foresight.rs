//! What the next begins will find, going by the last ones.
//!
//! A begin of a new key is an insert, and a replay is one look; whichever is
//! tried first, the other costs a second way to the server. Only speed hangs on
//! the guess: both orders end in the same answers.

use std::sync::atomic::{AtomicU32, Ordering};

/// Everything.
const WHOLE: u32 = 1 << 16;

/// The share of begins that found a record, of late.
#[derive(Debug, Default)]
pub(super) struct Foresight(AtomicU32);

impl Foresight {
    /// Whether most begins are likely to find a record.
    pub(super) fn expects_records(&self) -> bool {
        self.0.load(Ordering::Relaxed) > WHOLE / 2
    }

    /// Of so many begins so many found a record.
    pub(super) fn learn(&self, begins: usize, found: usize) {
        let (Ok(begins), Ok(found)) = (u32::try_from(begins.min(1024)), u32::try_from(found.min(1024))) else { return };
        if let Some(share) = (found * (WHOLE / 1024)).saturating_mul(1024).checked_div(begins) {
            let before = self.0.load(Ordering::Relaxed);
            // Two workers may overwrite each other's lesson: the next one makes up for it.
            self.0.store(before - before / 8 + share.min(WHOLE) / 8, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_found() {
        let foresight = Foresight::default();
        assert!(!foresight.expects_records());
        (0..8).for_each(|_| foresight.learn(4, 4));
        assert!(foresight.expects_records());
        (0..8).for_each(|_| foresight.learn(4, 0));
        assert!(!foresight.expects_records());
        (0..1000).for_each(|_| foresight.learn(128, 128));
        assert!(foresight.expects_records());
        foresight.learn(0, 0);
        assert!(foresight.expects_records());
    }
}
