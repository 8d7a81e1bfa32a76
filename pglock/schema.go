package pglock

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// DefaultNamespace is the schema (namespace) of the tables unless Config.Namespace says otherwise.
const DefaultNamespace = "locker"

// The tables, in a namespace written as $ns. They hold nothing but what fencing tokens need; locks are in the lock table
// of the server. See the package documentation, "Fencing tokens".
const (
	namespaceSQL = `CREATE SCHEMA IF NOT EXISTS $ns;
`
	tablesSQL = `CREATE TABLE IF NOT EXISTS $ns.token_ceiling (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	ceiling bigint NOT NULL
) WITH (fillfactor = 25);
INSERT INTO $ns.token_ceiling (ceiling) VALUES (0) ON CONFLICT DO NOTHING;
CREATE UNLOGGED TABLE IF NOT EXISTS $ns.token (
	bucket integer PRIMARY KEY,
	token bigint NOT NULL
) WITH (fillfactor = 25);
`
)

// SchemaSQL returns the statements that create what pglock needs in a database, for people's own migrations: two small
// tables in a schema (namespace) of the given name. They may be run again, and do nothing then. A role that uses the
// locks needs no more than
//
//	GRANT USAGE ON SCHEMA locker TO app;
//	GRANT SELECT, UPDATE ON locker.token_ceiling TO app;
//	GRANT SELECT, INSERT, UPDATE ON locker.token TO app;
func SchemaSQL(namespace string) string {
	return inNamespace(namespaceSQL+tablesSQL, namespace)
}

func inNamespace(sql, namespace string) string {
	return strings.ReplaceAll(sql, "$ns", pgx.Identifier{namespace}.Sanitize())
}

// buckets is the number of rows that tokens are minted from. A key belongs to one of them. It is a compromise: with few,
// grants in different processes wait for one another; with many, a statement that grants a hundred locks at once has
// more rows to write.
const buckets = 64

// The statements that a session prepares. Each is executed by one message of the simple query protocol, of which a
// server that got only half does nothing and keeps the idle timer running; the messages of the extended protocol stop it one
// by one, and a client that is cut off between two of them would keep its locks for good. The first
// parameter comes back, so that an answer cannot be taken for that to another question.
const preparedSQL = `
-- Takes the locks of the keys that are free, and mints a token for each that was taken. The rows of tokens are
-- locked in their order, which keeps sessions that mint several at once from deadlocks.
PREPARE locker_try_many (bigint, bigint[]) AS
WITH tried AS MATERIALIZED (
	SELECT (key & $last)::integer AS bucket, pg_try_advisory_lock(key) AS taken FROM unnest($2) AS key
), $minted
SELECT $1, (SELECT array_agg(taken) FROM tried), (SELECT array_agg(bucket) FROM minted), (SELECT array_agg(token) FROM minted);

-- The same for one key, which is the common case and needs less.
PREPARE locker_try (bigint, bigint) AS
WITH tried AS MATERIALIZED (
	SELECT pg_try_advisory_lock($2) AS taken, $clock AS now
), minted AS (
	UPDATE $ns.token t SET token = greatest(t.token + 1, now) FROM tried, $ns.token_ceiling c
	WHERE taken AND t.bucket = ($2 & $last)::integer AND greatest(t.token + 1, now) <= c.ceiling
	RETURNING t.token
)
SELECT $1, taken, token FROM tried LEFT JOIN minted ON true;

-- Mints tokens for locks that the session has already.
PREPARE locker_mint (bigint, bigint[]) AS
WITH tried AS MATERIALIZED (
	SELECT (key & $last)::integer AS bucket, true AS taken FROM unnest($2) AS key
), $minted
SELECT $1, (SELECT array_agg(taken) FROM tried), (SELECT array_agg(bucket) FROM minted), (SELECT array_agg(token) FROM minted);

PREPARE locker_unlock (bigint, bigint[]) AS
SELECT $1, array_agg(pg_advisory_unlock(key)) FROM unnest($2) AS key;
`

const mintedSQL = `clock AS MATERIALIZED (
	SELECT $clock AS now, ceiling FROM $ns.token_ceiling
), rows AS MATERIALIZED (
	SELECT t.bucket FROM $ns.token t WHERE t.bucket IN (SELECT bucket FROM tried WHERE taken)
	ORDER BY t.bucket FOR NO KEY UPDATE
), minted AS (
	UPDATE $ns.token t SET token = greatest(t.token + 1, now) FROM rows, clock
	WHERE t.bucket = rows.bucket AND greatest(t.token + 1, now) <= ceiling
	RETURNING t.bucket, t.token
)`

// clockSQL is the server's clock in microseconds.
const clockSQL = `(date_part('epoch', clock_timestamp()) * 1000000)::bigint`

// raiseSQL raises the ceiling of tokens to a minute ahead if it is near, or if the tokens below it were lost in a crash, and
// makes those anew then, greater than any that was minted before.
const raiseSQL = `WITH raised AS (
	UPDATE $ns.token_ceiling SET ceiling = greatest(ceiling + 1, $clock) + 60000000
	WHERE ceiling < greatest($clock, (SELECT max(token) FROM $ns.token)) + 30000000
	OR (SELECT count(*) FROM $ns.token) <= $last
	RETURNING ceiling
), filled AS (
	INSERT INTO $ns.token SELECT bucket, ceiling - 60000000 FROM raised, generate_series(0, $last) AS bucket
	ON CONFLICT DO NOTHING
)
SELECT %d`

// statements are the statements for one namespace.
type statements struct {
	namespace, tables, prepare, raise string
}

func statementsFor(namespace string) statements {
	fill := func(sql string) string {
		sql = strings.NewReplacer("$minted", mintedSQL).Replace(sql)
		sql = strings.NewReplacer("$clock", clockSQL, "$last", "63").Replace(sql)
		return inNamespace(sql, namespace)
	}
	return statements{
		namespace: fill(namespaceSQL),
		tables:    fill(tablesSQL),
		prepare:   fill(preparedSQL),
		raise:     fill(raiseSQL),
	}
}
