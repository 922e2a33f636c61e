//! Statements: their text with the store's schema in it, and the types of
//! their parameters.
//!
//! Templates write `@records` and the like for the tables, `@now` for the
//! server's time in milliseconds, `@expired` and `@lapsed` for what time has
//! done to the row `r`. One spelling of each, so that all statements agree.

use tokio_postgres::types::Type;

/// The server's clock. Not the transaction's start (`now()`): a statement that waited for a lock must see what time it
/// is. Evaluated anew where a row is looked at again after a wait.
const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::int8";
/// The row `r` is absent: past its time, or of a transaction that was given up.
const EXPIRED: &str = "(r.expires_at <= @now OR (r.in_tx AND r.state = 0 AND r.lease_until <= @now))";
/// The row `r` is in doubt, written down or not.
const IN_DOUBT: &str = "(r.state = 1 OR (r.state = 0 AND NOT r.in_tx AND r.lease_until <= @now))";

/// The columns of a record, as [`row`](super::row) reads them.
const COLUMNS: &str = "r.key, r.state, r.in_tx, r.attempt, r.attempts, r.presented, r.started_at, r.executed_at, \
    r.expires_at, r.lease_until, r.duration_ms, r.fingerprint, r.signal_id, r.action_type, r.target, r.host, r.pid, \
    r.label, r.tags, r.params, r.body, r.id, r.hash, @now AS now";

/// A statement, ready to be sent.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) text: String,
    pub(super) types: Vec<Type>,
    /// Its place among a connection's prepared statements.
    pub(super) place: usize,
}

/// Fills a template in.
pub(super) fn fill(template: &str, schema: &str) -> String {
    template
        .replace("@expired", EXPIRED)
        .replace("@in_doubt", IN_DOUBT)
        .replace("@columns", COLUMNS)
        .replace("@records", &format!("\"{schema}\".hapax_records"))
        .replace("@meta", &format!("\"{schema}\".hapax_meta"))
        .replace("@counters", &format!("\"{schema}\".hapax_counters"))
        .replace("@schema", &format!("\"{schema}\""))
        .replace("@now", NOW)
}

/// Declares the statements of a store: name, parameter types, template.
macro_rules! statements {
    ($($name:ident ($($kind:ident),*) $template:expr;)*) => {
        /// Every statement of a store that is not made up on the way.
        #[derive(Debug)]
        pub(super) struct Statements { $(pub(super) $name: Stmt,)* }

        impl Statements {
            pub(super) fn new(schema: &str) -> Self {
                let mut place = 0;
                let mut next = || { place += 1; place - 1 };
                Self { $($name: Stmt { text: fill($template, schema), types: vec![$(Type::$kind),*], place: next() },)* }
            }
        }
    };
}

const INSERT: &str = "INSERT INTO @records (hash, space_tag, action_tag, target_tag, signal_tag, state, in_tx, attempt, \
    attempts, presented, started_at, lease_until, waited, fingerprint, namespace, key, signal_id, action_type, target, \
    host, pid, label, tags, params)";

/// When the first or the last record of a namespace began: of live ones and of recorded ones, each by its index.
fn edge(order: &str) -> String {
    format!(
        "SELECT u.started_at FROM (
            (SELECT r.id, r.started_at FROM @records r WHERE r.space_tag = $1 AND r.state < 2
                AND NOT (r.in_tx AND r.state = 0 AND r.lease_until <= @now) ORDER BY r.id {order} LIMIT 1)
            UNION ALL
            (SELECT r.id, r.started_at FROM @records r WHERE r.space_tag = $1 AND r.state > 1
                AND (r.expires_at IS NULL OR r.expires_at > @now) ORDER BY r.id {order} LIMIT 1)
        ) u ORDER BY u.id {order} LIMIT 1"
    )
}

statements! {
    // A time to live that is null is for ever; LEAST would take the other.

    // Begin: most keys are new, so the insert finds out. It locks no row that is there already, and several go in in
    // the order of their hashes, so that two such statements cannot wait for each other in a circle.
    begin_one (UUID, INT8, INT8, INT8, INT8, UUID, INT8, BYTEA, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, INT8, TEXT, TEXT, TEXT, BOOL)
        &format!("{INSERT} SELECT $1, $2, $3, $4, $5, 0, $19, $6, 1, 1, n.ms, n.ms + $7, false, $8, $9, $10, $11, $12, $13,
            $14, $15, $16, $17, $18 FROM (SELECT @now AS ms) n ON CONFLICT (hash) DO NOTHING RETURNING attempt, started_at");
    begin_many (UUID_ARRAY, INT8_ARRAY, INT8_ARRAY, INT8_ARRAY, INT8_ARRAY, UUID_ARRAY, INT8_ARRAY, BYTEA_ARRAY, TEXT_ARRAY,
            TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, INT8_ARRAY, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, BOOL_ARRAY)
        &format!("{INSERT} SELECT a.hash, a.space, a.action, a.target, a.signal, 0, a.in_tx, a.attempt, 1, 1, n.ms,
            n.ms + a.lease, false, a.fp, a.ns, a.key, a.sig, a.act, a.tar, a.host, a.pid, a.label, a.tags, a.params
            FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
                AS a (hash, space, action, target, signal, attempt, lease, fp, ns, key, sig, act, tar, host, pid, label,
                    tags, params, in_tx), (SELECT @now AS ms) n
            ON CONFLICT (hash) DO NOTHING RETURNING attempt, started_at");
    existing (UUID_ARRAY) "SELECT @columns FROM @records r WHERE r.hash = ANY($1)";
    // What is absent already is taken out of the way. It may be a new row by now, which then stays.
    drop_expired (UUID_ARRAY) "DELETE FROM @records r WHERE r.hash = ANY($1) AND @expired";
    take_over (UUID, UUID, UUID, INT8, TEXT, INT8, TEXT)
        "UPDATE @records r SET state = 0, in_tx = false, attempt = $3, attempts = r.attempts + 1, presented = r.presented + 1,
            started_at = n.ms, lease_until = n.ms + $4, waited = false, host = $5, pid = $6, label = $7, body = NULL
            FROM (SELECT @now AS ms) n
            WHERE r.hash = $1 AND r.attempt = $2 AND @in_doubt RETURNING r.attempts, r.started_at";
    // The attempt of a transaction that has ended without committing: its lock is gone, its row still in progress.
    drop_dead (UUID, UUID, INT8, INT8, INT8)
        "DELETE FROM @records r WHERE r.hash = $1 AND r.attempt = $2 AND r.state = 0 AND r.in_tx
            AND r.started_at < @now - $5 AND NOT EXISTS (SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory'
                AND l.objsubid = 1 AND l.classid::int8 = $3 AND l.objid::int8 = $4
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))";

    // End: kind is the state it becomes. A release deletes.
    end_one (UUID, UUID, INT2, TEXT, INT8, INT8)
        "UPDATE @records r SET state = $3, body = $4, executed_at = CASE WHEN $3 > 1 THEN n.ms END,
            expires_at = CASE WHEN $5 IS NOT NULL THEN LEAST(n.ms + $5, 253402207199999) END, duration_ms = COALESCE($6, r.duration_ms),
            lease_until = NULL FROM (SELECT @now AS ms) n
            WHERE r.hash = $1 AND r.attempt = $2 AND r.state < 2 RETURNING r.attempt, n.ms, r.expires_at, r.waited, r.hash";
    end_many (UUID_ARRAY, UUID_ARRAY, INT2_ARRAY, TEXT_ARRAY, INT8_ARRAY, INT8_ARRAY)
        "UPDATE @records r SET state = a.kind, body = a.body, executed_at = CASE WHEN a.kind > 1 THEN n.ms END,
            expires_at = CASE WHEN a.ttl IS NOT NULL THEN LEAST(n.ms + a.ttl, 253402207199999) END,
            duration_ms = COALESCE(a.duration, r.duration_ms), lease_until = NULL
            FROM unnest($1, $2, $3, $4, $5, $6) AS a (hash, attempt, kind, body, ttl, duration), (SELECT @now AS ms) n
            WHERE r.hash = a.hash AND r.attempt = a.attempt AND r.state < 2
            RETURNING r.attempt, n.ms, r.expires_at, r.waited, r.hash";
    release_many (UUID_ARRAY, UUID_ARRAY)
        "DELETE FROM @records r USING unnest($1, $2) AS a (hash, attempt)
            WHERE r.hash = a.hash AND r.attempt = a.attempt AND r.state < 2
            RETURNING r.attempt, @now, NULL::int8, r.waited, r.hash";

    heartbeat (UUID_ARRAY, UUID_ARRAY, INT8_ARRAY)
        "UPDATE @records r SET lease_until = @now + a.lease FROM unnest($1, $2, $3) AS a (hash, attempt, lease)
            WHERE r.hash = a.hash AND r.attempt = a.attempt AND r.state = 0 AND r.lease_until > @now RETURNING r.hash, r.attempt";
    settle_happened (UUID, UUID, UUID, TEXT, INT8)
        "UPDATE @records r SET state = 2, attempt = $3, body = $4, executed_at = n.ms,
            expires_at = CASE WHEN $5 IS NOT NULL THEN LEAST(n.ms + $5, 253402207199999) END, lease_until = NULL FROM (SELECT @now AS ms) n
            WHERE r.hash = $1 AND @in_doubt AND ($2 IS NULL OR r.attempt = $2) RETURNING @columns";
    settle_not_happened (UUID, UUID)
        "DELETE FROM @records r WHERE r.hash = $1 AND @in_doubt AND ($2 IS NULL OR r.attempt = $2) RETURNING r.waited";
    mark_new (UUID, INT8, INT8, INT8, INT8, UUID, INT8, BYTEA, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, INT8, TEXT, TEXT, TEXT)
        "INSERT INTO @records AS r (hash, space_tag, action_tag, target_tag, signal_tag, state, in_tx, attempt, attempts,
            presented, started_at, executed_at, expires_at, waited, fingerprint, namespace, key, signal_id, action_type,
            target, host, pid, label, params, body)
            SELECT $1, $2, $3, $4, $5, 2, false, $6, 0, 1, n.ms, n.ms, CASE WHEN $7 IS NOT NULL THEN LEAST(n.ms + $7, 253402207199999) END, false, $8, $9, $10,
                $11, $12, $13, $14, $15, $16, $17, $18 FROM (SELECT @now AS ms) n
            ON CONFLICT (hash) DO NOTHING RETURNING @columns";
    remove (UUID)
        "WITH gone AS (DELETE FROM @records r WHERE r.hash = $1 AND r.state > 1 RETURNING COALESCE(r.expires_at <= @now, false) AS expired),
            raised AS (UPDATE @meta SET value = value + 1 WHERE name = 'epoch' AND EXISTS (SELECT 1 FROM gone))
            SELECT expired FROM gone";

    // Room. Rows that someone holds are left for the next time: nobody waits for a sweep, nor a sweep for anybody.
    sweep (INT8)
        "WITH gone AS (DELETE FROM @records WHERE hash IN (SELECT hash FROM @records WHERE expires_at <= @now
            ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone";
    sweep_dead (INT8)
        "WITH gone AS (DELETE FROM @records WHERE hash IN (SELECT hash FROM @records WHERE in_tx AND state = 0
            AND lease_until <= @now LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone";
    last_id (INT8) "SELECT COALESCE(max(id), 0) FROM @records WHERE space_tag = $1 AND state > 1";
    clear (INT8, TEXT, INT8, INT8)
        "WITH gone AS (DELETE FROM @records r WHERE r.hash IN (SELECT c.hash FROM @records c WHERE c.space_tag = $1
                AND c.namespace = $2 AND c.state > 1 AND c.id <= $3 ORDER BY c.id LIMIT $4 FOR UPDATE)
            RETURNING COALESCE(r.expires_at <= @now, false) AS expired),
            raised AS (UPDATE @meta SET value = value + 1 WHERE name = 'epoch')
            SELECT count(*) FILTER (WHERE NOT expired), count(*) FROM gone";
    evict (INT8, TEXT, INT8)
        "WITH gone AS (DELETE FROM @records r WHERE r.hash IN (SELECT r.hash FROM @records r WHERE r.space_tag = $1
                AND r.namespace = $2 AND r.state > 1 AND (r.expires_at IS NULL OR r.expires_at > @now)
                ORDER BY r.id LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING 1),
            raised AS (UPDATE @meta SET value = value + 1 WHERE name = 'epoch' AND EXISTS (SELECT 1 FROM gone))
            SELECT count(*) FROM gone";
    evict_any (INT8)
        "WITH gone AS (DELETE FROM @records r WHERE r.hash IN (SELECT r.hash FROM @records r WHERE r.state > 1
                ORDER BY r.id LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING 1),
            raised AS (UPDATE @meta SET value = value + 1 WHERE name = 'epoch' AND EXISTS (SELECT 1 FROM gone))
            SELECT count(*) FROM gone";
    lock_room () "SELECT value FROM @meta WHERE name = 'room' FOR UPDATE";
    total (INT8) "SELECT count(*) FROM (SELECT 1 FROM @records LIMIT $1) few";

    count (TEXT, TEXT_ARRAY, INT8_ARRAY)
        "INSERT INTO @counters AS c (namespace, name, value) SELECT $1, a.name, a.value FROM unnest($2, $3) AS a (name, value)
            ORDER BY a.name ON CONFLICT (namespace, name)
            DO UPDATE SET value = LEAST(c.value::numeric + excluded.value, 9223372036854775807)::int8";
    presented (UUID_ARRAY, INT8_ARRAY)
        "UPDATE @records r SET presented = LEAST(r.presented + a.value, 9007199254740991)
            FROM unnest($1, $2) AS a (hash, value) WHERE r.hash = a.hash";
    counters (TEXT) "SELECT name, value FROM @counters WHERE namespace = $1";
    reset_counters (TEXT) "DELETE FROM @counters WHERE namespace = $1";
    census_recorded (INT8) "SELECT count(*) FROM @records WHERE space_tag = $1 AND state > 1";
    census_failed (INT8) "SELECT count(*) FROM @records WHERE space_tag = $1 AND state = 3";
    census_expired (INT8)
        "SELECT state, count(*) FROM @records WHERE expires_at <= @now AND space_tag = $1 GROUP BY state";
    census_live (INT8)
        "SELECT (@in_doubt), count(*) FROM @records r WHERE r.space_tag = $1 AND r.state < 2
            AND NOT (r.in_tx AND r.state = 0 AND r.lease_until <= @now) GROUP BY 1";
    census_oldest (INT8) &edge("");
    census_newest (INT8) &edge("DESC");
    bytes (TEXT) "SELECT pg_total_relation_size($1::text::regclass)";
    now () "SELECT @now";
    epoch () "SELECT value FROM @meta WHERE name = 'epoch'";

    // Waiting. Rows that someone holds are about to end: they are looked at again soon.
    want_word (UUID_ARRAY)
        "UPDATE @records SET waited = true WHERE hash IN (SELECT hash FROM @records WHERE hash = ANY($1) AND state = 0
            AND NOT waited FOR UPDATE SKIP LOCKED)";
    live (UUID_ARRAY)
        "SELECT r.hash, r.attempt, r.in_tx, r.lease_until - @now, @now - r.started_at FROM @records r
            WHERE r.hash = ANY($1) AND r.state = 0 AND r.lease_until > @now";
    tx_locks ()
        "SELECT l.classid::int8, l.objid::int8 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())";
    notify (TEXT, TEXT_ARRAY) "SELECT pg_notify($1, w.payload) FROM unnest($2) AS w (payload)";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        let all = format!("{:?}", Statements::new("s"));
        assert!(!all.contains('@'), "{all}");
    }
}
