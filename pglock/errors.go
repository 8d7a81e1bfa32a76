package pglock

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// What a Postgres that answers may say instead of yes or no. The error of a Lock wraps one of these, together with what
// the server said; none of them is ever ErrLocked. Each is of one of the classes of package locker.
var (
	// ErrPooler means that the connection goes through a pooler, such as PgBouncer, which hands each transaction to
	// another session of the server. Locks belong to sessions. Connect to the server itself. A pooler in session mode
	// is refused too, as it cannot be told apart with certainty. It is a locker.ErrUnfit.
	ErrPooler = backends.Sentinel(locker.ErrUnfit,
		"postgres: connected through a pooler; locks need a direct connection")

	// ErrVersion means that the server is older than Postgres 14, and cannot end idle sessions by itself. It is a
	// locker.ErrUnfit.
	ErrVersion = backends.Sentinel(locker.ErrUnfit, "postgres: the server is too old; locks need Postgres 14 or later")

	// ErrSettings means that a setting that a lease depends on, such as idle_session_timeout, was refused or has no
	// effect. It is a locker.ErrUnfit.
	ErrSettings = backends.Sentinel(locker.ErrUnfit, "postgres: a setting that leases depend on was refused")

	// ErrNoTables means that the tables for fencing tokens are missing, and could not be created or were not to be:
	// apply SchemaSQL with a role that may. It is a locker.ErrUnfit.
	ErrNoTables = backends.Sentinel(locker.ErrUnfit,
		"postgres: the tables for fencing tokens are missing; apply pglock.SchemaSQL")

	// ErrNoDatabase means that the database does not exist. It is a locker.ErrUnfit.
	ErrNoDatabase = backends.Sentinel(locker.ErrUnfit,
		"postgres: no such database; create it, or correct the connection string")

	// ErrPermission means that the role lacks a permission. SchemaSQL lists what is needed. It is a locker.ErrDenied.
	ErrPermission = backends.Sentinel(locker.ErrDenied,
		"postgres: the role lacks a permission; pglock.SchemaSQL lists those needed")

	// ErrAuth means that the server refused the role or its password. It is a locker.ErrDenied.
	ErrAuth = backends.Sentinel(locker.ErrDenied,
		"postgres: authentication failed; check the role, its password and pg_hba.conf")

	// ErrStandby means that the server is a standby, whose locks exclude nobody on the primary. The connection string
	// has the wrong host, or lacks target_session_attrs=read-write; or a failover is under way. It is a
	// locker.ErrUnavailable, as it passes when the standby is promoted.
	ErrStandby = backends.Sentinel(locker.ErrUnavailable,
		"postgres: the server is a standby; connect to the primary, or set target_session_attrs=read-write")

	// ErrTooManyConnections means that the server, or the role's or the database's limit, allows no further connection.
	// It is a locker.ErrUnavailable.
	ErrTooManyConnections = backends.Sentinel(locker.ErrUnavailable,
		"postgres: too many connections; close some, or raise max_connections or the limit of the role or database")

	// ErrLockTableFull means that the server's lock table is full, which everybody on the server suffers from. It has
	// room for max_locks_per_transaction times max_connections locks: hold fewer, or raise the former. It is a
	// locker.ErrUnavailable.
	ErrLockTableFull = backends.Sentinel(locker.ErrUnavailable,
		"postgres: the lock table is full; hold fewer locks, or raise max_locks_per_transaction")

	// ErrShutdown means that the server is shutting down, starting, or recovering from a crash, or an administrator has
	// ended the session. It is a locker.ErrUnavailable.
	ErrShutdown = backends.Sentinel(locker.ErrUnavailable, "postgres: the server is shutting down or starting")
)

// meanings are the codes of errors (https://www.postgresql.org/docs/current/errcodes-appendix.html).
var meanings = map[string]error{
	"28000": ErrAuth, // invalid_authorization_specification
	"28P01": ErrAuth, // invalid_password
	"3D000": ErrNoDatabase,
	"42501": ErrPermission,
	"25006": ErrStandby, // read_only_sql_transaction
	"42P01": ErrNoTables,
	"3F000": ErrNoTables,
	"53200": ErrLockTableFull, // out_of_memory, which is also what the lock table reports
	"53300": ErrTooManyConnections,
	"57P01": ErrShutdown, // admin_shutdown
	"57P02": ErrShutdown, // crash_shutdown
	"57P03": ErrShutdown, // cannot_connect_now
}

// queryCanceled is the code of a statement that somebody has cancelled. Who did so cannot have meant all that wait for
// it here.
const queryCanceled = "57014"

// passing are the classes of codes of errors that another attempt may not meet: of the connection, of a transaction
// rolled back, of resources, of a lock that was not free, of an operator's intervention, and of the server's system.
var passing = []string{"08", "40", "53", "55", "57", "58"}

var (
	errMismatch   = errors.New("postgres: the answer does not fit the question")
	errNoAnswer   = errors.New("postgres: the server did not answer in time")
	errNoTokens   = fmt.Errorf("%w: a row of them has been deleted", ErrNoTables)
	errExpired    = errors.New("its TTL has passed, and it was not renewed")
	errNotOurs    = backends.Sentinel(locker.ErrUnfit, "postgres: that is not a Postgres server")
	errSilent     = errors.New("postgres: the server did not answer")
	errStillThere = errors.New("postgres: the session that had the lock is still ending")
	errUnneeded   = errors.New("postgres: nobody needed the session any more")
	errUnowned    = errors.New("postgres: the session did not have the lock any more")
)

// explain makes an error of the server one of the above, if it is one.
func explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			// Of a bound that is ours: for the caller of Lock, whose own ctx has not ended, these mean something else.
			return fmt.Errorf("%w: %s", errNoAnswer, err.Error()) // not wrapped
		}
		return err
	}
	meaning := meanings[pg.Code]
	if pg.Code == "XX000" && strings.HasPrefix(pg.Message, "could not open relation") {
		meaning = ErrNoTables // the sequence of a statement that was prepared before it was dropped
	}
	if meaning != nil && !hasClass(err) {
		return fmt.Errorf("%w: %w", meaning, err)
	}
	return err
}

// classified makes an error of a connection an ErrUnavailable, unless it is of another class.
func classified(err error) error {
	if hasClass(err) {
		return err
	}
	return fmt.Errorf("%w: %w", locker.ErrUnavailable, err)
}

func hasClass(err error) bool {
	return errors.Is(err, locker.ErrDenied) || errors.Is(err, locker.ErrUnfit) || errors.Is(err, locker.ErrUnavailable)
}

// oneLine is an error whose text is on one line: pgx writes a line for each address that it tried.
type oneLine struct{ err error }

func (e *oneLine) Error() string {
	return strings.NewReplacer(":\n\t", ": ", "\n\t", "; ").Replace(e.err.Error())
}
func (e *oneLine) Unwrap() error { return e.err }

// sessionOver is the error of what a session had to do when it ended, and the reason for which its leases are lost.
type sessionOver struct{ cause error }

func (e *sessionOver) Error() string {
	return "postgres: the session is over, and with it its locks: " + e.cause.Error()
}
func (e *sessionOver) Unwrap() error { return e.cause }

// endedByServer reports whether err is the end of a session of which the server has said that it ends it.
func endedByServer(err error) bool {
	var over *sessionOver
	var pg *pgconn.PgError
	return errors.As(err, &over) && errors.As(err, &pg) && !isOfStatement(pg)
}

// isOfStatement reports whether an error of the server is one after which the session goes on.
func isOfStatement(err *pgconn.PgError) bool { return err.SeverityUnlocalized == "ERROR" }
