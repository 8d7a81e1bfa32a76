package fencing

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// FencesSQL creates the table of Guarded.
const FencesSQL = `CREATE TABLE fences (resource text PRIMARY KEY, token bigint NOT NULL)`

// Guarded runs f in a transaction that commits only if no greater token has been used for the resource. The first
// statement keeps every other Guarded of the resource waiting until the end, so that what f reads is still so when it
// writes.
func Guarded(ctx context.Context, pool *pgxpool.Pool, resource string, token uint64, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		raised, err := tx.Exec(ctx, `
			INSERT INTO fences AS f (resource, token) VALUES ($1, $2)
			ON CONFLICT (resource) DO UPDATE SET token = excluded.token
			WHERE f.token <= excluded.token`, resource, token)
		if err != nil {
			return err
		}
		if raised.RowsAffected() == 0 {
			return ErrStale
		}
		return f(tx)
	})
}

// AccountsSQL creates a table whose rows have a fence of their own.
const AccountsSQL = `CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, fence bigint NOT NULL DEFAULT 0)`

// SetBalance writes to a row that is there.
func SetBalance(ctx context.Context, pool *pgxpool.Pool, id, balance int64, token uint64) error {
	updated, err := pool.Exec(ctx, `
		UPDATE accounts SET balance = $2, fence = $3
		WHERE id = $1 AND fence <= $3`, id, balance, token)
	if err == nil && updated.RowsAffected() == 0 {
		err = ErrStale // or there is no such account
	}
	return err
}

// PutBalance writes to a row that may be there or not.
func PutBalance(ctx context.Context, pool *pgxpool.Pool, id, balance int64, token uint64) error {
	written, err := pool.Exec(ctx, `
		INSERT INTO accounts AS a (id, balance, fence) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET balance = excluded.balance, fence = excluded.fence
		WHERE a.fence <= excluded.fence`, id, balance, token)
	if err == nil && written.RowsAffected() == 0 {
		err = ErrStale
	}
	return err
}

// Balance reads, and raises the fence in the same step: from now on, nobody with a smaller token can change what was
// read.
func Balance(ctx context.Context, pool *pgxpool.Pool, id int64, token uint64) (balance int64, err error) {
	rows, err := pool.Query(ctx, `
		UPDATE accounts SET fence = $2
		WHERE id = $1 AND fence <= $2 RETURNING balance`, id, token)
	if err != nil {
		return 0, err
	}
	balance, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrStale // or there is no such account
	}
	return balance, err
}
