package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgQueue is a Queue in Postgres: a row in workers.queue, and a row in workers.result for each of the last thousand
// jobs. Delete the former, with which the latter go, to begin again with job 1.
type pgQueue struct {
	pool *pgxpool.Pool
	name string
}

var _ Queue = (*pgQueue)(nil)

func newPgQueue(pool *pgxpool.Pool, name string) *pgQueue { return &pgQueue{pool: pool, name: name} }

// pgTablesSQL creates the tables, one process at a time: IF NOT EXISTS alone is not safe against others that create the
// same. The two numbers spell "work" and "ers ".
const pgTablesSQL = `
SELECT pg_advisory_xact_lock(2003792491, 1701999392);
CREATE SCHEMA IF NOT EXISTS workers;
CREATE TABLE IF NOT EXISTS workers.queue (
	name text PRIMARY KEY,
	token numeric NOT NULL,    -- the greatest fencing token seen; a bigint is too small for half of them
	leader text NOT NULL,      -- whose it is
	seen timestamptz NOT NULL, -- when that leader was last heard of, by the clock of the server
	has_left boolean NOT NULL, -- whether it left then
	done bigint NOT NULL,      -- the number of the last job done

	-- The same of the leader before, right after another one has taken over; else NULL.
	was_leader text,
	was_seen timestamptz,
	had_left boolean
);
CREATE TABLE IF NOT EXISTS workers.result (
	queue text NOT NULL REFERENCES workers.queue ON DELETE CASCADE,
	job bigint NOT NULL,
	token numeric NOT NULL, -- of who did the job
	leader text NOT NULL,
	PRIMARY KEY (queue, job)
);
`

// pgAskSQL is all that a queue does, in one statement: it takes effect as a whole or not at all, and leaves no row
// locked by a process that is stopped half-way. The first part is the fence. It locks the row of the queue, refuses a
// deposed leader by doing nothing and returning no row, and takes note of any other.
//
// Parameters: name of the queue, token and name of the leader, whether it leaves, and the job of which it hands in the
// result, or 0.
const pgAskSQL = `
WITH fenced AS (
	INSERT INTO workers.queue AS q (name, token, leader, seen, has_left, done)
	VALUES ($1, $2, $3, clock_timestamp(), $4, ($5::bigint = 1)::int)
	ON CONFLICT (name) DO UPDATE SET
		token = excluded.token,
		leader = excluded.leader,
		seen = CASE WHEN q.token = excluded.token AND q.has_left THEN q.seen ELSE clock_timestamp() END,
		has_left = excluded.has_left OR q.token = excluded.token AND q.has_left,
		done = q.done + (q.done + 1 = $5)::int,
		was_leader = CASE WHEN q.token < excluded.token THEN q.leader END,
		was_seen = CASE WHEN q.token < excluded.token THEN q.seen END,
		had_left = CASE WHEN q.token < excluded.token THEN q.has_left END
	WHERE q.token <= excluded.token
	RETURNING *
), accepted AS (
	INSERT INTO workers.result AS r (queue, job, token, leader)
	SELECT name, done, token, leader FROM fenced WHERE done = $5 AND done > 0
	-- Again: the answer got lost. Nothing changes, and a row is returned, if this leader did the job.
	ON CONFLICT (queue, job) DO UPDATE SET job = r.job WHERE r.token = excluded.token AND r.leader = excluded.leader
	RETURNING queue, job
), forgotten AS (
	DELETE FROM workers.result r USING accepted a WHERE r.queue = a.queue AND r.job <= a.job - 1000
)
SELECT done, EXISTS (SELECT FROM accepted), coalesce(was_leader, ''), coalesce(had_left, false), coalesce(seen - was_seen, '0')
FROM fenced`

// pgFenceSQL tells who raised the fence. It is asked after a refusal, and the fence never goes down.
const pgFenceSQL = `SELECT token::text, leader FROM workers.queue WHERE name = $1`

// pgAnswer is what the queue answers to a leader that has not been deposed.
type pgAnswer struct {
	done     int64 // the number of the last job done
	accepted bool  // the result of the job, now or before
	before   Handover
}

// ask asks the queue, and creates the tables if they are missing.
func (q *pgQueue) ask(ctx context.Context, l Leader, leaves bool, job int64) (pgAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, errNoAnswer)
	defer cancel()
	a, err := q.askOnce(ctx, l, leaves, job)
	var pg *pgconn.PgError
	const undefinedTable, invalidSchemaName = "42P01", "3F000"
	if errors.As(err, &pg) && (pg.Code == undefinedTable || pg.Code == invalidSchemaName) {
		if _, err = q.pool.Exec(ctx, pgTablesSQL); err == nil { // several statements, but one transaction
			a, err = q.askOnce(ctx, l, leaves, job)
		}
	}
	if err != nil && !errors.Is(err, ErrDeposed) {
		err = fmt.Errorf("postgres: queue %q: %w", q.name, sayNoAnswer(ctx, err))
	}
	return a, err
}

func (q *pgQueue) askOnce(ctx context.Context, l Leader, leaves bool, job int64) (a pgAnswer, err error) {
	err = q.pool.QueryRow(ctx, pgAskSQL, q.name, strconv.FormatUint(l.Token, 10), l.Name, leaves, job).
		Scan(&a.done, &a.accepted, &a.before.From, &a.before.Left, &a.before.Ago)
	if !errors.Is(err, pgx.ErrNoRows) {
		return a, err
	}
	var token string
	var by Leader
	if err := q.pool.QueryRow(ctx, pgFenceSQL, q.name).Scan(&token, &by.Name); err != nil {
		return a, err
	}
	by.Token, err = strconv.ParseUint(token, 10, 64)
	if err != nil {
		return a, err
	}
	return a, deposed(by)
}

func (q *pgQueue) Claim(ctx context.Context, l Leader) (Handover, error) {
	a, err := q.ask(ctx, l, false, 0)
	return a.before, err
}

func (q *pgQueue) Next(ctx context.Context, l Leader) (int64, error) {
	a, err := q.ask(ctx, l, false, 0)
	return a.done + 1, err
}

func (q *pgQueue) Submit(ctx context.Context, l Leader, job int64) error {
	a, err := q.ask(ctx, l, false, job)
	if err == nil && !a.accepted {
		return outOfOrder(a.done + 1)
	}
	return err
}

func (q *pgQueue) Leave(ctx context.Context, l Leader) error {
	_, err := q.ask(ctx, l, true, 0)
	return err
}
