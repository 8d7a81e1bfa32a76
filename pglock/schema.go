package pglock

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// DefaultNamespace is the schema (namespace) of what SchemaSQL creates unless Config.Namespace says otherwise.
const DefaultNamespace = "locker"

// What fencing tokens are minted from, in a namespace written as $ns. Locks themselves are in the lock table of the
// server.
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
	database oid NOT NULL,
	sequence oid NOT NULL,
	ceiling bigint NOT NULL
);
CREATE UNLOGGED TABLE IF NOT EXISTS $ns.holder (
	name bytea,
	token bigint,
	pid integer NOT NULL,
	locker integer NOT NULL,
	holder bytea NOT NULL,
	mode integer NOT NULL,
	slot integer NOT NULL,
	since timestamptz NOT NULL,
	PRIMARY KEY (name, token)
);
CREATE UNLOGGED TABLE IF NOT EXISTS $ns.revocation (
	key bigint,
	pid integer,
	locker integer,
	broken boolean DEFAULT false,
	token bigint NOT NULL,
	by_whom bytea NOT NULL,
	reason bytea NOT NULL,
	PRIMARY KEY (key, pid, locker, broken)
);
`
)

// SchemaSQL returns the statements that create what pglock needs in a database, for people's own migrations: a sequence
// and four tables, in a schema (namespace) of the given name. They may be run again, and do nothing then.
// A role that uses the locks needs no more than
//
//	GRANT USAGE ON SCHEMA locker TO app;
//	GRANT SELECT, UPDATE ON SEQUENCE locker.token TO app;
//	GRANT SELECT, UPDATE ON locker.token_ceiling TO app;
//	GRANT SELECT, INSERT, DELETE ON locker.token_limit TO app;
//
// For others to read who it is, and for its locks to be revoked, there are further permissions: see
// https://github.com/lockerkit/locker/blob/main/docs/operating.md#permissions. Without them, it locks all the same.
func SchemaSQL(namespace string) string {
	return inNamespace(namespaceSQL+tokensSQL, namespace)
}

func inNamespace(sql, namespace string) string {
	return strings.NewReplacer(
		"$ns", pgx.Identifier{namespace}.Sanitize(),
		"$token", literal(pgx.Identifier{namespace, "token"}.Sanitize()),
	).Replace(sql)
}

// halves is the two integers that a key is made of, by which it is marked: see hints.
const halves = "(key >> 32)::int, (key << 32 >> 32)::int"

// leave gives back what one of several has, of which some is NULL: all of it, whatever becomes of a part. LEAST passes
// over NULL.
const leave = `least(pg_advisory_unlock(number), pg_advisory_unlock_shared(ours),
	pg_advisory_unlock_shared(CASE WHEN ours IS NOT NULL THEN key END)) AS done,
	NOT pg_try_advisory_xact_lock(` + halves + `) AS wanted`

// prepareSQL prepares the statements of a session: for the common case of one key, and for several. The first parameter
// comes back, so that an answer cannot be taken for that to another question.
//
// locker_try takes the locks of those keys that are free, and then mints a token for all that it took. The order
// matters: a token that was minted before a lock was taken could be smaller than that of the former holder.
//
// locker_unlock gives locks back, and then looks for the mark of somebody who polls for the key, see hints. In the
// other order, there could be one who marks the key after the look and finds it locked.
//
// locker_enter and locker_leave are the same for readers and slots, see together.go; locker_slot takes a further slot
// for a session that has one. What is taken of a key is given back where the next cannot be had. A series that is
// selected, unlike one that is selected from, is not made whole before the first number is tried.
//
// None of these reads a table: somebody who has one locked, for a dump or a VACUUM FULL, would keep the heartbeats of
// the session waiting, which come behind, and so end its leases.
const prepareSQL = `
PREPARE locker_try_one (bigint, bigint) AS
SELECT $1, CASE WHEN pg_try_advisory_lock($2) THEN nextval($token) END;

PREPARE locker_try (bigint, bigint[]) AS
WITH tried AS MATERIALIZED (
	SELECT array_agg(pg_try_advisory_lock(key)) AS taken FROM unnest($2) AS key
)
SELECT $1, CASE WHEN true = ANY (taken) THEN nextval($token) END, taken FROM tried;

PREPARE locker_mint (bigint) AS
SELECT $1, nextval($token);

PREPARE locker_unlock_one (bigint, bigint) AS
SELECT $1, pg_advisory_unlock($2), NOT pg_try_advisory_xact_lock(($2 >> 32)::int, ($2 << 32 >> 32)::int);

PREPARE locker_unlock (bigint, bigint[]) AS
SELECT $1, array_agg(done), array_agg(wanted) FROM (
	SELECT pg_advisory_unlock(key) AS done,
		NOT pg_try_advisory_xact_lock(` + halves + `) AS wanted
	FROM unnest($2) AS key OFFSET 0
) AS unlocked;

PREPARE locker_enter (bigint, bigint[], bigint[], bigint[], bigint[], bigint[], int[]) AS
WITH tried AS MATERIALIZED (
	SELECT array_agg(
		CASE WHEN pg_advisory_xact_lock(gate)::text = '' THEN
			CASE WHEN pg_try_advisory_lock_shared(key) THEN
				CASE WHEN pg_try_advisory_lock_shared(ours) THEN
					coalesce(
						CASE WHEN CASE WHEN pg_try_advisory_lock(theirs) THEN pg_advisory_unlock(theirs) END THEN
							CASE WHEN slots = 0 THEN 0 ELSE
								(SELECT i FROM (SELECT generate_series(0, slots - 1) AS i) AS numbers
									WHERE pg_try_advisory_lock(first + i) LIMIT 1)
							END
						END,
						CASE WHEN pg_advisory_unlock_shared(ours) THEN
							CASE WHEN pg_advisory_unlock_shared(key) THEN NULL::int END
						END)
				ELSE CASE WHEN pg_advisory_unlock_shared(key) THEN NULL::int END
				END
			END
		END) AS numbers
	FROM unnest($2, $3, $4, $5, $6, $7) AS wanted (key, ours, theirs, gate, first, slots)
)
SELECT $1, CASE WHEN 0 <= ANY (numbers) THEN nextval($token) END, numbers FROM tried;

PREPARE locker_enter_one (bigint, bigint, bigint, bigint, bigint) AS
SELECT $1, CASE WHEN
	CASE WHEN pg_advisory_xact_lock($5)::text = '' THEN
		CASE WHEN pg_try_advisory_lock_shared($2) THEN
			CASE WHEN pg_try_advisory_lock_shared($3) THEN
				coalesce(
					CASE WHEN pg_try_advisory_lock($4) THEN pg_advisory_unlock($4) END,
					CASE WHEN pg_advisory_unlock_shared($3) THEN NOT pg_advisory_unlock_shared($2) END)
			ELSE NOT pg_advisory_unlock_shared($2)
			END
		END
	END
THEN nextval($token) END;

PREPARE locker_slot (bigint, bigint, bigint, int[], int[]) AS
WITH tried AS MATERIALIZED (
	SELECT CASE WHEN pg_advisory_xact_lock($2)::text = '' THEN
		(SELECT i FROM unnest($4, $5) AS gap (least, most),
			LATERAL (SELECT generate_series(least, most) AS i) AS numbers
			WHERE pg_try_advisory_lock($3 + i) LIMIT 1)
	END AS number
)
SELECT $1, CASE WHEN number IS NOT NULL THEN nextval($token) END, ARRAY[number] FROM tried;

PREPARE locker_leave_one (bigint, bigint, bigint, bigint) AS
SELECT $1, ` + leave + ` FROM (SELECT $2 AS key, $3 AS ours, $4 AS number) AS had;

PREPARE locker_leave (bigint, bigint[], bigint[], bigint[]) AS
SELECT $1, array_agg(done), array_agg(wanted) FROM (
	SELECT ` + leave + ` FROM unnest($2, $3, $4) AS had (key, ours, number) OFFSET 0
) AS unlocked;
`

// limitSQL is the greatest token that may be used, or NULL if the server has lost or may have lost tokens since it
// started; or if this is a copy of the database for which that was written, or of the sequence. It is good for as long
// as the session lives that has read it: the server cannot lose tokens without ending it.
const limitSQL = `(SELECT ceiling FROM $ns.token_limit WHERE started = pg_postmaster_start_time()
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND sequence = $token::regclass)`

// roomSQL returns the limit, and how many more tokens there are below it.
const roomSQL = `SELECT $limit, $limit - last_value FROM $ns.token`

// leastRoom is for how many tokens there has to be room when a session begins. A raise makes room for twice as many,
// at least.
const leastRoom = 250_000

// raiseSQL lets further tokens be used. It is a transaction of its own, one at a time because of the row that it
// locks, and the only one that waits for the disk.
//
// If the server has been started since the last time, or has recovered from a crash, by which the unlogged table is
// emptied, the sequence may have gone back. It then continues above the ceiling, under which all tokens are that were
// ever used, and not below the clock, so that tokens increase even if the ceiling was lost with the data.
//
// It waits for whoever blocks that row, and for a synchronous standby, and so is never sent on a session with locks.
const raiseSQL = `SET LOCAL synchronous_commit = on;
SELECT FROM $ns.token_ceiling FOR UPDATE;
SELECT setval($token, greatest(ceiling + 1, last_value + 1, (date_part('epoch', clock_timestamp()) * 1000000)::bigint))
FROM $ns.token_ceiling, $ns.token WHERE $limit IS NULL;
UPDATE $ns.token_ceiling SET ceiling = greatest(ceiling, (SELECT last_value FROM $ns.token)) + 1000000
WHERE $limit IS NULL OR ceiling < (SELECT last_value FROM $ns.token) + 500000;
DELETE FROM $ns.token_limit;
INSERT INTO $ns.token_limit SELECT pg_postmaster_start_time(), pg_database.oid, $token::regclass, ceiling
FROM $ns.token_ceiling, pg_database WHERE datname = current_database();
`

// statements are the statements for one namespace.
type statements struct {
	namespace, tokens, prepare, room, raise string

	operating

	mint, limit string // expressions
}

func statementsFor(namespace string) statements {
	fill := func(sql string) string {
		return inNamespace(strings.ReplaceAll(sql, "$limit", limitSQL), namespace)
	}
	return statements{
		namespace: fill(namespaceSQL),
		tokens:    fill(tokensSQL),
		prepare:   fill(prepareSQL),
		room:      fill(roomSQL),
		raise:     fill(raiseSQL),
		mint:      fill("pg_catalog.nextval($token)"),
		limit:     fill("$limit"),
		operating: operatingIn(namespace),
	}
}
