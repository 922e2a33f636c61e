//! The canonical form, against `serde_jcs`, an independent RFC 8785; numbers
//! also against the standard library's shortest digits, since both take theirs
//! from `ryu-js`.
//!
//! Ours alone: integers that a double would round, members that stand twice and
//! depths beyond 127 are errors.

use hapax::{Fingerprint, ParamsError, canonical_json, params_are_equivalent, parse_params};
use serde_json::{Number, Value};

pub fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let params = match parse_params(text) {
        Ok(params) => params,
        Err(error) => {
            // Whatever JSON is refused is refused for one of our reasons.
            if serde_json::from_str::<Value>(text).is_ok() {
                assert!(!matches!(error, ParamsError::NotJson { .. }), "{text:?}: {error}");
            }
            return;
        }
    };
    let canonical = canonical_json(&params).unwrap_or_else(|e| panic!("{text:?} was read and is not written: {e}"));
    let theirs = serde_jcs::to_string(&doubles(&params)).unwrap();
    assert_eq!(canonical, theirs, "of {text:?}");
    assert!(params_are_equivalent(&params, &params));

    // It reads back as the same; only large integers are written as doubles are, which the reader refuses.
    match parse_params(&canonical) {
        Ok(back) => {
            assert_eq!(canonical_json(&back).as_deref(), Ok(canonical.as_str()), "it is its own canonical form");
            assert!(params_are_equivalent(&params, &back));
            assert_eq!(Fingerprint::of(&params), Fingerprint::of(&back));
        }
        Err(error) => assert!(matches!(error, ParamsError::InexactInteger { .. }), "{canonical:?}: {error}"),
    }
    each_number(&params);
}

/// As JavaScript has them: all numbers are doubles.
fn doubles(value: &Value) -> Value {
    match value {
        Value::Number(n) => n.as_f64().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
        Value::Array(items) => items.iter().map(doubles).collect(),
        Value::Object(members) => Value::Object(members.iter().map(|(k, v)| (k.clone(), doubles(v))).collect()),
        other => other.clone(),
    }
}

fn each_number(value: &Value) {
    match value {
        Value::Number(n) => {
            let double = n.as_f64().unwrap();
            let text = canonical_json(value).unwrap();
            let theirs = ecmascript(double);
            // Halfway between two shortest texts ECMAScript takes the even digit, the standard library the larger.
            let mut apart = text.bytes().zip(theirs.bytes()).filter(|(a, b)| a != b);
            let tie = apart.next().is_none_or(|(a, b)| a % 2 == 0 && b == a + 1) && apart.next().is_none();
            assert!(text.len() == theirs.len() && tie, "{double:?} is written {text}, and {theirs} by another");
            assert_eq!(text.parse::<f64>().unwrap(), double, "{text} is another number");
        }
        Value::Array(items) => items.iter().for_each(each_number),
        Value::Object(members) => members.values().for_each(each_number),
        _ => {}
    }
}

/// ECMA-262, Number::toString, from the standard library's shortest digits.
fn ecmascript(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let text = format!("{:e}", x.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap();
    let digits = mantissa.replace('.', "");
    let k = i32::try_from(digits.len()).unwrap();
    let n = exponent.parse::<i32>().unwrap() + 1;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap());
    let body = if k <= n && n <= 21 {
        format!("{digits}{}", zeros(n - k))
    } else if 0 < n && n <= 21 {
        let (whole, rest) = digits.split_at(usize::try_from(n).unwrap());
        format!("{whole}.{rest}")
    } else if -6 < n && n <= 0 {
        format!("0.{}{digits}", zeros(-n))
    } else {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        format!("{first}{point}{rest}e{}{}", if n > 0 { '+' } else { '-' }, (n - 1).abs())
    };
    if x < 0.0 { format!("-{body}") } else { body }
}
