//! The `--verify` command: looks whether the effect of an attempt happened.
//!
//! Exit 0 says yes, and its standard output is what the command would have
//! printed; 1 says no; anything else, or no answer in time, leaves the doubt.

use std::process::Stdio;

use hapax::{ActionError, Doubt, Json, Verdict, Verifier};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::child::name_key;
use crate::output::Output;
use crate::signals::name_of;

/// A verifier that asks a shell command; it may say up to `limit` bytes.
pub fn verifier(command: String, limit: usize) -> Verifier {
    Verifier::new(move |doubt| {
        let command = command.clone();
        async move { look(&command, &doubt, limit).await.map_err(ActionError::new) }
    })
}

async fn look(line: &str, doubt: &Doubt, limit: usize) -> Result<Verdict, String> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line);
    name_key(&mut command, &doubt.key, doubt.attempt);
    // Its complaints are for the user's eyes; what it may look at is not standard input.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let failed = |e: std::io::Error| format!("`{line}` cannot be run: {e}");
    let mut child = command.spawn().map_err(failed)?;
    let stdout = match child.stdout.take() {
        Some(from) => read(from, limit).await.map_err(|e| format!("the output of `{line}` {e}"))?,
        None => Vec::new(),
    };
    let status = child.wait().await.map_err(failed)?;
    match status.code() {
        Some(0) => {
            let output = Output { exit_code: 0, stdout, stderr: Vec::new() };
            Json::of(&output.to_json()).map(Verdict::Happened).map_err(|e| e.to_string())
        }
        Some(1) => Ok(Verdict::NotHappened),
        Some(code) => Err(format!("`{line}` exited with {code}, which means that it cannot tell")),
        None => {
            let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
            Err(format!("`{line}` was ended by {}", name_of(signal)))
        }
    }
}

async fn read(from: impl AsyncRead + Unpin, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit_and_one = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit_and_one).read_to_end(&mut bytes).await.map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() > limit {
        return Err(format!("is larger than max_output ({limit} bytes)"));
    }
    Ok(bytes)
}
