package pglock

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// DefaultWaitSessions is how many sessions a Locker waits on at most, unless Config.WaitSessions says otherwise.
const DefaultWaitSessions = 8

// Config is what can be chosen beside the options of package locker, which are the same for all backends. The zero
// Config is what the functions New and Open use.
type Config struct {
	// Namespace is the schema (namespace) of what SchemaSQL creates; DefaultNamespace if empty. All Lockers that share
	// locks must have the same, or their fencing tokens are not comparable.
	Namespace string

	// NoCreate keeps the Locker from creating what SchemaSQL creates when it is missing: it returns ErrNoTables.
	NoCreate bool

	// WaitSessions bounds the connections on which this Locker waits for keys that are held, and on which it holds
	// those that it has got by waiting; DefaultWaitSessions if 0. A line of waiters beyond them polls about once a
	// second, and is told by hints, on one further connection, when its lock is given back. Set it to the number of
	// keys that a process waits for at a time, if the server has so many connections. Then the locks of who dies are to
	// be had at once.
	WaitSessions int
}

// New returns a Client that keeps its locks in the database that pool is configured for. The options are the defaults
// for its leases, see locker.New.
//
// It makes connections of its own with the configuration of the pool, its BeforeConnect and AfterConnect included: one
// for locks that are taken without waiting for each TTL in use (four at most), up to Config.WaitSessions for others,
// one for hints where lines poll, and one to look on: for Client.Inspect and the like, and where leases are renewed or
// have a locker.Holder, for others to see them and to take them away. A further one is made for a moment when tokens
// run short. It never uses a connection of the pool, so that locks and queries cannot starve one another; the pool may
// be closed before the Client is. It connects when the first lock is asked for. Without a pool, that returns
// ErrInvalidOption.
func New(pool *pgxpool.Pool, opts ...locker.Option) *locker.Client {
	return Config{}.New(pool, opts...)
}

// Open is New for a connection string, as a URL (postgres://user:password@host:5432/db) or in the form of libpq, with
// the parameters that pgx understands. It connects, bounded by ctx, and ends with a Ping, which reports what would keep
// the locks from working. An unusable string is ErrInvalidOption.
func Open(ctx context.Context, dsn string, opts ...locker.Option) (*locker.Client, error) {
	return Config{}.Open(ctx, dsn, opts...)
}

// New is like the function New. An unusable Config is reported by the first Lock, TryLock or Ping, as ErrInvalidOption.
func (c Config) New(pool *pgxpool.Pool, opts ...locker.Option) *locker.Client {
	return locker.New(c.forPool(pool), opts...)
}

// Open is like the function Open.
func (c Config) Open(ctx context.Context, dsn string, opts ...locker.Option) (*locker.Client, error) {
	config, err := parseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("pglock: %w", err)
	}
	b, err := c.backend(&connector{config: config.ConnConfig})
	if err != nil {
		return nil, fmt.Errorf("pglock: %w", err)
	}
	client := locker.New(b, opts...)
	err = client.Ping(ctx)
	if l := b.connecting(); l != nil && err != nil { // the TTL bounds a Ping, and is shorter than it takes to connect
		if failure := l.await(ctx); failure == nil || ctx.Err() != nil {
			err = client.Ping(ctx)
		} else {
			err = fmt.Errorf("pglock: %w", classified(failure))
		}
	}
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// parseDSN returns the configuration for a connection string, or an ErrInvalidOption, which does not show the password.
func parseDSN(dsn string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(dsn) // which also knows the parameters of pools, and takes them out
	if err != nil {
		return nil, fmt.Errorf("%w: %s", locker.ErrInvalidOption, withoutSecrets(err))
	}
	return config, nil
}

// withoutSecrets returns what is wrong with a connection string. The error of pgx shows the string, and quotes what it
// does not understand; as there is something wrong with the string, any part of it may be the password.
func withoutSecrets(err error) string {
	text := err.Error()
	if bad := (*pgconn.ParseConfigError)(nil); errors.As(err, &bad) {
		text = strings.TrimPrefix(text, pgconn.NewParseConfigError(bad.ConnString, "", nil).Error())
	}
	text = ownWords.Replace(text)
	return "connection string: " + quoted.ReplaceAllLiteralString(text, `"…"`)
}

var (
	ownWords = strings.NewReplacer(`missing "="`, `missing =`, `"sslcert" and "sslkey"`, `sslcert and sslkey`) // of pgx
	quoted   = regexp.MustCompile(`(?s)".*"`)
)

// forPool returns the Backend of New.
func (c Config) forPool(pool *pgxpool.Pool) locker.Backend {
	if pool == nil {
		return unusable(fmt.Errorf("%w: New(nil): there is no pool", locker.ErrInvalidOption))
	}
	p := pool.Config()
	b, err := c.backend(&connector{config: p.ConnConfig, beforeConnect: p.BeforeConnect, afterConnect: p.AfterConnect})
	if err != nil {
		return unusable(err)
	}
	return b
}

func unusable(err error) locker.Backend { return backends.Unusable{Name: storeName, Err: err} }

// backend returns the backend of a Config, or an ErrInvalidOption.
func (c Config) backend(conn *connector) (*backend, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	conn.namespace, conn.create, conn.sql = c.Namespace, !c.NoCreate, statementsFor(c.Namespace)
	return newBackend(conn, c.WaitSessions), nil
}

// withDefaults returns a Config in which nothing is left out, or an ErrInvalidOption.
func (c Config) withDefaults() (Config, error) {
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.WaitSessions == 0 {
		c.WaitSessions = DefaultWaitSessions
	}
	const longest = 63 // NAMEDATALEN - 1: Postgres would cut off the rest
	switch {
	case len(c.Namespace) > longest || strings.ContainsRune(c.Namespace, 0):
		return c, fmt.Errorf("%w: Namespace %q is longer than %d bytes or has a NUL in it",
			locker.ErrInvalidOption, c.Namespace, longest)
	case c.WaitSessions < 0:
		return c, fmt.Errorf("%w: WaitSessions is %d, must not be negative", locker.ErrInvalidOption, c.WaitSessions)
	}
	return c, nil
}
