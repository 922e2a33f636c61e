#!/usr/bin/env bash
# Asks a server for everything its OpenAPI document says, and for much that it does not: no 5xx, no answer that is not
# in the document. `cargo xtask fuzz-http` installs schemathesis and calls this; SCHEMATHESIS names another one.
# EXAMPLES (60) is how often each operation is asked, SEED (7) repeats a run, PHASES names the phases.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
tool="${SCHEMATHESIS:-schemathesis}"
command -v "$tool" >/dev/null || { echo "no schemathesis: pip install schemathesis, or set SCHEMATHESIS" >&2; exit 69; }
work="$(mktemp -d)"
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
# As the tests are built, so that after them there is nothing to build.
cargo build --quiet --workspace --all-features --example serve
"${CARGO_TARGET_DIR:-target}/debug/examples/serve" memory: 0 100ms >"$work/log" 2>&1 &
server=$!
address=""
for _ in $(seq 100); do
    address="$(sed -n 's/^listening on //p' "$work/log")"
    [ -n "$address" ] && break
    sleep 0.1
done
[ -n "$address" ] || { echo "the server does not start:" >&2; cat "$work/log" >&2; exit 1; }
# /v1/events has no end; the server ends every wait after its third argument, whatever a call asks for.
"$tool" run "http://$address/openapi.json" --exclude-path /v1/events --request-timeout 40 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --max-examples "${EXAMPLES:-60}" --seed "${SEED:-7}" --phases "${PHASES:-examples,coverage,fuzzing,stateful}" --no-color \
    --generation-database :memory: "$@"
