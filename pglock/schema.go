package pglock

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// DefaultNamespace is the schema (namespace) of what SchemaSQL creates unless Config.Namespace says otherwise.
const DefaultNamespace = "locker"

// What fencing tokens are minted from, in a namespace written as $ns. Locks themselves are in the lock table of the server.
const (
	namespaceSQL = `CREATE SCHEMA IF NOT EXISTS $ns;
`
	tokensSQL = `CREATE SEQUENCE IF NOT EXISTS $ns.token;
CREATE TABLE IF NOT EXISTS $ns.token_ceiling (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	ceiling bigint NOT NULL
);
INSERT INTO $ns.token_ceiling (ceiling) VALUES (0) ON CONFLICT DO NOTHING;
CREATE UNLOGGED TABLE IF NOT EXISTS $ns.token_limit (
	started timestamptz NOT NULL,
	ceiling bigint NOT NULL
);
`
)

// SchemaSQL returns the statements that create what pglock needs in a database, for people's own migrations: a sequence
// and two tables of one row, in a schema (namespace) of the given name. They may be run again, and do nothing then.
// A role that uses the locks needs no more than
//
//	GRANT USAGE ON SCHEMA locker TO app;
//	GRANT SELECT, UPDATE ON SEQUENCE locker.token TO app;
//	GRANT SELECT, UPDATE ON locker.token_ceiling TO app;
//	GRANT SELECT, INSERT, DELETE ON locker.token_limit TO app;
func SchemaSQL(namespace string) string {
	return inNamespace(namespaceSQL+tokensSQL, namespace)
}

func inNamespace(sql, namespace string) string {
	return strings.NewReplacer(
		"$ns", pgx.Identifier{namespace}.Sanitize(),
		"$token", literal(pgx.Identifier{namespace, "token"}.Sanitize()),
	).Replace(sql)
}

// prepareSQL prepares the statements of a session: for the common case of one key, and for several. The first parameter
// comes back, so that an answer cannot be taken for that to another question.
//
// locker_try takes the locks of those keys that are free, and then mints a token for all that it took. The order matters: a
// token that was minted before a lock was taken could be smaller than that of the former holder. It also returns the
// greatest token that may be used.
const prepareSQL = `
PREPARE locker_try_one (bigint, bigint) AS
SELECT $1, CASE WHEN pg_try_advisory_lock($2) THEN nextval($token) END, $limit;

PREPARE locker_try (bigint, bigint[]) AS
WITH tried AS MATERIALIZED (
	SELECT array_agg(pg_try_advisory_lock(key)) AS taken FROM unnest($2) AS key
)
SELECT $1, CASE WHEN true = ANY (taken) THEN nextval($token) END, $limit, taken FROM tried;

PREPARE locker_mint (bigint) AS
SELECT $1, nextval($token), $limit;

PREPARE locker_unlock_one (bigint, bigint) AS
SELECT $1, pg_advisory_unlock($2);

PREPARE locker_unlock (bigint, bigint[]) AS
SELECT $1, array_agg(pg_advisory_unlock(key)) FROM unnest($2) AS key;
`

// limitSQL is the greatest token that may be used, or NULL if the server has lost or may have lost tokens since it started.
const limitSQL = `(SELECT ceiling FROM $ns.token_limit WHERE started = pg_postmaster_start_time())`

// raiseSQL lets further tokens be used. It is a transaction of its own, one at a time because of the row that it locks, and
// the only one that waits for the disk.
//
// If the server has been started since the last time, or has recovered from a crash, by which the unlogged table is emptied,
// the sequence may have gone back. It then continues above the ceiling, under which all tokens are that were
// ever used, and not below the clock, so that tokens increase even if the ceiling was lost with the data.
//
// Whoever blocks that row must not cost the session its leases, whose renewals wait behind this: so it has a bound.
const raiseSQL = `SET LOCAL synchronous_commit = on;
SELECT FROM $ns.token_ceiling FOR UPDATE;
SELECT setval($token, greatest(ceiling + 1, (date_part('epoch', clock_timestamp()) * 1000000)::bigint))
FROM $ns.token_ceiling WHERE $limit IS NULL;
UPDATE $ns.token_ceiling SET ceiling = greatest(ceiling, (SELECT last_value FROM $ns.token)) + 1000000
WHERE $limit IS NULL OR ceiling < (SELECT last_value FROM $ns.token) + 500000;
DELETE FROM $ns.token_limit;
INSERT INTO $ns.token_limit SELECT pg_postmaster_start_time(), ceiling FROM $ns.token_ceiling;
`

// statements are the statements for one namespace.
type statements struct {
	namespace, tokens, prepare string
	raise                      string // a format: the number of the message, and the bound in milliseconds
}

func statementsFor(namespace string) statements {
	fill := func(sql string) string {
		return inNamespace(strings.ReplaceAll(sql, "$limit", limitSQL), namespace)
	}
	return statements{
		namespace: fill(namespaceSQL),
		tokens:    fill(tokensSQL),
		prepare:   fill(prepareSQL),
		raise:     "SELECT %d;SET LOCAL lock_timeout = %d;" + strings.ReplaceAll(fill(raiseSQL), "%", "%%"),
	}
}
