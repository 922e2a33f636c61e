//! Addresses of stores: read, or refused with a reason that has no password in it.

use hapax::store::postgres::PostgresOptions;
use hapax::store::redis::RedisOptions;
use hapax::store::sqlite::SqliteOptions;
use hapax_http::HttpStore;

/// Stands for a password; an input that has it where a password stands must not see it again.
const SECRET: &str = "hunter2";

pub fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut said = vec![];
    let mut note = |message: Result<String, String>| said.push(message.unwrap_or_else(|e| e));
    note(SqliteOptions::from_url(text).map(|_| String::new()).map_err(|e| e.to_string()));
    note(RedisOptions::from_url(text).map(|o| format!("{o:?}")).map_err(|e| e.to_string()));
    note(PostgresOptions::from_url(text).map(|o| format!("{o:?} {}", o.location())).map_err(|e| e.to_string()));
    if text.starts_with("http") {
        note(HttpStore::new(text, None).map(|_| String::new()).map_err(|e| e.to_string()));
    }
    if let Ok(usable) = hapax_cli::fuzzing::store(text) {
        assert!(!usable.is_empty());
    }
    // `scheme://user:hunter2@host` of the stores that have passwords.
    let password = ["redis", "postgres"].iter().any(|s| text.starts_with(s)) && has_password(text);
    if password {
        for message in said.iter().skip(1) {
            assert!(!message.contains(SECRET), "{message:?} tells the password of {text:?}");
        }
    }
}

fn has_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority.rsplit_once('@').and_then(|(login, host)| Some((login.split_once(':')?.1, host))).is_some_and(
        |(password, host)| password.contains(SECRET) && !host.contains(SECRET) && text.matches(SECRET).count() == 1,
    )
}
