//! From the command line to an action: its type, target, signal and params.
//!
//! Invariant: two command lines give the same params only if they are the same
//! bytes, or the user said by `--params` that they mean the same.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hapax::{Action, Json, Key, MAX_PARAMS_BYTES, PolicyPatch};
use serde_json::{Value, json};

use crate::args::ActionArgs;
use crate::failure::Failure;
use crate::settings::{Chosen, Settings};

/// An action, and the choices that the settings make for it.
pub struct Planned {
    pub action: Action,
    pub chosen: Chosen,
}

impl Planned {
    /// The action that these arguments ask for.
    pub fn new(args: &ActionArgs, command: &[OsString], settings: &Settings) -> Result<Self, Failure> {
        let type_ = match &args.action {
            Some(action) => action.clone(),
            None => file_name(command)?,
        };
        let target = args.target.as_deref().unwrap_or("local");
        let params = match &args.params {
            Some(source) => hapax::parse_params(&text_of(source, "params", MAX_PARAMS_BYTES)?)?,
            None => json!({ "argv": command.iter().map(|arg| argument(arg)).collect::<Vec<Value>>() }),
        };
        let chosen = settings.chosen(&type_, target)?;
        let mut action = Action::new(type_, target)
            .params(params)
            .policy(PolicyPatch::new().identity(chosen.identity.value.clone()));
        if let Some(signal) = &args.signal {
            action = action.signal(signal);
        }
        if let Some(key) = &args.key {
            action = action.key(Key::given(key)?);
        }
        // What makes no key is said before a store is opened, or made.
        action.generate_key()?;
        Ok(Self { action, chosen })
    }
}

fn file_name(command: &[OsString]) -> Result<String, Failure> {
    let Some(program) = command.first() else {
        return Err(Failure::usage("the action has no type: give --action TYPE, or a command"));
    };
    match Path::new(program).file_name().map(OsStr::to_str) {
        Some(Some(name)) => Ok(name.into()),
        _ => Err(Failure::usage(format!("{} gives the action no name: give --action TYPE", program.display()))),
    }
}

/// An argument as JSON: its text, or an object that no text is equal to.
fn argument(arg: &OsStr) -> Value {
    match arg.to_str() {
        Some(text) => text.into(),
        None => json!({ "base64": STANDARD.encode(arg.as_bytes()) }),
    }
}

/// Whether `--params`, `--result` or `--happened` reads standard input.
pub fn reads_stdin(source: Option<&str>) -> bool {
    source == Some("-")
}

/// What `JSON`, `@FILE` or `-` stands for, at most `limit` bytes of it.
pub fn text_of(source: &str, what: &str, limit: usize) -> Result<String, Failure> {
    let read = |from: &mut dyn std::io::Read, name: &str| {
        let mut bytes = Vec::new();
        // One byte more than is allowed shows that there is more.
        let limit_and_one = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        from.take(limit_and_one)
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::usage(format!("the {what} cannot be read from {name}: {e}")))?;
        if bytes.len() > limit {
            return Err(Failure::usage(format!("the {what} in {name} are larger than the limit of {limit} bytes")));
        }
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("the {what} in {name} are not UTF-8 text")))
    };
    if source == "-" {
        return read(&mut std::io::stdin().lock(), "standard input");
    }
    let Some(path) = source.strip_prefix('@') else { return Ok(source.into()) };
    let mut file = std::fs::File::open(path)
        .map_err(|e| Failure::usage(format!("the {what} cannot be read from file {path}: {e}")))?;
    read(&mut file, path)
}

/// A result that the user gives: JSON, @FILE or -.
pub fn result_of(source: &str, limit: usize) -> Result<Json, Failure> {
    let text = text_of(source, "result", limit)?;
    Json::parse(text.trim()).map_err(|e| {
        let example = serde_json::to_string(text.trim()).unwrap_or_default();
        let example = if example.len() <= 60 { crate::failure::quoted(&example) } else { r#"'"text"'"#.into() };
        Failure::usage(format!("the result is not JSON ({e}): a text is written {example}, nothing is `null`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    #[test]
    fn an_argument_that_is_not_utf_8_is_told_from_every_text() {
        let odd = argument(&OsString::from_vec(vec![b'a', 0xff]));
        assert_eq!(odd, json!({ "base64": "Yf8=" }));
        assert_ne!(odd, argument(OsStr::new("{\"base64\":\"Yf8=\"}")));
    }

    #[test]
    fn a_result_that_is_no_json_is_answered_with_how_to_write_it() {
        let message = result_of("card-1", 100).unwrap_err().message;
        assert!(message.contains(r#"'"card-1"'"#), "{message}");
        assert_eq!(result_of(" \"card-1\" ", 100).unwrap().as_str(), "\"card-1\"");
    }
}
