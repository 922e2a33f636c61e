//! The binary `hapax` (being written).
fn main() {}
