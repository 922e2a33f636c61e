//! Keys: what is accepted is written back as it was; parts that make a key come
//! back out of it, and a key that has parts is the one that they make.

use hapax::{Fingerprint, Key};

use crate::until;

pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(key) = Key::given(&text) {
        assert_eq!(key.as_str(), text);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key);
        if let Ok(parts) = key.parts() {
            let print = fingerprint(&parts.params_hash);
            let made = Key::from_parts(parts.signal_id.as_deref(), &parts.action_type, &parts.target, &print);
            assert_eq!(made.unwrap(), key, "a key that is parsed is the one that is generated");
        }
    } else {
        assert!(text.is_empty() || text.len() > Key::MAX_BYTES || text.bytes().any(|b| !b.is_ascii_graphic()));
    }

    // The same bytes as parts: signal, action, target, each to the end of a line.
    let (signal, rest) = until(data, b'\n');
    let (action, target) = until(rest, b'\n');
    let [signal, action, target] = [signal, action, target].map(String::from_utf8_lossy);
    let print = fingerprint("0123456789abcdef");
    match Key::from_parts(Some(&signal), &action, &target, &print) {
        Ok(key) => {
            assert_eq!(Key::given(key.as_str()).as_ref(), Ok(&key), "what is generated is accepted");
            let parts = key.parts().unwrap();
            assert_eq!(parts.signal_id.as_deref().unwrap_or(""), signal);
            assert_eq!((parts.action_type, parts.target), (action.into_owned(), target.into_owned()));
            assert_eq!(parts.params_hash, print.short());
        }
        Err(_) => {
            // The longest that is sure to fit: each byte may take three.
            let most = 3 * (signal.len() + action.len() + target.len()) + 19;
            assert!(action.is_empty() || target.is_empty() || most > Key::MAX_BYTES);
        }
    }
}

/// A fingerprint that begins so.
fn fingerprint(short: &str) -> Fingerprint {
    format!("{short:0<64}").parse().unwrap()
}
