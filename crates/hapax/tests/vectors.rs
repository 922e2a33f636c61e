//! The shared test vectors for keys, byte for byte, and the properties that
//! hold for every input.
#![allow(clippy::unwrap_used)]

use hapax::{Action, Fingerprint, Key, canonical_json, params_are_equivalent, parse_params};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn every_vector_gives_its_canonical_form_fingerprint_and_key() {
    let text = include_str!("vectors/keys.json");
    let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(vectors.len() > 20);
    for v in vectors {
        let text = |name: &str| v[name].as_str().unwrap().to_string();
        let params = &v["params"];
        assert_eq!(canonical_json(params).unwrap(), text("canonical"));
        assert_eq!(Fingerprint::of(params).unwrap().to_string(), text("fingerprint"));
        let mut action = Action::new(text("actionType"), text("target")).params(params.clone());
        if let Some(signal) = v["signalId"].as_str() {
            action = action.signal(signal);
        }
        let key = Key::generate(&action).unwrap();
        assert_eq!(key.as_str(), text("key"));
        let parts = Key::given(&text("key")).unwrap().parts().unwrap();
        assert_eq!(parts.signal_id.as_deref(), v["signalId"].as_str());
        assert_eq!((parts.action_type, parts.target), (text("actionType"), text("target")));
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
    fn parsing_inverts_generating(signal in "\\PC{0,20}|.{0,20}", action in "\\PC{1,20}", target in ".{1,20}", params in any_json()) {
        let action_ = Action::new(action.clone(), target.clone()).signal(signal.clone()).params(params);
        if let Ok(key) = Key::generate(&action_) {
            let parts = key.parts().unwrap();
            prop_assert_eq!(parts.signal_id.unwrap_or_default(), signal);
            prop_assert_eq!(parts.action_type, action);
            prop_assert_eq!(parts.target, target);
            prop_assert_eq!(Key::given(key.as_str()).unwrap(), key);
        }
    }

    #[test]
    fn the_canonical_form_is_its_own_canonical_form(params in any_json()) {
        let once = canonical_json(&params).unwrap();
        // A double may be written as an integer that only a double reads back, so read it leniently.
        let twice = canonical_json(&serde_json::from_str::<Value>(&once).unwrap());
        if let Ok(twice) = twice {
            prop_assert_eq!(&twice, &once);
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
