package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/cmd/locker/internal/doctor"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/testserver"
	"github.com/lockerkit/locker/pglock"
)

const onPostgres = kind("Postgres")

// execute runs statements, on a connection that lives as long as the test.
func execute(t *testing.T, url string, statements ...string) *pgconn.PgConn {
	t.Helper()
	conn := must(pgconn.Connect(t.Context(), url))(t)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, sql := range statements {
		if err := conn.Exec(t.Context(), sql).Close(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	return conn
}

// postgresServer starts a server with which all is well, but for the settings: name, value, and so on.
func postgresServer(t *testing.T, settings ...string) *pgtest.Server {
	t.Helper()
	all := make(map[string]string)
	for i := 0; i < len(settings); i += 2 {
		all[settings[i]] = settings[i+1]
	}
	server := pgtest.New(t, pgtest.Options{Settings: all})
	execute(t, server.URL(), pglock.SchemaSQL(pglock.DefaultNamespace))
	return server
}

// as returns the URL of a server for another role.
func as(t *testing.T, server *pgtest.Server, role string) string {
	t.Helper()
	u := must(url.Parse(server.URL()))(t)
	u.User = url.UserPassword(role, secret)
	return u.String()
}

func TestPostgresHealthy(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	onPostgres.examine(t, patient(server.URL()), nil)
	o := patient(fmt.Sprintf("host=127.0.0.1 port=%s user=postgres dbname=postgres pool_max_conns=3",
		strings.TrimPrefix(server.Addr(), "127.0.0.1:")))
	onPostgres.examine(t, o, nil)
}

// TestPostgresFresh has a database in which nobody has locked yet. Nothing may be created.
func TestPostgresFresh(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	onPostgres.examine(t, patient(server.URL()), map[string]want{"lock": {doctor.Unknown, "pglock.SchemaSQL"}})
	execute(t, server.URL(), "CREATE SCHEMA locker") // fails if there is one
}

func TestPostgresOldVersion(t *testing.T) {
	t.Parallel()
	version := regexp.MustCompile(`server_version\x00\d\d`)
	addr := lying(t, postgresServer(t).Addr(), func(said []byte) []byte {
		return version.ReplaceAll(said, []byte("server_version\x0013"))
	})
	onPostgres.examine(t, patient("postgres://postgres@"+addr+"/postgres?sslmode=disable"), map[string]want{
		"version": {doctor.Fail, "Postgres 14 or later"}, "lock": {doctor.Fail, "First mend"},
	})
}

func TestPostgresPooler(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	for _, mode := range []string{"session", "transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			onPostgres.examine(t, patient(pgtest.NewBouncer(t, server, mode).URL()), map[string]want{
				"pooler": {doctor.Fail, "Connect to the server itself"}, "lock": {doctor.Fail, "First mend"},
			})
		})
	}
}

func TestPostgresStandby(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	standby := server.Standby(t, pgtest.Options{})
	if err := standby.CatchUp(); err != nil {
		t.Fatal(err)
	}
	onPostgres.examine(t, patient(standby.URL()), map[string]want{
		"role": {doctor.Fail, "target_session_attrs=read-write"}, "lock": {doctor.Fail, "First mend"},
	})
	onPostgres.examine(t, patient(server.URL()), nil) // it is asynchronous, as most are
	if err := server.SetSynchronous(standby); err != nil {
		t.Fatal(err)
	}
	onPostgres.examine(t, patient(server.URL()), nil)
	execute(t, server.URL(), "CREATE ROLE app LOGIN PASSWORD '"+secret+"'", grantAll("app"))
	onPostgres.examine(t, patient(as(t, server, "app")), map[string]want{
		"synchronous standby": {doctor.Unknown, "pg_read_all_stats"},
	})
	standby.Crash()
	admin := execute(t, server.URL())
	err := testserver.Poll(t.Context(), time.Minute, func(ctx context.Context) error { // it does not tell
		results, err := admin.Exec(ctx, "SELECT pid FROM pg_stat_replication").ReadAll()
		if err == nil && len(results[0].Rows) > 0 {
			err = errors.New("the standby is still connected")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	onPostgres.examine(t, patient(server.URL()), map[string]want{
		"synchronous standby": {doctor.Fail, "Bring a standby back"}, "lock": consequence,
	})
}

// grants are what docs/operating.md lists, by the check that misses them.
var grants = []struct {
	check, privilege, on string
	lacking              doctor.Status
}{
	{"permission on locker", "USAGE", "SCHEMA locker", doctor.Fail},
	{"permission on locker.token", "SELECT", "SEQUENCE locker.token", doctor.Fail},
	{"permission on locker.token", "UPDATE", "SEQUENCE locker.token", doctor.Fail},
	{"permission on locker.token_ceiling", "SELECT", "TABLE locker.token_ceiling", doctor.Fail},
	{"permission on locker.token_ceiling", "UPDATE", "TABLE locker.token_ceiling", doctor.Fail},
	{"permission on locker.token_limit", "SELECT", "TABLE locker.token_limit", doctor.Fail},
	{"permission on locker.token_limit", "INSERT", "TABLE locker.token_limit", doctor.Fail},
	{"permission on locker.token_limit", "DELETE", "TABLE locker.token_limit", doctor.Fail},
	{"permission on locker.holder", "SELECT", "TABLE locker.holder", doctor.Warn},
	{"permission on locker.holder", "INSERT", "TABLE locker.holder", doctor.Warn},
	{"permission on locker.holder", "DELETE", "TABLE locker.holder", doctor.Warn},
	{"permission on locker.revocation", "SELECT", "TABLE locker.revocation", doctor.Warn},
	{"permission on locker.revocation", "DELETE", "TABLE locker.revocation", doctor.Warn},
}

// grantAll grants them all.
func grantAll(role string) string {
	var sql strings.Builder
	for _, g := range grants {
		fmt.Fprintf(&sql, "GRANT %s ON %s TO %s;", g.privilege, g.on, role)
	}
	return sql.String()
}

func TestPostgresPermissionsOneByOne(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	admin := execute(t, server.URL(), "CREATE ROLE app LOGIN PASSWORD '"+secret+"'", grantAll("app"))
	onPostgres.examine(t, patient(as(t, server, "app")), nil)
	for _, g := range grants {
		t.Run(g.privilege+" ON "+g.on, func(t *testing.T) {
			revoke := fmt.Sprintf("REVOKE %s ON %s FROM app", g.privilege, g.on)
			if err := admin.Exec(t.Context(), revoke).Close(); err != nil {
				t.Fatal(err)
			}
			// Without some of them, locks are had for as long as there are tokens.
			do := fmt.Sprintf(`GRANT %s ON %s TO "app";`, g.privilege, g.on)
			onPostgres.examine(t, patient(as(t, server, "app")), map[string]want{
				g.check: {g.lacking, do}, "lock": consequence,
			})
			if err := admin.Exec(t.Context(), do).Close(); err != nil { // the remedy is one
				t.Fatal(err)
			}
			onPostgres.examine(t, patient(as(t, server, "app")), nil)
		})
	}
}

func TestPostgresWithoutTables(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	execute(t, server.URL(), "CREATE ROLE app LOGIN PASSWORD '"+secret+"'")
	wants := map[string]want{"tables": {doctor.Fail, "pglock.SchemaSQL"}, "lock": {doctor.Fail, "First mend"}}
	onPostgres.examine(t, patient(as(t, server, "app")), wants)
	execute(t, server.URL(), pglock.SchemaSQL(pglock.DefaultNamespace), "DROP TABLE locker.token_limit", grantSome)
	onPostgres.examine(t, patient(as(t, server, "app")), wants)
}

const grantSome = `GRANT USAGE ON SCHEMA locker TO app; GRANT SELECT, UPDATE ON SEQUENCE locker.token TO app;
	GRANT SELECT, UPDATE ON locker.token_ceiling TO app; GRANT SELECT, INSERT, DELETE ON locker.holder TO app;
	GRANT SELECT, DELETE ON locker.revocation TO app`

func TestPostgresLockTable(t *testing.T) {
	t.Parallel()
	server := postgresServer(t, "max_locks_per_transaction", "10", "max_connections", "50")
	onPostgres.examine(t, patient(server.URL()), map[string]want{
		"lock table": {doctor.Warn, "max_locks_per_transaction"},
	})
	execute(t, server.URL(), "SELECT count(pg_advisory_lock(i)) FROM generate_series(1, 470) AS i")
	onPostgres.examine(t, patient(server.URL()), map[string]want{
		"lock table": {doctor.Fail, "max_locks_per_transaction"},
	})
}

func TestPostgresLockTableHalfFull(t *testing.T) {
	t.Parallel()
	server := postgresServer(t, "max_connections", "100")
	execute(t, server.URL(), "SELECT count(pg_advisory_lock(i)) FROM generate_series(1, 3300) AS i")
	onPostgres.examine(t, patient(server.URL()), map[string]want{
		"lock table": {doctor.Warn, "max_locks_per_transaction"},
	})
}

func TestPostgresConnections(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	admin := execute(t, server.URL(), "CREATE ROLE app LOGIN PASSWORD '"+secret+"'", grantAll("app"))
	for _, tc := range []struct {
		of     string
		limit  int
		status doctor.Status
		do     string
	}{
		{"ROLE app", 1, doctor.Fail, "the limit of the role"},
		{"ROLE app", 10, doctor.Warn, "the limit of the role"},
		{"DATABASE postgres", 12, doctor.Warn, "the limit of the database"},
	} {
		limit := func(n int) {
			sql := fmt.Sprintf("ALTER %s CONNECTION LIMIT %d", tc.of, n)
			if err := admin.Exec(t.Context(), sql).Close(); err != nil {
				t.Fatal(err)
			}
		}
		limit(tc.limit)
		onPostgres.examine(t, patient(as(t, server, "app")), map[string]want{"connections": {tc.status, tc.do}})
		limit(-1)
	}
	small := postgresServer(t, "max_connections", "15", "max_locks_per_transaction", "256", "max_wal_senders", "0")
	onPostgres.examine(t, patient(small.URL()), map[string]want{"connections": {doctor.Warn, "max_connections"}})
}

// TestPostgresSettings has those that are overridden by the sessions of locks. A check itself takes no second.
func TestPostgresSettings(t *testing.T) {
	t.Parallel()
	server := postgresServer(t, "idle_session_timeout", "1min", "statement_timeout", "1min", "lock_timeout", "1s",
		"log_lock_waits", "on")
	for _, r := range onPostgres.examine(t, patient(server.URL()), nil) {
		if r.Check == "settings" && !strings.Contains(r.Found, "1min") {
			t.Error(line(r))
		}
	}
}

func TestPostgresWithoutPLpgSQL(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	execute(t, server.URL(), "DROP EXTENSION plpgsql")
	onPostgres.examine(t, patient(server.URL()), map[string]want{"PL/pgSQL": {doctor.Warn, "CREATE EXTENSION"}})
}

func TestPostgresClock(t *testing.T) {
	t.Parallel()
	micros := regexp.MustCompile(`\x00\x00\x00\x10[12]\d{15}`) // 16 digits: also the tokens, which do no harm
	addr := lying(t, postgresServer(t).Addr(), func(said []byte) []byte {
		return micros.ReplaceAllFunc(said, func(value []byte) []byte {
			n, _ := strconv.ParseInt(string(value[4:]), 10, 64)
			return fmt.Appendf(value[:4], "%d", n-time.Hour.Microseconds())
		})
	})
	onPostgres.examine(t, patient("postgres://postgres@"+addr+"/postgres?sslmode=disable"), map[string]want{
		"clock": {doctor.Warn, "NTP"},
	})
}

func TestPostgresFarAway(t *testing.T) {
	t.Parallel()
	proxy := behind(t, postgresServer(t).Addr())
	proxy.Set(faultproxy.Delay(50 * time.Millisecond))
	o := patient("postgres://postgres@" + proxy.Addr() + "/postgres?sslmode=disable")
	o.TTL = 200 * time.Millisecond
	onPostgres.examine(t, o, map[string]want{"round trip": {doctor.Fail, "longer TTL"}, "lock": consequence})
}

func TestPostgresUnreachable(t *testing.T) {
	t.Parallel()
	server := postgresServer(t)
	execute(t, server.URL(), "CREATE ROLE app LOGIN PASSWORD 'another'")
	hanging := behind(t, server.Addr())
	hanging.Set(faultproxy.Hang())
	urlOf := func(addr string) string { return "postgres://app:" + secret + "@" + addr + "/postgres" }
	for name, tc := range map[string]struct{ url, do string }{
		"nobody":         {urlOf(strangers.Nobody(t)), "Is the server running?"},
		"hangs":          {urlOf(hanging.Addr()), "Is the server running?"},
		"wrong password": {as(t, server, "app"), "Correct role and password"},
		"no database":    {strings.Replace(server.URL(), "/postgres?", "/none?", 1), "Create the database"},
		"Redis":          {urlOf(strangers.Redis(t)), "Is it the right address?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := patient(tc.url)
			switch name {
			case "hangs":
				o = hasty(tc.url)
			case "Redis": // waits for the end of a line
				o.Within = 20 * time.Second
			}
			onPostgres.onlyConnect(t, o, tc.do)
		})
	}
}
