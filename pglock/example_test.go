package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/pglock"
)

// These need a server, and are compiled only.

func Example() {
	ctx := context.Background()
	l, err := pglock.Open(ctx, "postgres://app@localhost:5432/app")
	if err != nil {
		log.Fatal(err) // such as pglock.ErrPooler: what would keep the locks from working is known at once
	}
	defer l.Close()

	lease, err := l.Lock(ctx, "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()
	fmt.Println("token", lease.Token())
}

// A Locker beside the pool of a program: with its configuration, but with connections of its own.
func ExampleNew() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://app@localhost:5432/app")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	l := pglock.New(pool, locker.TTL(15*time.Second))
	defer l.Close()

	err = locker.Do(ctx, l, "migration", func(ctx context.Context) error {
		_, err := pool.Exec(ctx, "ALTER TABLE orders ADD COLUMN fence bigint NOT NULL DEFAULT 0")
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A program without the right to create tables, which waits for a hundred keys at a time.
func ExampleConfig() {
	fmt.Print(pglock.SchemaSQL("locks")) // for a migration, by a role that may
	config := pglock.Config{Namespace: "locks", NoCreate: true, WaitSessions: 100}
	l, err := config.Open(context.Background(), "postgres://app@localhost:5432/app")
	if errors.Is(err, pglock.ErrNoTables) {
		log.Fatal("the migration has not been applied: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
}

// A holder that was paused for longer than its TTL does not know that it has lost the lock. Its token gives it away, if
// it is checked where the data is, and in the same statement that writes: between a SELECT and an UPDATE, a new holder
// could come.
//
// With fence <= $token, a holder may write as often as it likes. With fence < $token, it may write once for each time
// it has the lock, so that a statement which is repeated because its answer was lost changes nothing more.
func Example_fence() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://app@localhost:5432/app")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	l := pglock.New(pool)
	defer l.Close()

	lease, err := l.Lock(ctx, "accounts/7")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()
	// CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL, fence bigint NOT NULL DEFAULT 0)
	tag, err := pool.Exec(ctx, `UPDATE accounts SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2`,
		100, int64(lease.Token()), 7)
	switch {
	case err != nil:
		log.Fatal(err)
	case tag.RowsAffected() == 0:
		log.Fatal("stale token: another holder has been here") // or there is no such account
	}
}

// A payment, and the lock in the same transaction: there is no lease to lose, and nothing to unlock. Whoever processes
// the account with a Locker is excluded, too. The token goes where this transaction does not reach.
func ExampleLockTx() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://app@localhost:6432/app") // PgBouncer, for example
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '5s'"); err != nil { // then it is ErrLocked
			return err
		}
		token, err := pglock.LockTx(ctx, tx, "accounts/7")
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance - 100 WHERE id = 7"); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "INSERT INTO payments (account, amount, token) VALUES (7, 100, $1)", int64(token))
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// What to look for in pg_locks.
func ExampleKey() {
	fmt.Println(pglock.Key("orders/42"))
	// Output: -4261225075031449721
}
