package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// turnHold is for how long each holder has the key.
const turnHold = time.Millisecond

// printTurns compares who waits for one key with as many connections that wait in pg_advisory_lock, in alternating
// rounds.
func printTurns(rounds int, round time.Duration) error {
	server, err := pgtest.Start(pgtest.Options{Settings: map[string]string{"fsync": "on", "max_connections": "300"}})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	fmt.Printf("turns of a key that each holder has for %v: medians of %d alternating rounds of %v\n\n",
		turnHold, rounds, round)
	fmt.Println("| contenders | Lockers | pg_advisory_lock | pglock | pglock ÷ pg_advisory_lock |")
	fmt.Println("|---:|---:|---:|---:|---:|")
	for _, n := range []struct{ contenders, lockers int }{{2, 1}, {2, 2}, {10, 1}, {10, 10}, {100, 1}} {
		if err := compareTurns(server.URL(), n.contenders, n.lockers, rounds, round); err != nil {
			return err
		}
	}
	return nil
}

func compareTurns(url string, contenders, lockers, rounds int, round time.Duration) error {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	config.MaxConns = int32(contenders) //nolint:gosec // a hundred
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	var conns []*pgxpool.Conn
	for range contenders {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		conns = append(conns, conn)
	}
	ls := make([]locker.Locker, contenders) // of each contender
	for i := range ls {
		if i >= lockers {
			ls[i] = ls[i%lockers]
			continue
		}
		l := pglock.New(pool)
		defer func() { _ = l.Close() }()
		ls[i] = l
	}
	key := fmt.Sprint("turns/", contenders, "/", lockers)
	ours := onIdle(ls, func(ctx context.Context, l locker.Locker, _ string) error {
		lease, err := l.Lock(ctx, key)
		if err != nil {
			return err
		}
		time.Sleep(turnHold)
		return lease.Unlock()
	})
	raw, us, ratio, err := compare(contenders, rounds, round, advisoryTurn(conns, key), ours)
	if err != nil {
		return err
	}
	fmt.Printf("| %d | %d | %.0f/s | %.0f/s | %.2f |\n", contenders, lockers, raw, us, ratio)
	return nil
}

// advisoryTurn waits for a key on a connection of its own, and holds it for a while.
func advisoryTurn(conns []*pgxpool.Conn, key string) pair {
	k := pglock.Key(key)
	return onIdle(conns, func(ctx context.Context, c *pgxpool.Conn, _ string) error {
		if _, err := c.Exec(ctx, "SELECT pg_advisory_lock($1)", k); err != nil {
			return err
		}
		time.Sleep(turnHold)
		_, err := c.Exec(ctx, "SELECT pg_advisory_unlock($1)", k)
		return err
	})
}

// printLeaders has several Lockers lead on the same keys, of which each has one leader, and nothing changes hands: what
// that costs the server.
func printLeaders(watch time.Duration) error {
	const lockers, keys = 4, 40
	s, err := postgresSite()
	if err != nil {
		return err
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var leads atomic.Int64
	defer wg.Wait()
	defer cancel()
	for range lockers {
		l, err := s.open()
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		defer wg.Wait()
		defer cancel()
		for i := range keys {
			wg.Go(func() {
				_ = locker.Lead(ctx, l, "lead/"+strconv.Itoa(i), func(ctx context.Context, _ *locker.Lease) error {
					leads.Add(1)
					<-ctx.Done()
					return ctx.Err()
				})
			})
		}
	}
	time.Sleep(locker.DefaultTTL) // what is done once for each lock has been done
	before, err := s.readLeaders()
	if err != nil {
		return err
	}
	led, ownCPU, start := leads.Load(), cpuTime(), time.Now()
	time.Sleep(watch)
	after, err := s.readLeaders()
	if err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	fmt.Printf("%d Lockers lead on the same %d keys for %.0f s, and %d keys change hands: %.1f statements/s, "+
		"%.1f NOTIFY/s, %.0f connections, Postgres uses %.2f %% of a CPU, the Lockers %.2f %%\n",
		lockers, keys, took, leads.Load()-led,
		(after.requests-before.requests)/took, (after.notifies-before.notifies)/took, after.connections,
		100*(after.cpu-before.cpu).Seconds()/took, 100*(cpuTime()-ownCPU).Seconds()/took)
	return nil
}

// leadersReading is a reading, with how many notifications there were, and what the server's processes for Lockers have
// used.
type leadersReading struct {
	reading
	notifies float64
	cpu      time.Duration
}

func (s *site) readLeaders() (r leadersReading, err error) {
	if r.reading, err = s.read(); err != nil {
		return r, err
	}
	if r.notifies, err = s.notifies(); err != nil {
		return r, err
	}
	pids, err := s.pids()
	for _, pid := range pids {
		ran, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		var n time.Duration
		if readErr == nil {
			_, readErr = fmt.Sscan(string(ran), (*int64)(&n))
		}
		r.cpu, err = r.cpu+n, errors.Join(err, readErr)
	}
	return r, err
}

// backendPids returns the processes of a Postgres that Lockers are connected to.
func backendPids(ctx context.Context, admin *pgx.Conn) ([]int, error) {
	rows, err := admin.Query(ctx,
		`SELECT pid FROM pg_stat_activity WHERE datname = 'locks' AND backend_type = 'client backend'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}
