//! The shared test vectors for keys, byte for byte, and the properties that
//! hold for every input.
#![allow(clippy::unwrap_used)]

use hapax::{Action, Fingerprint, Key, canonical_json, params_are_equivalent, parse_params};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn every_vector_gives_its_canonical_form_fingerprint_and_key() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors/keys.json")).unwrap();
    assert!(vectors.len() > 20);
    for v in vectors {
        let text = |name: &str| v[name].as_str().unwrap().to_string();
        let signal = v["signalId"].as_str();
        assert_eq!(canonical_json(&v["params"]).unwrap(), text("canonical"));
        let print = Fingerprint::of(&v["params"]).unwrap();
        assert_eq!(print.to_string(), text("fingerprint"));
        let key = Key::from_parts(signal, &text("actionType"), &text("target"), &print).unwrap();
        assert_eq!(key.as_str(), text("key"));
        let mut action = Action::new(text("actionType"), text("target")).params(v["params"].clone());
        if let Some(signal) = signal {
            action = action.signal(signal);
        }
        assert_eq!(Key::generate(&action).unwrap(), key);
        let parts = Key::given(&text("key")).unwrap().parts().unwrap();
        assert_eq!(parts.signal_id.as_deref(), signal.filter(|s| !s.is_empty()));
        assert_eq!((parts.action_type, parts.target), (text("actionType"), text("target")));
        assert_eq!(parts.params_hash, print.short());
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(".*", inner, 0..6).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn parsing_inverts_generating(
        signal in "(?s).{0,20}",
        action in "(?s).{1,20}",
        target in "(?s).{1,20}",
        print in any::<[u8; 32]>(),
    ) {
        // At most 60 characters of 4 bytes, 3 each: some are too long, and say so.
        let print = Fingerprint::from_bytes(print);
        if let Ok(key) = Key::from_parts(Some(&signal), &action, &target, &print) {
            let parts = key.parts().unwrap();
            prop_assert_eq!(parts.signal_id.unwrap_or_default(), signal);
            prop_assert_eq!(parts.action_type, action);
            prop_assert_eq!(parts.target, target);
            prop_assert_eq!(parts.params_hash, print.short());
            prop_assert_eq!(Key::given(key.as_str()).unwrap(), key);
        }
    }

    #[test]
    fn generating_inverts_parsing(text in "([a%+:]|%[0-9A-Fa-f]{2}){0,6}:[a%]{1,3}:(t|%3A|%C3%A9|%FF|%61){1,3}:[0-9a-f]{16}") {
        let key = Key::given(&text).unwrap();
        if let Ok(parts) = key.parts() {
            let print = format!("{}{}", parts.params_hash, "0".repeat(48)).parse().unwrap();
            let again = Key::from_parts(parts.signal_id.as_deref(), &parts.action_type, &parts.target, &print).unwrap();
            prop_assert_eq!(again, key);
        }
    }

    #[test]
    fn the_canonical_form_is_its_own_canonical_form(params in any_json()) {
        let once = canonical_json(&params).unwrap();
        match parse_params(&once) {
            Ok(read) => prop_assert_eq!(canonical_json(&read).unwrap(), once),
            // Doubles from 2^53 to 1e21 are written as integers that need not be exact: a text with one is refused.
            Err(error) => prop_assert!(matches!(error, hapax::ParamsError::InexactInteger { .. }), "{}", error),
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[\\[\\]{}\",:0-9eE+.\\-a-z\\\\ ]{0,40}") {
        let _ = parse_params(&text).and_then(|v| canonical_json(&v));
    }

    #[test]
    fn the_order_of_members_does_not_matter(members in prop::collection::hash_map(".*", any::<i32>(), 0..8)) {
        let write = |m: &mut dyn Iterator<Item = (&String, &i32)>| {
            let inner: Vec<String> = m.map(|(k, v)| format!("{}:{v}", json!(k))).collect();
            parse_params(&format!("{{{}}}", inner.join(","))).unwrap()
        };
        let forward = write(&mut members.iter());
        let mut reversed: Vec<_> = members.iter().collect();
        reversed.reverse();
        let backward = write(&mut reversed.into_iter());
        prop_assert!(params_are_equivalent(&forward, &backward));
    }
}
