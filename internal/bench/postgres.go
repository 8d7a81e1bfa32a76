package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// benchPostgres compares pglock, which has tokens, on one connection, with pg_try_advisory_lock and pg_advisory_unlock,
// which have none, on a connection for each lock that is held.
func benchPostgres(rounds int, round time.Duration, hold int, holdFor time.Duration) error {
	server, err := pgtest.Start(pgtest.Options{Settings: map[string]string{"fsync": "on"}})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(server.URL())
	if err != nil {
		return err
	}
	config.MaxConns = 64
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	l := pglock.New(pool, locker.TTL(10*time.Second))
	defer func() { _ = l.Close() }()
	fmt.Printf("\nPostgres\n")
	var conns []*pgxpool.Conn
	for range config.MaxConns {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		conns = append(conns, conn)
	}
	var rows []row
	for _, n := range []struct{ goroutines, conns int }{{1, 1}, {4, 4}, {16, 16}, {64, 64}, {256, 16}, {256, 32}, {256, 64}} {
		rows = append(rows, row{n.goroutines, advisoryLock(conns[:n.conns]), fmt.Sprintf(" (%d)", n.conns)})
	}
	if err := printTable("pg_try_advisory_lock (connections)", "pglock", l, rounds, round, rows); err != nil {
		return err
	}
	if hold == 0 {
		return nil
	}
	return holdMany(l, hold, holdFor, "connections more", func() (n float64, err error) {
		err = conns[0].QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").Scan(&n)
		return n, err
	})
}

// advisoryLock is what people write by hand: a lock is held on a connection that nobody else uses meanwhile.
func advisoryLock(conns []*pgxpool.Conn) pair {
	return onIdle(conns, func(ctx context.Context, c *pgxpool.Conn, key string) error {
		var done bool
		k := pglock.Key(key)
		if err := c.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", k).Scan(&done); err != nil || !done {
			return fmt.Errorf("pg_try_advisory_lock: %v, %w", done, err)
		}
		return c.QueryRow(ctx, "SELECT pg_advisory_unlock($1)", k).Scan(&done)
	})
}

// onIdle returns a pair that is done with one of some things, such as connections, which nobody else uses meanwhile.
func onIdle[T any](all []T, do func(ctx context.Context, one T, key string) error) pair {
	idle := make(chan T, len(all))
	for _, one := range all {
		idle <- one
	}
	return func(ctx context.Context, key string) error {
		one := <-idle
		defer func() { idle <- one }()
		return do(ctx, one, key)
	}
}
