//! `hapax key` and `hapax parse`: keys, without a store.

use hapax::Key;
use serde::Serialize;

use super::print;
use crate::action::Planned;
use crate::args::KeyArgs;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::terminal::{DIM, cell, styled, table};

/// Prints the key that `hapax run` would use.
pub fn key(args: &KeyArgs, settings: &Settings, json: bool) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Answer<'a> {
        key: &'a Key,
    }
    let planned = Planned::new(&args.action, &args.command, settings)?;
    let key = Key::generate(&planned.action)?;
    print(json, &Answer { key: &key }, || key.to_string())?;
    Ok(0)
}

/// Takes a generated key apart.
pub fn parse(key: &str, json: bool) -> Result<u8, Failure> {
    let parts = Key::given(key)?.parts()?;
    print(json, &parts, || {
        let rows = [
            ("signal", parts.signal_id.as_deref().unwrap_or("")),
            ("action", &parts.action_type),
            ("target", &parts.target),
            ("params hash", &parts.params_hash),
        ];
        table(&rows.map(|(name, value)| vec![styled(name, DIM), cell(value)]))
    })?;
    Ok(0)
}
