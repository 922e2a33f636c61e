//! Which params identify an action: pointers that are found choose what they
//! point at, and nothing else; choosing twice changes nothing.
//!
//! The input is a line of pointers, divided by blanks, and JSON behind it.

use hapax::{Identity, parse_params};
use serde_json::Value;

use crate::until;

pub fn fuzz(data: &[u8]) {
    let (line, json) = until(data, b'\n');
    let (Ok(line), Ok(json)) = (std::str::from_utf8(line), std::str::from_utf8(json)) else { return };
    let Ok(params) = parse_params(json) else { return };
    let pointers: Vec<&str> = line.split(' ').collect();
    let (Ok(include), Ok(exclude)) =
        (Identity::include(pointers.iter().copied()), Identity::exclude(pointers.iter().copied()))
    else {
        let rooted = |p: &&str| p.is_empty() || p.starts_with('/');
        assert!(line.contains('~') || !pointers.iter().all(rooted), "{line:?} is refused");
        return;
    };
    let written = serde_json::to_string(&include).unwrap();
    assert_eq!(serde_json::from_str::<Identity>(&written).unwrap(), include);

    let (chosen, rest) = (include.select(&params).into_owned(), exclude.select(&params).into_owned());
    // Without its root a value is null, which is one leaf.
    let least = u64::from(pointers.contains(&""));
    assert!(leaves(&chosen) <= leaves(&params) && leaves(&rest) <= leaves(&params).max(least));
    if no_arrays(&params) {
        // Without arrays, whose items move up, names stay where they are.
        for pointer in &pointers {
            if params.is_object() {
                assert_eq!(chosen.pointer(pointer), params.pointer(pointer), "{pointer:?} in {params}");
                let gone = rest.pointer(pointer);
                assert!(gone.is_none() || (pointer.is_empty() && rest.is_null()), "{pointer:?} in {rest}");
            }
        }
        assert_eq!(*include.select(&chosen), chosen);
        assert_eq!(*exclude.select(&rest), rest);
    }
    if pointers.iter().all(|p| params.pointer(p).is_none()) && !pointers.contains(&"") {
        assert_eq!(rest, params, "what no pointer finds is left as it is");
        assert_eq!(leaves(&chosen), u64::from(!params.is_object() && !params.is_array()));
    }
}

fn no_arrays(value: &Value) -> bool {
    match value {
        Value::Array(_) => false,
        Value::Object(members) => members.values().all(no_arrays),
        _ => true,
    }
}

fn leaves(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(leaves).sum(),
        Value::Object(members) => members.values().map(leaves).sum(),
        _ => 1,
    }
}
