#!/usr/bin/env bash
# Asks a server for everything its OpenAPI document says, and for much that it does not: no 5xx, no answer that is not
# in the document. Needs schemathesis (`pip install schemathesis`); SCHEMATHESIS names another than the one in PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
tool="${SCHEMATHESIS:-schemathesis}"
command -v "$tool" >/dev/null || { echo "no schemathesis: pip install schemathesis, or set SCHEMATHESIS" >&2; exit 69; }
port="${PORT:-42780}"
work="$(mktemp -d)"
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cargo build --quiet --workspace --all-features --package hapax-http --example serve
"${CARGO_TARGET_DIR:-target}/debug/examples/serve" memory: "$port" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 50); do curl -fs "http://127.0.0.1:$port/healthz" >/dev/null && break; sleep 0.1; done
# /v1/events has no end; waits are kept short by the limit on time.
"$tool" run "http://127.0.0.1:$port/openapi.json" --exclude-path /v1/events --request-timeout 40 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --max-examples "${EXAMPLES:-60}" --seed "${SEED:-7}" --phases examples,coverage,fuzzing,stateful --no-color --generation-database :memory: "$@"
