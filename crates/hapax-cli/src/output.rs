//! What a command left behind, as it is recorded: exit code, standard output
//! and standard error.
//!
//! JSON: `{"exitCode":0,"stdout":"…","stderr":"…"}`; a stream that is not UTF-8
//! is `stdoutBase64` or `stderrBase64` instead, so that it replays byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hapax::Json;
use serde::{Deserialize, Serialize};

/// A command's exit code and output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub exit_code: u8,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Its JSON form.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputJson {
    exit_code: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
}

impl Output {
    pub fn to_json(&self) -> OutputJson {
        Self::json_of(self.exit_code, &self.stdout, &self.stderr)
    }

    /// The JSON form of these parts.
    pub fn json_of(exit_code: u8, stdout: &[u8], stderr: &[u8]) -> OutputJson {
        let (stdout, stdout_base64) = text_or_base64(stdout);
        let (stderr, stderr_base64) = text_or_base64(stderr);
        OutputJson { exit_code, stdout, stdout_base64, stderr, stderr_base64 }
    }

    /// Reads a record's JSON, if it is that of a command.
    pub fn from_json(text: &str) -> Option<Self> {
        let json: OutputJson = serde_json::from_str(text).ok()?;
        Some(Self {
            exit_code: json.exit_code,
            stdout: bytes(json.stdout, json.stdout_base64)?,
            stderr: bytes(json.stderr, json.stderr_base64)?,
        })
    }

    /// A result that was not recorded by `hapax run`, as output: a string is its
    /// text, anything else its JSON.
    pub fn of_foreign(result: &Json) -> Self {
        let mut text = result.to::<String>().unwrap_or_else(|_| result.as_str().to_string());
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Self { exit_code: 0, stdout: text.into_bytes(), stderr: Vec::new() }
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_string()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn bytes(text: Option<String>, base64: Option<String>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(base64)) => STANDARD.decode(base64).ok(),
        (None, None) => Some(Vec::new()),
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_the_record() {
        for stdout in [b"".to_vec(), b"plain \0 text\n".to_vec(), vec![0xff, 0x00, 0xfe]] {
            let output = Output { exit_code: 7, stdout, stderr: b"e".to_vec() };
            let text = serde_json::to_string(&output.to_json()).unwrap();
            assert_eq!(Output::from_json(&text), Some(output));
        }
    }

    #[test]
    fn another_result_is_not_taken_for_a_commands() {
        for text in ["null", "\"card-1\"", r#"{"exitCode":0,"id":1}"#, r#"{"id":1}"#, r#"{"exitCode":300}"#] {
            assert_eq!(Output::from_json(text), None, "{text}");
        }
        let card = Json::parse("\"card-1\"").unwrap();
        assert_eq!(Output::of_foreign(&card).stdout, b"card-1\n");
    }
}
