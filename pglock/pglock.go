// Package pglock keeps locks in Postgres.
package pglock

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
)

// DefaultWaitSessions is the bound of Config.WaitSessions.
const DefaultWaitSessions = 8

// Config is what can be chosen beside the options of package locker. The zero Config is what New and Open use.
type Config struct {
	Namespace    string
	NoCreate     bool
	WaitSessions int
}

// New returns a Locker.
func New(pool *pgxpool.Pool, opts ...locker.Option) locker.Locker { return Config{}.New(pool, opts...) }

// Open is New.
func Open(ctx context.Context, dsn string, opts ...locker.Option) (locker.Locker, error) {
	return Config{}.Open(ctx, dsn, opts...)
}

// New is like the function New.
func (c Config) New(pool *pgxpool.Pool, opts ...locker.Option) locker.Locker {
	return locker.New(c.newBackend(pool), opts...)
}

func (c Config) newBackend(pool *pgxpool.Pool) *backend {
	p := pool.Config()
	return c.backend(connector{config: p.ConnConfig, beforeConnect: p.BeforeConnect, afterConnect: p.AfterConnect})
}

// Open is like the function Open.
func (c Config) Open(ctx context.Context, dsn string, opts ...locker.Option) (locker.Locker, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("pglock: %w: %w", locker.ErrInvalidOption, err)
	}
	b := c.backend(connector{config: config})
	if b.invalid != nil {
		return nil, b.invalid
	}
	conn, err := b.connect(ctx, locker.DefaultTTL)
	if err != nil {
		return nil, err
	}
	_ = conn.Close(ctx)
	return locker.New(b, opts...), nil
}

func (c Config) backend(conn connector) *backend {
	var errs []error
	if c.WaitSessions == 0 {
		c.WaitSessions = DefaultWaitSessions
	}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	conn.namespace, conn.create, conn.sql = c.Namespace, !c.NoCreate, statementsFor(c.Namespace)
	return newBackend(conn, c.WaitSessions, errors.Join(errs...))
}
