//! The scripts: each is one atomic step of the server that holds the slot of its keys.

use std::sync::OnceLock;

use redis::{Cmd, cmd};

use super::topology::How;

/// A script, called by its hash, or by its text when the server does not know it.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: OnceLock<String>,
}

/// The transitions of records.
pub(super) static TRANSITION: Script = Script::new(include_str!("transition.lua"));
/// The index, brought up to date.
pub(super) static FOLD: Script = Script::new(include_str!("fold.lua"));
/// The counts of a bucket.
pub(super) static CENSUS: Script = Script::new(include_str!("census.lua"));
/// Adding to counters, once.
pub(super) static COUNT: Script = Script::new(include_str!("count.lua"));
/// Giving a lock back.
pub(super) static UNLOCK: Script = Script::new(include_str!("unlock.lua"));

impl Script {
    const fn new(text: &'static str) -> Self {
        Self { text, hash: OnceLock::new() }
    }

    /// A call of it, up to where its keys begin.
    pub(super) fn call(&self, keys: usize, how: How) -> Cmd {
        if how.with_source {
            let mut call = cmd("EVAL");
            call.arg(self.text).arg(keys);
            return call;
        }
        let mut call = cmd("EVALSHA");
        call.arg(self.hash.get_or_init(|| redis::Script::new(self.text).get_hash().to_string())).arg(keys);
        call
    }
}
