package fencing

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// database is one of its own, with the tables, and the leases of a handover in it.
type database struct {
	t            *testing.T
	pool         *pgxpool.Pool
	stale, fresh uint64
}

func newDatabase(t *testing.T) database {
	t.Helper()
	connect := func(url string) *pgxpool.Pool {
		config, err := pgxpool.ParseConfig(url)
		must(t, err)
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		must(t, err)
		t.Cleanup(pool.Close)
		return pool
	}
	pool := connect(pgtest.New(t, pgtest.Options{}).URL())
	_, err := pool.Exec(t.Context(), FencesSQL+";"+AccountsSQL)
	must(t, err)
	lockers := [2]locker.Locker{pglock.New(pool), pglock.New(pool)}
	t.Cleanup(func() {
		if err := errors.Join(lockers[0].Close(), lockers[1].Close()); err != nil {
			t.Error(err)
		}
	})
	stale, fresh := handover(t, lockers[0], lockers[1], "accounts/7")
	return database{t, pool, stale.Token(), fresh.Token()}
}

func (d database) wantBalance(want int64) {
	d.t.Helper()
	var got int64
	err := d.pool.QueryRow(d.t.Context(), `SELECT balance FROM accounts WHERE id = 7`).Scan(&got)
	if err != nil || got != want {
		d.t.Errorf("balance %d, %v; want %d", got, err, want)
	}
}

// awaitBlocked waits until a statement of the database waits for a row that another transaction has locked.
func (d database) awaitBlocked() {
	d.t.Helper()
	locktest.Eventually(d.t, "somebody waits for the row", func() bool {
		var n int
		must(d.t, d.pool.QueryRow(d.t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'transactionid'`).Scan(&n))
		return n > 0
	})
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	deposit := func(token uint64, n int64, meanwhile func()) error {
		return Guarded(t.Context(), d.pool, "accounts/7", token, func(tx pgx.Tx) error {
			var balance int64
			err := tx.QueryRow(t.Context(), `SELECT balance FROM accounts WHERE id = 7`).Scan(&balance)
			if err != nil {
				return err
			}
			meanwhile()
			_, err = tx.Exec(t.Context(), `UPDATE accounts SET balance = $1 WHERE id = 7`, balance+n)
			return err
		})
	}
	nothing := func() {}
	reset := func(t *testing.T) {
		_, err := d.pool.Exec(t.Context(), `TRUNCATE accounts, fences; INSERT INTO accounts VALUES (7, 100)`)
		must(t, err)
	}
	d.t = t

	t.Run("transaction", func(t *testing.T) {
		reset(t)
		must(t, deposit(d.stale, 1, nothing)) // nobody else has been here
		must(t, deposit(d.fresh, 10, nothing))
		must(t, deposit(d.fresh, 10, nothing)) // the same token again
		wantStale(t, deposit(d.stale, 1, nothing))
		d.wantBalance(121)
	})
	t.Run("transaction, the stale one comes between read and write", func(t *testing.T) {
		for _, first := range []bool{true, false} { // whether the resource has a fence already
			reset(t)
			if !first {
				must(t, deposit(d.stale, 0, nothing))
			}
			late := make(chan error, 1)
			must(t, deposit(d.fresh, 10, func() {
				go func() { late <- deposit(d.stale, 1, nothing) }()
				d.awaitBlocked()
			}))
			wantStale(t, <-late)
			d.wantBalance(110)
		}
	})
	t.Run("transaction, the new one comes between read and write of the stale one", func(t *testing.T) {
		reset(t)
		next := make(chan error, 1)
		must(t, deposit(d.stale, 1, func() {
			go func() { next <- deposit(d.fresh, 10, nothing) }()
			d.awaitBlocked()
		}))
		must(t, <-next) // which saw what the stale one had written
		wantStale(t, deposit(d.stale, 1, nothing))
		d.wantBalance(111)
	})
	t.Run("transaction that fails", func(t *testing.T) {
		reset(t)
		failure := errors.New("failure")
		err := Guarded(t.Context(), d.pool, "accounts/7", d.fresh, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE accounts SET balance = 0`)
			return errors.Join(err, failure)
		})
		if !errors.Is(err, failure) {
			t.Error(err)
		}
		d.wantBalance(100)
	})
	t.Run("statement", func(t *testing.T) {
		reset(t)
		must(t, SetBalance(t.Context(), d.pool, 7, 101, d.stale))
		must(t, SetBalance(t.Context(), d.pool, 7, 110, d.fresh))
		must(t, SetBalance(t.Context(), d.pool, 7, 110, d.fresh)) // the answer got lost
		wantStale(t, SetBalance(t.Context(), d.pool, 7, 101, d.stale))
		d.wantBalance(110)
	})
	t.Run("statement, the stale one comes between read and write", func(t *testing.T) {
		reset(t)
		balance, err := Balance(t.Context(), d.pool, 7, d.fresh)
		must(t, err)
		wantStale(t, SetBalance(t.Context(), d.pool, 7, 101, d.stale))
		_, err = Balance(t.Context(), d.pool, 7, d.stale)
		wantStale(t, err)
		must(t, SetBalance(t.Context(), d.pool, 7, balance+10, d.fresh))
		d.wantBalance(110)
	})
	t.Run("first row", func(t *testing.T) {
		for _, staleFirst := range []bool{false, true} {
			_, err := d.pool.Exec(t.Context(), `TRUNCATE accounts`)
			must(t, err)
			if staleFirst {
				must(t, PutBalance(t.Context(), d.pool, 7, 101, d.stale))
			}
			must(t, PutBalance(t.Context(), d.pool, 7, 110, d.fresh))
			must(t, PutBalance(t.Context(), d.pool, 7, 110, d.fresh)) // the answer got lost
			wantStale(t, PutBalance(t.Context(), d.pool, 7, 101, d.stale))
			d.wantBalance(110)
		}
	})
	t.Run("first row, at the same time", func(t *testing.T) {
		_, err := d.pool.Exec(t.Context(), `TRUNCATE accounts`)
		must(t, err)
		// The row of the new holder is there, but not committed, when the stale one comes.
		tx, err := d.pool.Begin(t.Context())
		must(t, err)
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		_, err = tx.Exec(t.Context(), `INSERT INTO accounts (id, balance, fence) VALUES (7, 110, $1)`, d.fresh)
		must(t, err)
		late := make(chan error, 1)
		go func() { late <- PutBalance(t.Context(), d.pool, 7, 101, d.stale) }()
		d.awaitBlocked()
		must(t, tx.Commit(t.Context()))
		wantStale(t, <-late)
		d.wantBalance(110)
	})
}
