package pglock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lockerkit/locker/internal/backends"
)

const (
	// connectWithin bounds the making of a connection, with everything that has to be set on it.
	connectWithin = 10 * time.Second

	// oldest is the first version of Postgres that has idle_session_timeout and client_connection_check_interval.
	oldest = 14

	// checkEvery is how often a server looks whether somebody who waits in line is still there.
	checkEvery = time.Second
)

// connector makes sessions.
type connector struct {
	config        *pgx.ConnConfig
	beforeConnect func(context.Context, *pgx.ConnConfig) error // of the pool; may be nil
	afterConnect  func(context.Context, *pgx.Conn) error       // likewise
	namespace     string
	create        bool // the tables, if they are missing
	sql           statements
	id            int32       // of the Locker, with which its sessions are marked
	reached       atomic.Bool // Postgres has answered there
}

// purpose is what a session is for.
type purpose bool

const (
	toLock purpose = true  // to have locks, or to wait for them
	toLook purpose = false // for all else; it takes no permission, and no table has to be there
)

// connect makes a connection on which nothing remains but to send requests.
func (c *connector) connect(ctx context.Context, timeout time.Duration, why purpose) (server, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	config := c.config.Copy()
	if c.beforeConnect != nil {
		if err := c.beforeConnect(ctx, config); err != nil {
			return server{}, err
		}
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "locker"
	}
	conn, err := c.dial(ctx, config)
	if err != nil {
		return server{}, explain(err)
	}
	s := server{PgConn: conn.PgConn()}
	if err = c.prepare(ctx, conn, timeout, why, &s); err != nil {
		// Not a polite end, for which the server would have to answer.
		_ = s.Conn().Close()
		return server{}, explain(err)
	}
	keepAlive(s.Conn())
	return s, nil
}

// dial makes a connection. As long as Postgres has never answered, it finds out whether something else is there.
func (c *connector) dial(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	if c.reached.Load() {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return nil, &oneLine{err}
		}
		return conn, nil
	}
	const slow = 500 * time.Millisecond
	start, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := sync.OnceValue(func() error { return notPostgres(ctx, config) })
	suspicion := time.AfterFunc(slow, func() { // many servers wait for the end of a line, which does not come
		if err := look(); err != nil {
			cancel(err)
		}
	})
	defer suspicion.Stop()
	conn, err := pgx.ConnectConfig(start, config)
	switch {
	case err == nil:
		c.reached.Store(true)
		return conn, nil
	case errors.As(err, new(*pgconn.PgError)):
		c.reached.Store(true)
	case start.Err() != nil && ctx.Err() == nil:
		return nil, context.Cause(start)
	case !isDialError(err):
		if other := look(); other != nil {
			return nil, other
		}
	}
	return nil, &oneLine{err}
}

// isDialError reports whether there was no connection.
func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// notPostgres returns an error if there is another kind of server at the only address of config.
func notPostgres(ctx context.Context, config *pgx.ConnConfig) error {
	for _, other := range config.Fallbacks { // with and without TLS, there are two for one address
		if other.Host != config.Host || other.Port != config.Port {
			return nil
		}
	}
	network, addr := pgconn.NetworkAddress(config.Host, config.Port)
	kind := backends.Speaks(ctx, func(ctx context.Context) (net.Conn, error) {
		return config.DialFunc(ctx, network, addr)
	})
	if kind == "" || kind == "Postgres" {
		return nil
	}
	return fmt.Errorf("%w: %s is %s; check the host and the port of the connection string",
		errNotOurs, addr, article(kind))
}

// article returns the kind of a server with an article.
func article(kind string) string {
	if strings.HasPrefix(kind, "an ") {
		return kind
	}
	return "a " + kind + " server"
}

// server is a process of the server, and the connection to it.
type server struct {
	*pgconn.PgConn
	started string // when, as the server writes it: with the process id, it tells it from all others
	limit   uint64 // the greatest token that may be used
	mark    string // puts a mark on it; "" if it is not for locks
}

// prepare makes a new connection fit to carry locks, or says why it cannot be.
func (c *connector) prepare(
	ctx context.Context, conn *pgx.Conn, timeout time.Duration, why purpose, s *server,
) (err error) {
	if c.afterConnect != nil {
		if err := c.afterConnect(ctx, conn); err != nil {
			return err
		}
	}
	pg := conn.PgConn()
	if pg.TxStatus() != 'I' {
		return fmt.Errorf("%w: AfterConnect has left a transaction open, in which no idle_session_timeout counts",
			ErrSettings)
	}
	if err := checkVersion(pg.ParameterStatus("server_version")); err != nil {
		return err
	}
	if s.started, err = checkServer(ctx, pg); err != nil { // before anything is set, which a pooler would hand to others
		return err
	}
	if err := applySettings(ctx, pg, timeout); err != nil {
		return err
	}
	if why == toLook {
		return pg.SyncConn(ctx)
	}
	s.mark = markSQL(lockerMark, c.id)
	err = pg.Exec(ctx, s.mark+c.sql.prepare).Close()
	if isCode(err, "42P01", "3F000") { // undefined table, undefined schema
		if !c.create {
			return fmt.Errorf("%w: %w", ErrNoTables, err)
		}
		if err = c.createTokens(ctx, pg); err == nil {
			err = pg.Exec(ctx, c.sql.prepare).Close()
		}
	}
	if err == nil {
		s.limit, err = c.limit(ctx, pg)
	}
	if err != nil {
		return err
	}
	return pg.SyncConn(ctx)
}

// limit returns the greatest token that may be used, which it raises if there is not much room below it.
func (c *connector) limit(ctx context.Context, pg *pgconn.PgConn) (uint64, error) {
	for raised := false; ; raised = true {
		row, err := queryRow(ctx, pg, c.sql.room, 2)
		if err != nil {
			return 0, err
		}
		limit := parseToken(row[0])
		if room, _ := strconv.ParseInt(row[1], 10, 64); limit > 0 && room >= leastRoom {
			return limit, nil
		}
		if raised {
			return 0, errNoTokens
		}
		if err := c.raise(ctx, pg); err != nil {
			return 0, err
		}
	}
}

// raise raises the limit. If it takes longer than ctx lasts, the connection is closed, and no more: pgx would cancel
// the statement, upon which a server that waits for its standby makes the limit known to all without it.
func (c *connector) raise(ctx context.Context, pg *pgconn.PgConn) error {
	defer context.AfterFunc(ctx, func() { _ = pg.Conn().Close() })()
	front := pg.Frontend()
	front.Send(&pgproto3.Query{String: c.sql.raise})
	err := front.Flush()
	for err == nil {
		var msg pgproto3.BackendMessage
		msg, err = front.Receive()
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(msg) // after which the connection is not used any more
		case *pgproto3.ReadyForQuery:
			return nil
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// settingsSQL sets what a role, a database or a connection string might have set otherwise.
const settingsSQL = `
SET search_path = pg_catalog;
SET standard_conforming_strings = on;
SET exit_on_error = off;
SET client_min_messages = error;
SET default_transaction_read_only = off;
SET default_transaction_deferrable = off;
SET default_transaction_isolation = 'read committed';
SET transaction_isolation = 'read committed';
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET plan_cache_mode = force_generic_plan;
SET jit = off;
SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('transaction_timeout', true) IS NOT NULL;
SET synchronous_commit = off;
`

// timeoutSQL makes the server end the session when nothing has come for so long, and not before: a server that gave up
// a dead connection sooner would free locks that their holder, who is cut off, still trusts.
func timeoutSQL(d time.Duration) string {
	const longestKeepalive = 32767 // seconds, on Linux; the user timeout counts beyond it
	later := d + time.Second
	return fmt.Sprintf(
		"SET idle_session_timeout = %d;SET tcp_user_timeout = %d;SET tcp_keepalives_idle = %d;"+
			"SET tcp_keepalives_interval = 1;",
		d.Milliseconds(),
		min(later.Milliseconds(), maxTimeout.Milliseconds()),
		min(int64(later/time.Second)+1, longestKeepalive),
	)
}

// applySettings makes the settings, and checks that the one which matters most has been made.
func applySettings(ctx context.Context, pg *pgconn.PgConn, timeout time.Duration) error {
	if err := pg.Exec(ctx, settingsSQL+timeoutSQL(timeout)).Close(); err != nil {
		return because(ErrSettings, err)
	}
	// Some platforms cannot do this one, which only helps to find dead waiters sooner.
	_ = pg.Exec(ctx, fmt.Sprintf("SET client_connection_check_interval = %d", checkEvery.Milliseconds())).Close()
	row, err := queryRow(ctx, pg, "SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout'", 1)
	if err != nil {
		return err
	}
	if row[0] != strconv.FormatInt(timeout.Milliseconds(), 10) {
		return fmt.Errorf("%w: idle_session_timeout was set to %d ms, but is %s ms", ErrSettings,
			timeout.Milliseconds(), row[0])
	}
	return nil
}

// checkServer refuses connections to something that is not fit to carry locks. It returns when the process was started.
func checkServer(ctx context.Context, pg *pgconn.PgConn) (started string, err error) {
	row, err := queryRow(ctx, pg, `SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),
		(SELECT pg_catalog.to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())`, 3)
	if err != nil {
		return "", err
	}
	// A pooler has to tell its clients a process id of its own making, so that it can tell whom they want to cancel.
	if row[0] != strconv.FormatUint(uint64(pg.PID()), 10) {
		return "", fmt.Errorf(
			"%w: it was said to belong to process %d of the server, but statements are executed by process %s",
			ErrPooler, pg.PID(), row[0])
	}
	if row[1] == "t" {
		return "", ErrStandby
	}
	return row[2], nil
}

// queryRow returns the one row, of so many columns, that a query has to return.
func queryRow(ctx context.Context, pg *pgconn.PgConn, sql string, columns int) ([]string, error) {
	results, err := pg.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != columns {
		return nil, fmt.Errorf("%w: unexpected result of %s", errMismatch, sql)
	}
	row := make([]string, columns)
	for i, v := range results[0].Rows[0] {
		row[i] = string(v)
	}
	return row, nil
}

// checkVersion refuses servers that lack what a lease needs.
func checkVersion(version string) error {
	digits := version
	if i := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = version[:i]
	}
	if major, err := strconv.Atoi(digits); err != nil || major < oldest {
		return fmt.Errorf("%w: the server says that its version is %q", ErrVersion, version)
	}
	return nil
}

// createTokens creates the tables, one process at a time: CREATE ... IF NOT EXISTS is not safe against another that
// does the same.
func (c *connector) createTokens(ctx context.Context, pg *pgconn.PgConn) error {
	// The namespace may be there, and the role allowed to create tables in it, but not namespaces.
	row, err := queryRow(ctx, pg, "SELECT to_regnamespace("+literal(pgx.Identifier{c.namespace}.Sanitize())+") IS NULL",
		1)
	if err != nil {
		return err
	}
	create := c.sql.tokens
	if row[0] == "t" {
		create = c.sql.namespace + create
	}
	const oneByOne = "SELECT pg_advisory_xact_lock(1819239275, 1701147252);" // "lock", "er"
	err = pg.Exec(ctx, oneByOne+create).Close()
	if isCode(err, "23505", "42P06", "42P07", "42710") { // somebody who creates them by hand was faster
		err = pg.Exec(ctx, oneByOne+create).Close()
	}
	if err != nil {
		return because(ErrNoTables, err)
	}
	return nil
}

// because gives an error of a statement a meaning, if it was the server that refused it, and not for a reason that
// passes.
func because(meaning, err error) error {
	pg := (*pgconn.PgError)(nil)
	if errors.As(err, &pg) && isOfStatement(pg) && !slices.Contains(passing, pg.Code[:min(2, len(pg.Code))]) {
		return fmt.Errorf("%w: %w", meaning, err)
	}
	return err
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// keepAlive makes the kernel ask whether the other end is still there, for the sake of sessions that wait in line, and
// have nothing to send.
func keepAlive(conn net.Conn) {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = c.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(
			net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3},
		)
	}
}

// isCode reports whether err is an error of the server with one of the codes.
func isCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	for _, code := range codes {
		if pg.Code == code {
			return true
		}
	}
	return false
}
