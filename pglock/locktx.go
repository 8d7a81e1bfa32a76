package pglock

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/lockerkit/locker"
)

// LockTx takes a lock for the rest of a transaction of the caller's own, and returns its fencing token. The name is
// what Key has: the prefix of a Locker and the key, joined. LockTx waits while anybody has the lock, a Locker or
// another transaction, and a Locker waits for it, in the same line.
//
// The lock has no lease: it ends with the transaction, committed or not, and with its connection, and cannot be lost
// before. So nothing needs to be renewed, nor checked, for what is written in that transaction; the token is for what
// is written elsewhere. It works behind PgBouncer in transaction mode, too. In return, the transaction is open for as
// long as the lock is held: keep it short. Call LockTx before anything is read: with the isolation level repeatable
// read or serializable, a transaction sees what was there at its first statement, which is LockTx before it waits. With
// these levels, the writes of former holders are seen as conflicts (the code 40001), for which the transaction has to
// be repeated.
//
// The tables of SchemaSQL must be there; a Locker makes them. LockTx may make a connection with the configuration of
// the transaction's: on the first lock after each start of the server, and then once in hundreds of thousands of
// tokens. Lines that poll are not told when the transaction ends, see the package: their next poll finds out.
//
// When ctx ends, pgx closes the connection, and LockTx returns an error that matches ctx.Err. If lock_timeout ends the
// wait, that is ErrLocked. After any error, the transaction can only be rolled back. Other errors are ErrInvalidKey,
// ErrNoTables and others of this package, and what pgx returns.
func LockTx(ctx context.Context, tx pgx.Tx, name string) (token uint64, err error) {
	return Config{}.LockTx(ctx, tx, name)
}

// TryLockTx is LockTx for those who do not want to wait: if anybody has the lock, or waits for it in Postgres's line,
// it returns ErrLocked, after which the transaction can go on.
func TryLockTx(ctx context.Context, tx pgx.Tx, name string) (token uint64, err error) {
	return Config{}.TryLockTx(ctx, tx, name)
}

// LockTx is like the function LockTx, with the fencing tokens of Config.Namespace.
func (c Config) LockTx(ctx context.Context, tx pgx.Tx, name string) (token uint64, err error) {
	return c.lockTx(ctx, tx, name, "lock", "pg_catalog.pg_advisory_xact_lock($1)::text = ''")
}

// TryLockTx is like the function TryLockTx, with the fencing tokens of Config.Namespace.
func (c Config) TryLockTx(ctx context.Context, tx pgx.Tx, name string) (token uint64, err error) {
	return c.lockTx(ctx, tx, name, "trylock", "pg_catalog.pg_try_advisory_xact_lock($1)")
}

// lockTx takes a lock by a condition, which is true when it is taken.
func (c Config) lockTx(ctx context.Context, tx pgx.Tx, name, op, condition string) (token uint64, err error) {
	defer func() {
		if err != nil {
			token, err = 0, &locker.Error{Op: op, Key: name, Backend: storeName, Err: err}
		}
	}()
	c, err = c.withDefaults()
	if err != nil {
		return 0, err
	}
	conn := statementsOnly(c.Namespace)
	if name == "" || len(name) > locker.MaxKeyLen {
		return 0, fmt.Errorf("%w: %d bytes long, must be 1 to %d", locker.ErrInvalidKey, len(name), locker.MaxKeyLen)
	}
	// The token is minted when the lock has been taken, and not before: see locker_try.
	sql := "WITH locked AS MATERIALIZED (SELECT " + condition + " AS taken) " +
		"SELECT taken, CASE WHEN taken THEN " + conn.sql.mint + " ELSE 0 END, " +
		"coalesce(" + conn.sql.limit + ", 0) FROM locked"
	var taken bool
	var minted, limit int64
	switch err := tx.QueryRow(ctx, sql, Key(name)).Scan(&taken, &minted, &limit); {
	case isCode(err, "55P03"): // lock_not_available
		return 0, fmt.Errorf("%w: %w", locker.ErrLocked, err)
	case err != nil:
		return 0, ofTx(ctx, err)
	case !taken:
		return 0, locker.ErrLocked
	case 0 < minted && minted <= limit:
		return uint64(minted), nil
	}
	// The limit has to be raised, for good: not in this transaction, which may be rolled back.
	raised, err := conn.raiseBeside(ctx, tx.Conn().Config())
	if err != nil {
		return 0, ofTx(ctx, err)
	}
	if err := tx.QueryRow(ctx, "SELECT "+conn.sql.mint).Scan(&minted); err != nil {
		return 0, ofTx(ctx, err)
	}
	if minted <= 0 || uint64(minted) > raised {
		return 0, errNoTokens
	}
	return uint64(minted), nil
}

// knownNamespaces has a connector with nothing but statements for each namespace: to write them takes longer than all
// else that is done here for a transaction.
var knownNamespaces sync.Map

func statementsOnly(namespace string) *connector {
	c, ok := knownNamespaces.Load(namespace)
	if !ok {
		c, _ = knownNamespaces.LoadOrStore(namespace, &connector{sql: statementsFor(namespace)})
	}
	return c.(*connector)
}

// raiseBeside raises the limit of tokens on a connection of its own, and returns it.
func (c *connector) raiseBeside(ctx context.Context, config *pgx.ConnConfig) (limit uint64, err error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return 0, &oneLine{err}
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := applySettings(ctx, conn.PgConn(), connectWithin); err != nil { // such as a statement_timeout, see raise
		return 0, err
	}
	return c.limit(ctx, conn.PgConn())
}

// ofTx gives an error of a transaction its meaning. The end of the caller's own ctx is left as it is; and that a
// transaction is read-only, in which no token can be minted, does not mean that the server is.
func ofTx(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case isCode(err, "25006"): // read_only_sql_transaction
		return err
	}
	return explain(err)
}
