package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/soak/history"
	"github.com/lockerkit/locker/pglock"
)

// openPostgres makes the Locker of a worker, whose connections go through its proxy. Its sessions have its id.
func openPostgres(spec workerSpec, rng *rand.Rand, opts []locker.Option) (locker.Locker, func(), error) {
	pool, err := pgxpool.New(
		context.Background(),
		"postgres://postgres@"+spec.way(
			spec.Servers[0],
		)+"/postgres?sslmode=disable&connect_timeout=5&application_name=soak-"+spec.ID,
	)
	if err != nil {
		return nil, nil, err
	}
	return pglock.Config{WaitSessions: 2 + rng.IntN(7)}.New(pool, opts...), pool.Close, nil
}

type postgresStore struct {
	soak   *soak
	server *pgtest.Server
}

func newPostgresStore(s *soak) (*postgresStore, error) {
	env, err := clockEnv(s.dir, storePostgres)
	if err != nil {
		return nil, err
	}
	for _, variable := range env { // of what this process starts
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	server, err := pgtest.Start(pgtest.Options{})
	return &postgresStore{s, server}, err
}

func (p *postgresStore) addrs() []string     { return []string{p.server.Addr()} }
func (p *postgresStore) reachable() []string { return p.addrs() }
func (p *postgresStore) close() error        { return p.server.Close() }

// What ends sessions. The rival is granted the lock at the same moment.
const (
	pgTerminated = "session terminated"
	pgKilled     = "process of a session killed, which ends all sessions"
	pgCrashed    = "crashed, started with its data"
	pgStopped    = "stopped in order, started with its data"
)

// rules are what the documentation of pglock admits: a lock does not survive its session.
func (p *postgresStore) rules() history.Rules {
	ends := []string{linkReset, linkRefused, linkHole, linkReplies, linkRequests}
	for _, what := range []string{pgTerminated, pgKilled, pgCrashed, pgStopped} {
		ends = append(ends, "server: "+what)
	}
	return history.Rules{Gaps: []history.Gap{
		{
			Name: "a session was ended, and its client could not be reached", Events: ends, OfHolder: true,
			While: []string{linkRefused, linkHole, linkHang, linkReplies, linkRequests, linkSlow, history.Frozen},
		},
		{
			Name: "a session was ended, and the rival was faster than the news", Events: ends, OfHolder: true,
			Longest: 50 * time.Millisecond,
		},
	}}
}

// cannotConnectNow is the code of a server that starts, recovers or stops.
const cannotConnectNow = "57P03"

// connected calls do with a connection to the server, which may be starting.
func (p *postgresStore) connected(do func(context.Context, *pgx.Conn) error) error {
	const patience = 30 * time.Second // for a server that recovers, on a busy machine
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.server.URL())
	for starting := (*pgconn.PgError)(nil); errors.As(err, &starting) && starting.Code == cannotConnectNow; {
		select {
		case <-time.After(patience / 300):
			conn, err = pgx.Connect(ctx, p.server.URL())
		case <-ctx.Done():
			return err
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return do(ctx, conn)
}

// query runs a query, and calls each for each row.
func (p *postgresStore) query(sql string, args []any, into []any, each func()) error {
	return p.connected(func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, into, func() error { each(); return nil })
		return err
	})
}

func (p *postgresStore) exec(sql string) error {
	return p.connected(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

func (p *postgresStore) healthy(context.Context) error { return p.exec("SELECT 1") }

// leftovers are locks and sessions of processes that have ended.
func (p *postgresStore) leftovers() (left []string, err error) {
	var what string
	err = p.query(`SELECT 'session of ' || application_name FROM pg_stat_activity WHERE application_name LIKE 'soak-%'
		UNION ALL SELECT 'advisory lock of process ' || pid FROM pg_locks WHERE locktype = 'advisory'`,
		nil, []any{&what}, func() { left = append(left, what) })
	return left, err
}

// session is one of a worker's.
type session struct {
	pid    int
	worker string
}

// sessions returns up to n sessions of workers, by chance.
func (p *postgresStore) sessions(n int) (some []session, err error) {
	var s session
	err = p.query(`SELECT pid, substr(application_name, 6) FROM pg_stat_activity WHERE application_name LIKE 'soak-%'
		ORDER BY random() LIMIT $1`, []any{n}, []any{&s.pid, &s.worker}, func() { some = append(some, s) })
	if err == nil && len(some) == 0 {
		err = errNotNow
	}
	return some, err
}

func (p *postgresStore) faults() []fault {
	longest := longestTTL(storePostgres)
	statement := func(what, sql string) fault {
		return fault{2, what, 0, 0, func(*rand.Rand, *history.Event) (func() error, error) {
			_ = p.exec(sql) // a session that is frozen may be in its way
			return nil, nil
		}}
	}
	away := func(what string, end func() error) fault {
		return fault{2, what, longest / 2, 0, func(*rand.Rand, *history.Event) (func() error, error) {
			return p.server.Restart, end()
		}}
	}
	return []fault{
		statement("waits cancelled", `SELECT pg_cancel_backend(pid) FROM pg_stat_activity
			WHERE application_name LIKE 'soak-%' AND wait_event = 'advisory'`),
		statement("tables rewritten", "VACUUM FULL locker.token_limit, locker.token_ceiling"),
		statement("tables locked", `DO $$ BEGIN LOCK TABLE locker.token_limit, locker.token_ceiling;
			PERFORM pg_sleep(0.5); END $$`),
		{6, pgTerminated, 0, 0, p.terminate},
		{4, "session frozen", 2 * longest, 0, p.freezeSession},
		{4, "frozen", 2 * longest, 0, p.freeze},
		{1, pgKilled, 0, 0, p.killSession},
		away(pgCrashed, func() error { p.server.Crash(); return nil }),
		away(pgStopped, p.server.Stop),
		{2, "clock set back", 0, 0, p.setClock},
	}
}

// terminate ends sessions of workers, as an administrator may.
func (p *postgresStore) terminate(rng *rand.Rand, e *history.Event) (func() error, error) {
	sessions, err := p.sessions(1 + rng.IntN(5))
	for _, s := range sessions {
		ended := p.soak.began("server: "+pgTerminated, s.worker, "")
		err = errors.Join(err, p.exec("SELECT pg_terminate_backend("+strconv.Itoa(s.pid)+")"))
		ended()
	}
	e.What = "server: sessions terminated by an administrator"
	return nil, err
}

func signalAll(sig syscall.Signal, pids ...int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// freezeSession freezes the server's process of one session.
func (p *postgresStore) freezeSession(_ *rand.Rand, e *history.Event) (func() error, error) {
	sessions, err := p.sessions(1)
	if err != nil {
		return nil, err
	}
	e.Process = sessions[0].worker
	signalAll(syscall.SIGSTOP, sessions[0].pid)
	return func() error { signalAll(syscall.SIGCONT, sessions[0].pid); return nil }, nil
}

// killSession kills the server's process of one session. The server then ends all sessions, and recovers.
func (p *postgresStore) killSession(*rand.Rand, *history.Event) (func() error, error) {
	sessions, err := p.sessions(1)
	if err != nil {
		return nil, err
	}
	signalAll(syscall.SIGKILL, sessions[0].pid)
	return p.soak.await, nil
}

// freeze freezes all of the server's processes.
func (p *postgresStore) freeze(*rand.Rand, *history.Event) (func() error, error) {
	var pid int
	err := p.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'", nil, []any{&pid}, func() {})
	if err != nil {
		return nil, err
	}
	server := parentOf(pid)
	if server <= 1 {
		return nil, fmt.Errorf("process %d of Postgres has no parent", pid)
	}
	all := []int{server}
	signalAll(syscall.SIGSTOP, server) // first, so that it has no more children
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		if child, _ := strconv.Atoi(filepath.Base(dir)); parentOf(child) == server {
			all = append(all, child)
		}
	}
	signalAll(syscall.SIGSTOP, all...)
	return func() error { signalAll(syscall.SIGCONT, all...); return nil }, nil
}

// parentOf returns the parent of a process, or 0 if it has ended.
func parentOf(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	var state string
	var parent int
	_, rest, _ := strings.Cut(string(text), ") ") // behind the name of the program
	_, _ = fmt.Sscan(rest, &state, &parent)
	return parent
}

// setClock sets the server's clock back.
func (p *postgresStore) setClock(rng *rand.Rand, _ *history.Event) (func() error, error) {
	return nil, p.soak.setClock(storePostgres, rng)
}
