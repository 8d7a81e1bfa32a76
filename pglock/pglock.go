package pglock

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
)

// DefaultWaitSessions is how many sessions a Locker waits on at most, unless Config.WaitSessions says otherwise.
const DefaultWaitSessions = 8

// Config is what can be chosen beside the options of package locker, which are the same for all backends. The zero Config is
// what the functions New and Open use.
type Config struct {
	// Namespace is the schema (namespace) of what SchemaSQL creates; DefaultNamespace if empty. All Lockers that share locks
	// must have the same, or their fencing tokens are not comparable.
	Namespace string

	// NoCreate keeps the Locker from creating what SchemaSQL creates when it is missing: it returns ErrNoTables.
	NoCreate bool

	// WaitSessions bounds the connections on which this Locker waits for keys that are held, and on which it holds those
	// that it has got by waiting; DefaultWaitSessions if 0. A line of waiters beyond them polls. Set it to the number of keys
	// that a process waits for at a time, if that many connections are to be had.
	WaitSessions int
}

// New returns a Locker that keeps its locks in the database that pool is configured for. The options are the defaults for its
// leases, see locker.New.
//
// It makes connections of its own with the configuration of the pool, its BeforeConnect and AfterConnect included: one
// for locks that are taken without waiting, and up to Config.WaitSessions for others. It never uses a connection
// of the pool, so that locks and queries cannot starve one another. It connects when the first lock is asked for.
func New(pool *pgxpool.Pool, opts ...locker.Option) locker.Locker { return Config{}.New(pool, opts...) }

// Open is New for a connection string, as a URL (postgres://user:password@host:5432/db) or in the form of libpq, with the
// parameters that pgx understands. It connects, bounded by ctx, and so reports at once what would keep the locks
// from working; an unusable string is ErrInvalidOption.
func Open(ctx context.Context, dsn string, opts ...locker.Option) (locker.Locker, error) {
	return Config{}.Open(ctx, dsn, opts...)
}

// New is like the function New. An unusable Config is reported by the first Lock or TryLock, as ErrInvalidOption.
func (c Config) New(pool *pgxpool.Pool, opts ...locker.Option) locker.Locker {
	return locker.New(c.forPool(pool), opts...)
}

// Open is like the function Open.
func (c Config) Open(ctx context.Context, dsn string, opts ...locker.Option) (locker.Locker, error) {
	config, err := pgxpool.ParseConfig(dsn) // which also knows the parameters of pools, and takes them out
	if err != nil {
		return nil, fmt.Errorf("pglock: %w: %s", locker.ErrInvalidOption, withoutSecrets(err))
	}
	b := c.backend(connector{config: config.ConnConfig})
	if b.invalid != nil {
		return nil, fmt.Errorf("pglock: %w", b.invalid)
	}
	s, err := b.openNow(ctx, locker.DefaultTTL)
	if err != nil {
		_ = b.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("pglock: %w", err)
	}
	b.mu.Lock()
	b.first = s
	b.mu.Unlock()
	return locker.New(b, opts...), nil
}

// withoutSecrets returns what is wrong with a connection string. The error of pgx quotes the string, from which it cannot
// always take the password out, as there is something wrong with it.
func withoutSecrets(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		text = text[i+len("`: "):]
	}
	return "connection string: " + text
}

func (c Config) forPool(pool *pgxpool.Pool) *backend {
	p := pool.Config()
	return c.backend(connector{config: p.ConnConfig, beforeConnect: p.BeforeConnect, afterConnect: p.AfterConnect})
}

func (c Config) backend(conn connector) *backend {
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.WaitSessions == 0 {
		c.WaitSessions = DefaultWaitSessions
	}
	const longest = 63 // NAMEDATALEN - 1: Postgres would cut off the rest
	var invalid error
	switch {
	case len(c.Namespace) > longest || strings.ContainsRune(c.Namespace, 0):
		invalid = fmt.Errorf("%w: Namespace %q is longer than %d bytes or has a NUL in it", locker.ErrInvalidOption, c.Namespace, longest)
	case c.WaitSessions < 0:
		invalid = fmt.Errorf("%w: WaitSessions is %d, must not be negative", locker.ErrInvalidOption, c.WaitSessions)
	}
	conn.namespace, conn.create, conn.sql = c.Namespace, !c.NoCreate, statementsFor(c.Namespace)
	return newBackend(conn, c.WaitSessions, invalid)
}
