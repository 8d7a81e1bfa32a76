package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/pglock"
)

// postgresServer is a session on a server. It does not prepare or set anything: a pooler would hand that to others.
type postgresServer struct {
	*pgconn.PgConn
	ttl time.Duration
}

// Postgres checks the server of a URL or connection string of package pglock.
func Postgres(ctx context.Context, o Options) ([]Result, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.Within)
	defer cancel()
	lock, err := tryLock(ctx, o, pglock.Config{NoCreate: true}.Open) // a check creates no tables
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(o.URL) // which knows the parameters of pools, too, and was fine for Open
	if err != nil {
		return nil, fmt.Errorf("%w: connection string", locker.ErrInvalidOption)
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "locker doctor"
	}
	conn, err := connectPostgres(ctx, o, &config.ConnConfig.Config)
	if err != nil {
		if lock.err != nil { // package pglock says better what it means
			err = lock.err
		}
		return []Result{failure(err).result("connect", "", whyConnect)}, nil
	}
	s := &postgresServer{PgConn: conn, ttl: o.TTL}
	defer finish(ctx, func() error { return conn.Close(ctx) })
	f := ok("%s answers", conn.Conn().RemoteAddr())
	results := append([]Result{f.result("connect", "", whyConnect)}, look(ctx, o, "", s, postgresChecks)...)
	if errors.Is(lock.err, pglock.ErrNoTables) && worst(results) != Fail {
		f := unknown("not tried, as that would create the tables").
			remedy("Run a program that locks, or apply pglock.SchemaSQL; then check again.")
		return append(results, f.result("lock", "", whyLock)), nil
	}
	return append(results, lock.result(results)), nil
}

// connectPostgres makes a connection. The one that was there for a moment, to lock a key, may still count.
func connectPostgres(ctx context.Context, o Options, config *pgconn.Config) (conn *pgconn.PgConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.connectWithin())
	defer cancel()
	for {
		conn, err = pgconn.ConnectConfig(ctx, config)
		var said *pgconn.PgError
		if !errors.As(err, &said) || said.Code != "53300" { // too_many_connections
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// row returns the one row of a query, in which NULL is "".
func (s *postgresServer) row(ctx context.Context, sql string) ([]string, error) {
	results, err := s.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return nil, fmt.Errorf("unexpected result of %s", sql)
	}
	row := make([]string, len(results[0].Rows[0]))
	for i, v := range results[0].Rows[0] {
		row[i] = string(v)
	}
	return row, nil
}

// asking makes a check of a query that returns one row.
func asking(sql string, judge func(s *postgresServer, row []string) finding,
) func(context.Context, *postgresServer) finding {
	return func(ctx context.Context, s *postgresServer) finding {
		row, err := s.row(ctx, sql)
		if err != nil {
			return unknown("%v", err).remedy("%s", remedyOfQuery(err))
		}
		return judge(s, row)
	}
}

func remedyOfQuery(err error) string {
	var said *pgconn.PgError
	if errors.As(err, &said) && said.Code == "42501" { // insufficient_privilege
		return "Grant what the server says is missing for the time of the check, or use another role for it."
	}
	return "Check again when the server answers."
}

// whyTokens is for what fencing tokens are minted from.
const whyTokens = "Each lock has a fencing token, which comes from a sequence. Two tables see that it never goes back."

var postgresChecks = []check[*postgresServer]{
	{
		name: "version",
		why:  "Postgres ends idle sessions by itself since version 14: that is the end of a lease.",
		look: lookAtPostgresVersion,
	},
	{
		name: "pooler",
		why:  "Locks belong to sessions of the server, and a pooler hands each transaction to another one.",
		look: asking("SELECT pg_catalog.pg_backend_pid()", judgeProcess),
	},
	{
		name: "role",
		why:  "Locks on a standby exclude nobody on the primary.",
		look: asking("SELECT pg_catalog.pg_is_in_recovery()", judgeRole),
	},
	{
		name: "tables",
		why:  whyTokens,
		look: asking(`SELECT count(*), pg_catalog.has_database_privilege(current_database(), 'CREATE'),
			pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('locker'), 'CREATE'), current_user
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE nspname = 'locker' AND relname IN ('token', 'token_ceiling', 'token_limit')`, judgeTables),
	},
	granted("schema", "locker", "USAGE"),
	granted("sequence", "locker.token", "SELECT", "UPDATE"),
	granted("table", "locker.token_ceiling", "SELECT", "UPDATE"),
	granted("table", "locker.token_limit", "SELECT", "INSERT", "DELETE"),
	optional(granted("table", "locker.holder", "SELECT", "INSERT", "DELETE"), whySeen),
	optional(granted("table", "locker.revocation", "SELECT", "DELETE"), whyTold),
	{
		name: "lock table",
		why: "Its size is fixed when the server starts. " +
			"When it is full, nobody on the server gets a lock, of any kind.",
		// The table is one of objects, however many have locked them. Those on the fast path are elsewhere.
		look: asking(`SELECT current_setting('max_locks_per_transaction')::int *
			(current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int),
			(SELECT count(DISTINCT (locktype, database, relation, page, tuple, virtualxid, transactionid::text,
				classid, objid, objsubid)) FROM pg_locks WHERE NOT fastpath)`, judgeLockTable),
	},
	{
		name: "connections",
		why: "A program needs up to 14: one for each TTL (four at most), 8 to wait, one for hints, one to inspect. " +
			"With less, some of its waiters poll.",
		look: asking(`SELECT
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
			(SELECT sum(numbackends) FROM pg_stat_database),
			datconnlimit, (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid),
			rolconnlimit, (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid), rolsuper
			FROM pg_database d, pg_roles r WHERE datname = current_database() AND rolname = session_user`,
			judgeConnections),
	},
	{
		name: "synchronous standby",
		why: "A commit waits for a synchronous standby. " +
			"While that is away, the fencing tokens that are left are used up, and no more can be had.",
		look: asking(`SELECT current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication),
			(SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
			pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), pg_is_in_recovery()`, judgeStandbys),
	},
	{
		name: "settings",
		why: "The sessions of the locks set these for themselves, " +
			"so that what is set for a role or a database does no harm.",
		look: asking(`SELECT current_setting('idle_session_timeout'), current_setting('statement_timeout'),
			current_setting('lock_timeout'), current_setting('log_lock_waits')`, judgeSettings),
	},
	{
		name: "PL/pgSQL",
		why:  "With it, a wait that is cancelled is no error in the log of the server.",
		look: asking("SELECT count(*) FROM pg_language WHERE lanname = 'plpgsql'", judgeLanguages),
	},
	{
		name: "round trip",
		why:  whyRoundTrip,
		look: func(ctx context.Context, s *postgresServer) finding {
			return roundTrips(ctx, s.ttl, func(ctx context.Context) error { return s.Exec(ctx, "SELECT 1").Close() })
		},
	},
	{
		name: "clock",
		why: "Locks do not depend on this difference. Fencing tokens do if the server has lost its data, too: " +
			"they may then go back if its clock is behind. The times that people read are wrong by it.",
		look: func(ctx context.Context, s *postgresServer) finding { return compareClocks(ctx, s.now) },
	},
}

func lookAtPostgresVersion(_ context.Context, s *postgresServer) finding {
	version := s.ParameterStatus("server_version")
	var major int
	if n, _ := fmt.Sscanf(version, "%d", &major); n != 1 {
		return unknown("the server says that its version is %q", version)
	}
	if major < 14 {
		return fail("Postgres %s", version).remedy("%s", remedyOf(pglock.ErrVersion))
	}
	return ok("Postgres %s", version)
}

// judgeProcess finds out about poolers as package pglock does: they have to tell their clients a process id that they
// made themselves.
func judgeProcess(s *postgresServer, row []string) finding {
	if row[0] != fmt.Sprint(s.PID()) {
		return fail("there is one: the connection is said to be that of process %d, but process %s has answered",
			s.PID(), row[0]).remedy("%s", remedyOf(pglock.ErrPooler))
	}
	return ok("none: process %s has answered", row[0])
}

func judgeRole(_ *postgresServer, row []string) finding {
	if row[0] == "t" {
		return fail("the server is a standby").remedy("%s", remedyOf(pglock.ErrStandby))
	}
	return ok("primary")
}

func judgeSettings(_ *postgresServer, row []string) finding {
	text := fmt.Sprintf("idle_session_timeout is %s, statement_timeout %s, lock_timeout %s", row[0], row[1], row[2])
	if row[3] == "on" {
		text += "; log_lock_waits is on, so that each wait of a second is a line in the log"
	}
	return ok("%s", text)
}

func judgeLanguages(_ *postgresServer, row []string) finding {
	if row[0] == "0" {
		return warn("the database does not have it").
			remedy("CREATE EXTENSION plpgsql, unless these errors disturb nobody.")
	}
	return ok("the database has it")
}

func (s *postgresServer) now(ctx context.Context) (time.Time, error) {
	row, err := s.row(ctx, "SELECT (date_part('epoch', clock_timestamp()) * 1000000)::bigint")
	if err != nil {
		return time.Time{}, err
	}
	micros, err := strconv.ParseInt(row[0], 10, 64)
	return time.UnixMicro(micros), err
}

// judgeTables looks whether there is what tokens are made from, or the role may create it.
func judgeTables(_ *postgresServer, row []string) finding {
	inDatabase, inSchema, user := row[1] == "t", row[2], row[3]
	grant := fmt.Sprintf("Apply pglock.SchemaSQL as another role, or GRANT CREATE ON DATABASE to %s once.", user)
	switch {
	case row[0] == "3":
		return ok("there are the sequence and the two tables")
	case row[0] != "0":
		return fail("of the sequence and the two tables, some are missing").remedy("Apply pglock.SchemaSQL again.")
	case inSchema == "t", inSchema == "" && inDatabase:
		return ok("the first program that locks creates them")
	}
	return fail("they are not there, and role %s may not create them", user).remedy("%s", grant)
}

// granted is the check that a role may use something that tokens are made from. Where it is not there, there is nothing
// to be granted.
func granted(kind, name string, privileges ...string) check[*postgresServer] {
	lookup := "SELECT oid FROM pg_namespace WHERE nspname = 'locker'"
	if _, relation, found := strings.Cut(name, "."); found {
		lookup = "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace " +
			"WHERE nspname = 'locker' AND relname = '" + relation + "'"
	}
	columns := make([]string, len(privileges))
	for i, p := range privileges {
		columns[i] = fmt.Sprintf("pg_catalog.has_%s_privilege((%s), '%s')", kind, lookup, p)
	}
	sql := "SELECT current_user, " + strings.Join(columns, ", ")
	judge := func(_ *postgresServer, row []string) finding {
		var missing []string
		for i, p := range privileges {
			switch row[1+i] {
			case "f":
				missing = append(missing, p)
			case "":
				return ok("it is not there: whoever creates it may use it")
			}
		}
		all := strings.Join(missing, ", ")
		if len(missing) == 0 {
			return ok("%s", strings.Join(privileges, ", "))
		}
		return fail("role %s lacks %s", row[0], all).
			remedy("GRANT %s ON %s %s TO %s;", all, strings.ToUpper(kind), name, pgx.Identifier{row[0]}.Sanitize())
	}
	return check[*postgresServer]{name: "permission on " + name, why: whyTokens, look: asking(sql, judge)}
}

// What a role lacks that may lock all the same.
const (
	whySeen = "Who holds a lock is written down here. Without it, the holder has no name for others, and is in no list."
	whyTold = "A lock is revoked by way of this table. Without it, the holder is not told, and works on to its own end."
)

// optional makes a check one that warns, for another reason.
func optional(c check[*postgresServer], why string) check[*postgresServer] {
	look := c.look
	c.why = why
	c.look = func(ctx context.Context, s *postgresServer) finding {
		f := look(ctx, s)
		if f.status == Fail {
			f.status = Warn
		}
		return f
	}
	return c
}

func judgeLockTable(_ *postgresServer, row []string) finding {
	room, _ := strconv.Atoi(row[0])
	used, _ := strconv.Atoi(row[1])
	text := fmt.Sprintf("%d locks of %d", used, room)
	do := remedyOf(pglock.ErrLockTableFull)
	switch {
	case used > room/10*9:
		return fail("%s: it is nearly full", text).remedy("%s", do)
	case room < 1000:
		return warn("%s: there is little room", text).remedy("%s", do)
	case used > room/2:
		return warn("%s: it is more than half full", text).remedy("%s", do)
	}
	return ok("%s", text)
}

// judgeConnections compares what is left of connections with what a program needs.
func judgeConnections(_ *postgresServer, row []string) finding {
	n := make([]int, 6)
	for i := range n {
		n[i], _ = strconv.Atoi(row[i])
	}
	left, limit := n[0]-n[1], fmt.Sprintf("max_connections, of which %d are in use", n[1])
	superuser := row[6] == "t"
	if !superuser && n[2] >= 0 && n[2]-n[3] < left {
		left, limit = n[2]-n[3], fmt.Sprintf("the limit of the database, %d", n[2])
	}
	if !superuser && n[4] >= 0 && n[4]-n[5] < left {
		left, limit = n[4]-n[5], fmt.Sprintf("the limit of the role, %d", n[4])
	}
	const do = "Raise %s, or lower pglock.Config.WaitSessions."
	name, _, _ := strings.Cut(limit, ",")
	const most = 14
	switch {
	case left <= 0:
		return fail("none is left, by %s", limit).remedy(do, name)
	case left < most:
		return warn("%d are left, by %s", left, limit).remedy(do, name)
	}
	return ok("%d are left, by %s", left, limit)
}

func judgeStandbys(_ *postgresServer, row []string) finding {
	names, all, synchronous, mayLook := row[0], row[1], row[2], row[3] == "t"
	switch {
	case row[4] == "t":
		return ok("of no interest: this is a standby")
	case names == "" && all == "0":
		return ok("there are no standbys")
	case names == "":
		return ok("standbys: %s, all asynchronous: a failover loses the last commits, and all locks", all)
	case !mayLook:
		return unknown("synchronous_standby_names is %q", names).
			remedy("Grant pg_read_all_stats for the check, to see whether one is connected.")
	case synchronous == "0":
		return fail("synchronous_standby_names is %q, and none of these is connected", names).
			remedy("Bring a standby back, or take it from synchronous_standby_names.")
	}
	return ok("synchronous standbys: %s of %s", synchronous, all)
}
