//! `hapax config` and `hapax completions`: how the command itself is set up.

use std::fmt::Display;

use clap::CommandFactory as _;
use hapax::store::OnFull;
use hapax::{Identity, KeepParams};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::print;
use crate::args::{Cli, DoubtChoice, Global};
use crate::failure::Failure;
use crate::settings::{From, Rule, Setting, Settings, Source};
use crate::terminal::{BOLD, DIM, cell, styled, table};

/// Prints where the configuration file is, or would be.
pub fn path(global: &Global, json: bool) -> Result<u8, Failure> {
    let place = Settings::place(global)?.ok_or_else(no_place)?;
    let path = place.path.display().to_string();
    print(json, &json!({ "path": path }), || path.clone())?;
    Ok(0)
}

fn no_place() -> Failure {
    Failure::usage("there is no place for a configuration file, since HOME is not set: give --config FILE")
}

/// A setting's name, its value as JSON, and its source.
struct Row(&'static str, Value, Source);

fn row<T: Clone>(name: &'static str, setting: &Setting<T>, show: impl Fn(&T) -> Value) -> Row {
    Row(name, show(&setting.value), setting.source)
}

fn shown(value: &impl Display) -> Value {
    value.to_string().into()
}

/// Shows every setting, its value and its source.
pub fn config(settings: &Settings, json: bool) -> Result<u8, Failure> {
    let chosen = settings.chosen_by_default()?;
    let mut rows = vec![match &settings.store {
        Some(store) => row("store", store, |s| s.as_str().into()),
        None => Row("store", Value::Null, Source::Default),
    }];
    rows.extend([
        row("namespace", &settings.namespace, shown),
        row("label", &settings.label, |l| l.as_deref().into()),
        row("ttl", &chosen.ttl, shown),
        row("wait", &chosen.wait, shown),
        row("on_doubt", &chosen.on_doubt, |d| doubt(*d).into()),
        row("verify", &chosen.verify, |v| v.as_deref().into()),
        row("verify_limit", &settings.verify_limit, shown),
        row("remember_failures", &chosen.remember_failures, |b| (*b).into()),
        row("timeout", &chosen.timeout, shown),
        row("lease", &chosen.lease, shown),
        row("identity", &chosen.identity, identity),
        row("keep_params", &chosen.keep_params, |k| keep(*k).into()),
        row("max_output", &settings.max_output, shown),
        row("max_entries", &settings.max_entries, |n| (*n).into()),
        row("on_full", &settings.on_full, |f| match f {
            OnFull::Evict => "evict".into(),
            OnFull::Reject => "reject".into(),
        }),
        row("auto_cleanup", &settings.auto_cleanup, |b| (*b).into()),
        row("encryption", &settings.encryption, |e| e.as_ref().map(|e| e.current.as_str()).into()),
    ]);
    let file = settings.file.as_ref().map(|place| (place.path.display().to_string(), place.path.exists()));
    print(json, &object(&rows, &settings.rules, file.as_ref()), || text(&rows, &settings.rules, file.as_ref()))?;
    Ok(0)
}

fn object(rows: &[Row], rules: &[Rule], file: Option<&(String, bool)>) -> Value {
    let settings: Map<String, Value> = rows
        .iter()
        .map(|Row(name, value, source)| (camel(name), json!({ "value": value, "source": source })))
        .collect();
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| {
            let mut choices = Map::new();
            choices.insert("action".into(), rule.action.as_str().into());
            if let Some(target) = &rule.target {
                choices.insert("target".into(), target.as_str().into());
            }
            choices.extend(choices_of(rule).into_iter().map(|(name, value)| (camel(name), value)));
            Value::Object(choices)
        })
        .collect();
    json!({
        "path": file.map(|(path, _)| path),
        "exists": file.is_some_and(|(_, exists)| *exists),
        "settings": settings,
        "rules": rules,
    })
}

fn text(rows: &[Row], rules: &[Rule], file: Option<&(String, bool)>) -> String {
    let heading = ["SETTING", "VALUE", "SOURCE"].map(|h| styled(h, BOLD));
    let mut lines = vec![Vec::from(heading)];
    lines.extend(rows.iter().map(|Row(name, value, source)| {
        let style = if *source == Source::Default { DIM } else { anstyle::Style::new() };
        vec![cell(name), cell(plain(value)), styled(From(name, *source).to_string(), style)]
    }));
    let mut text = table(&lines);
    for rule in rules {
        let choices = choices_of(rule).into_iter().map(|(name, value)| format!("{name} = {}", plain(&value)));
        let choices = choices.collect::<Vec<_>>().join(", ");
        let names = crate::terminal::safe(&rule.names());
        text.push_str(&format!("\n{BOLD}rule{BOLD:#} {names}: {}", crate::terminal::safe(&choices)));
    }
    text.push_str(&match file {
        Some((path, true)) => format!("\n{DIM}configuration file: {}{DIM:#}", crate::terminal::safe(path)),
        Some((path, false)) => format!("\n{DIM}configuration file: {} (absent){DIM:#}", crate::terminal::safe(path)),
        None => format!("\n{DIM}configuration file: none, since HOME is not set{DIM:#}"),
    });
    text
}

/// The choices that a rule makes.
fn choices_of(rule: &Rule) -> Vec<(&'static str, Value)> {
    let c = &rule.choices;
    let all = [
        ("ttl", c.ttl.as_ref().map(shown)),
        ("wait", c.wait.as_ref().map(shown)),
        ("on_doubt", c.on_doubt.map(|d| doubt(d).into())),
        ("verify", c.verify.as_deref().map(Value::from)),
        ("remember_failures", c.remember_failures.map(Value::from)),
        ("timeout", c.timeout.as_ref().map(shown)),
        ("lease", c.lease.as_ref().map(shown)),
        ("identity", c.identity.as_ref().map(identity)),
        ("keep_params", c.keep_params.map(|k| keep(k).into())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn doubt(choice: DoubtChoice) -> &'static str {
    match choice {
        DoubtChoice::Refuse => "refuse",
        DoubtChoice::Rerun => "rerun",
        DoubtChoice::Verify => "verify",
    }
}

fn keep(choice: KeepParams) -> &'static str {
    match choice {
        KeepParams::Full => "full",
        KeepParams::Fingerprint => "fingerprint",
    }
}

fn identity(identity: &Identity) -> Value {
    serde_json::to_value(identity).unwrap_or_default()
}

/// A JSON value as a setting is written.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_string();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        camel.extend(letters);
    }
    camel
}

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell, json: bool) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Answer<'a> {
        shell: &'a str,
        script: &'a str,
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hapax", &mut script);
    let script = String::from_utf8_lossy(&script);
    let shell = shell.to_string();
    print(json, &Answer { shell: &shell, script: &script }, || script.trim_end().to_string())?;
    Ok(0)
}
