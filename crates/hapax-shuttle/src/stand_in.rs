//! The least that `flight` needs of the rest of the library: names without
//! content, since a flight looks into none of them.

use std::hash::{Hash, Hasher};

/// A key, by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub u64);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// A fingerprint: all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint;

/// An action's error.
#[derive(Clone, Debug)]
pub struct ActionError;

pub mod recent {
    //! What a flight ends with.

    /// A recorded answer, by its number.
    #[derive(Debug)]
    pub struct Entry(pub u64);
}

pub mod store {
    //! What else it may end with.

    /// A store's error.
    #[derive(Clone, Debug)]
    pub struct StoreError;
}
