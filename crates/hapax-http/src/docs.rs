//! `/docs`: the OpenAPI document as one page of HTML, without scripts and
//! without requests to anywhere.

use std::fmt::Write as _;

use serde_json::Value;
use utoipa::openapi::OpenApi;

/// Nothing but the page's own style.
pub(crate) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
code,pre{font:14px/1.4 ui-monospace,monospace}
pre{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem;padding:.6rem}
section{border-top:1px solid var(--line);margin-top:1.5rem}
h3 code{font-size:1rem}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid var(--line);padding:.25rem .5rem .25rem 0;text-align:left;vertical-align:top}
nav li{list-style:none}
.m{display:inline-block;min-width:4.5rem;font-weight:600}
";

pub(crate) fn page(document: &OpenApi) -> String {
    let document = serde_json::to_value(document).unwrap_or_default();
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, &document);
    out
}

fn write(out: &mut String, document: &Value) -> std::fmt::Result {
    let info = |name: &str| escape(document.pointer(&format!("/info/{name}")).and_then(Value::as_str).unwrap_or(""));
    write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0} API</title><style>{STYLE}</style><h1>{0} {1}</h1>",
        info("title"),
        info("version")
    )?;
    for paragraph in info("description").split("\n\n") {
        write!(out, "<p>{paragraph}</p>")?;
    }
    write!(out, "<p><a href=\"/openapi.json\">The OpenAPI document</a></p>")?;
    let empty = serde_json::Map::new();
    let paths = document.get("paths").and_then(Value::as_object).unwrap_or(&empty);
    let operations: Vec<_> = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().into_iter().flatten().map(move |(method, op)| (path, method, op)))
        .filter(|(_, _, op)| op.get("responses").is_some())
        .collect();
    write!(out, "<nav><ul>")?;
    for (path, method, op) in &operations {
        let (method, path, id) = (escape(&method.to_uppercase()), escape(path), text(op, "operationId"));
        write!(out, "<li><a href=\"#{id}\"><code><span class=\"m\">{method}</span>{path}</code></a></li>")?;
    }
    write!(out, "</ul></nav>")?;
    for (path, method, op) in &operations {
        operation(out, path, method, op)?;
    }
    write!(out, "<h2>Shapes</h2>")?;
    for (name, schema) in document.pointer("/components/schemas").and_then(Value::as_object).unwrap_or(&empty) {
        shape(out, name, schema)?;
    }
    write!(out, "</html>")
}

fn operation(out: &mut String, path: &str, method: &str, op: &Value) -> std::fmt::Result {
    write!(
        out,
        "<section id=\"{}\"><h3><code>{} {}</code></h3><p><b>{}</b></p><p>{}</p>",
        text(op, "operationId"),
        escape(&method.to_uppercase()),
        escape(path),
        text(op, "summary"),
        text(op, "description")
    )?;
    let parameters = op.get("parameters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !parameters.is_empty() {
        write!(out, "<table><tr><th>Parameter<th>In<th>What</tr>")?;
        for p in parameters {
            write!(
                out,
                "<tr><td><code>{}</code><td>{}<td>{}</tr>",
                text(p, "name"),
                text(p, "in"),
                text(p, "description")
            )?;
        }
        write!(out, "</table>")?;
    }
    if let Some(schema) = op.pointer("/requestBody/content/application~1json/schema") {
        write!(out, "<p>Body: {}</p>", type_of(schema))?;
    }
    write!(out, "<table><tr><th>Answer<th>What<th>Body</tr>")?;
    for (status, response) in op.get("responses").and_then(Value::as_object).into_iter().flatten() {
        let body = response.get("content").and_then(Value::as_object).and_then(|c| c.values().next());
        let body = body.and_then(|b| b.get("schema")).map(type_of).unwrap_or_default();
        write!(out, "<tr><td><code>{}</code><td>{}<td>{body}</tr>", escape(status), text(response, "description"))?;
    }
    write!(out, "</table></section>")
}

fn shape(out: &mut String, name: &str, schema: &Value) -> std::fmt::Result {
    let name = escape(name);
    write!(out, "<section id=\"shape-{name}\"><h3><code>{name}</code></h3><p>{}</p>", text(schema, "description"))?;
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let required = schema.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        write!(out, "<table><tr><th>Member<th>Type<th>What</tr>")?;
        for (member, of) in properties {
            let mark = if required.iter().any(|r| r == member) { " (required)" } else { "" };
            write!(
                out,
                "<tr><td><code>{}</code>{mark}<td>{}<td>{}</tr>",
                escape(member),
                type_of(of),
                text(of, "description")
            )?;
        }
        write!(out, "</table>")?;
    } else {
        write!(out, "<p>{}</p>", type_of(schema))?;
    }
    write!(out, "</section>")
}

fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = escape(reference.rsplit('/').next().unwrap_or(""));
        return format!("<a href=\"#shape-{name}\"><code>{name}</code></a>");
    }
    for many in ["oneOf", "anyOf", "allOf"] {
        if let Some(of) = schema.get(many).and_then(Value::as_array) {
            return of.iter().map(type_of).collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let shown: Vec<_> =
            values.iter().map(|v| format!("<code>{}</code>", escape(v.as_str().unwrap_or("")))).collect();
        return shown.join(", ");
    }
    match schema.get("type") {
        Some(Value::String(name)) if name == "array" => {
            format!("list of {}", schema.get("items").map(type_of).unwrap_or_default())
        }
        Some(Value::String(name)) => escape(name),
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join(" or ")
        }
        _ => "any JSON".into(),
    }
}

fn text(of: &Value, member: &str) -> String {
    escape(of.get(member).and_then(Value::as_str).unwrap_or(""))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
