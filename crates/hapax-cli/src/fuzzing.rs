//! Doors for the fuzzer: no part of the interface.

pub use crate::units::{Keep, Limit, Size, Span, Wait, glance};

/// Reads the text of a configuration file, with all checks that a run would make.
///
/// # Errors
/// The line that a user would see.
pub fn settings(text: &str) -> Result<(), String> {
    let settings = crate::settings::Settings::of_file(text).map_err(|e| e.line(""))?;
    let rules: Vec<(String, String)> =
        settings.rules.iter().map(|r| (r.action.clone(), r.target.clone().unwrap_or_default())).collect();
    rules.iter().try_for_each(|(action, target)| settings.chosen(action, target).map(drop)).map_err(|e| e.line(""))
}

/// The address of a store as the command takes it.
///
/// # Errors
/// The line that a user would see.
pub fn store(address: &str) -> Result<String, String> {
    crate::settings::usable(address).map_err(|e| e.line(""))
}
