package pglock_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// begin begins a transaction, which is rolled back with the test.
func begin(t *testing.T, s *session, options pgx.TxOptions) pgx.Tx {
	t.Helper()
	tx, err := s.BeginTx(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func mustLockTx(t *testing.T, tx pgx.Tx, name string) (token uint64) {
	t.Helper()
	token, err := pglock.LockTx(t.Context(), tx, name)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestLockTx has transactions and Lockers exclude one another, with one counter of tokens.
func TestLockTx(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l := open(t, url, locker.Prefix("p/"))
	lease := mustTry(t, l, key)
	tx := begin(t, connect(t, url), pgx.TxOptions{})
	if _, err := pglock.TryLockTx(t.Context(), tx, "p/"+key); !errors.Is(err, locker.ErrLocked) {
		t.Fatalf("TryLockTx of what a Locker holds: %v", err)
	}
	waits := locktest.Started(func() uint64 { return mustLockTx(t, tx, "p/"+key) }) // it goes on after that
	eventually(t, "the transaction waits", func() bool { return admin.inLine("p/"+key) == 1 })
	mustUnlock(t, lease)
	token := waits.Get(t)
	if token <= lease.Token() {
		t.Errorf("token %d after %d", token, lease.Token())
	}
	if again := mustLockTx(t, tx, "p/"+key); again <= token {
		t.Errorf("token %d after %d, in the same transaction", again, token)
	}
	isLocked(t, l, key)
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	eventually(t, "the Locker waits", func() bool { return admin.inLine("p/"+key) == 1 })
	other := begin(t, connect(t, url), pgx.TxOptions{})
	if _, err := pglock.TryLockTx(t.Context(), other, "p/"+key); !errors.Is(err, locker.ErrLocked) {
		t.Fatalf("TryLockTx of what a transaction holds: %v", err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease = next.Get(t)
	if lease.Token() <= token {
		t.Errorf("token %d after %d", lease.Token(), token)
	}
	mustUnlock(t, lease)
	if _, err := pglock.TryLockTx(t.Context(), other, "p/"+key); err != nil {
		t.Fatal(err)
	}
	isLocked(t, l, key)
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustUnlock(t, mustTry(t, l, key))
}

// TestLockTxErrors has LockTx end in all ways but one.
func TestLockTxErrors(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	lease := mustTry(t, open(t, url, locker.TTL(time.Minute)), key)
	t.Run("lock_timeout", func(t *testing.T) {
		tx := begin(t, connect(t, with(t, url, "lock_timeout", "100ms")), pgx.TxOptions{})
		var failure *locker.Error
		if _, err := pglock.LockTx(t.Context(), tx, key); !errors.Is(err, locker.ErrLocked) || !errors.As(err, &failure) ||
			failure.Key != key || failure.Op != "lock" || failure.Backend != "postgres" {
			t.Error(err)
		}
	})
	t.Run("ctx", func(t *testing.T) {
		tx := begin(t, connect(t, url), pgx.TxOptions{})
		reason := errors.New("the reason")
		ctx, cancel := context.WithCancelCause(t.Context())
		waits := locktest.Started(func() error { _, err := pglock.LockTx(ctx, tx, key); return err })
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		cancel(reason)
		if err := waits.Get(t); !errors.Is(err, context.Canceled) || !errors.Is(err, reason) {
			t.Error(err)
		}
		eventually(t, "it has left the line", func() bool { return admin.inLine(key) == 0 })
	})
	t.Run("read-only", func(t *testing.T) {
		tx := begin(t, connect(t, url), pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if _, err := pglock.LockTx(t.Context(), tx, unique("key")); err == nil || errors.Is(err, pglock.ErrStandby) {
			t.Error(err)
		}
	})
	t.Run("no tables", func(t *testing.T) {
		tx := begin(t, connect(t, url), pgx.TxOptions{})
		config := pglock.Config{Namespace: namespace(t, admin)}
		if _, err := config.TryLockTx(t.Context(), tx, unique("key")); !errors.Is(err, pglock.ErrNoTables) {
			t.Error(err)
		}
	})
	t.Run("unusable", func(t *testing.T) {
		if _, err := pglock.LockTx(t.Context(), nil, ""); !errors.Is(err, locker.ErrInvalidKey) {
			t.Error(err)
		}
		if _, err := pglock.TryLockTx(t.Context(), nil, string(make([]byte, locker.MaxKeyLen+1))); !errors.Is(err,
			locker.ErrInvalidKey) {
			t.Error(err)
		}
		if _, err := (pglock.Config{WaitSessions: -1}).LockTx(t.Context(), nil, "key"); !errors.Is(err,
			locker.ErrInvalidOption) {
			t.Error(err)
		}
	})
	mustUnlock(t, lease)
}

// TestLockTxRaises takes locks where no Locker has ever been, and where the server has crashed: tokens may be used up
// to a limit that is on the disk, whatever becomes of the transaction.
func TestLockTxRaises(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	connect(t, server.URL()).do(pglock.SchemaSQL(pglock.DefaultNamespace))
	var last uint64
	for range 2 {
		admin := connect(t, server.URL())
		for _, level := range []pgx.TxIsoLevel{pgx.Serializable, pgx.ReadCommitted} {
			tx := begin(t, connect(t, server.URL()), pgx.TxOptions{IsoLevel: level})
			token := mustLockTx(t, tx, "key")
			if token <= last {
				t.Errorf("token %d after %d", token, last)
			}
			if again := mustLockTx(t, tx, "key"); again <= token { // of which the limit is not in the snapshot
				t.Errorf("token %d after %d", again, token)
			} else {
				last = again
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if limit := admin.count("SELECT ceiling FROM locker.token_limit"); last > math.MaxInt64 || limit < int(last) {
				t.Errorf("token %d, though the limit is %d", last, limit)
			}
		}
		server.Crash()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, server.URL())
	if lease := mustTry(t, l, "key"); lease.Token() <= last {
		t.Errorf("token %d after %d", lease.Token(), last)
	}
}

// TestLockTxBehindPgBouncer takes locks where Lockers cannot.
func TestLockTxBehindPgBouncer(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	connect(t, server.URL()).do(pglock.SchemaSQL(pglock.DefaultNamespace)) // no limit of tokens is known
	bouncer := pgtest.NewBouncer(t, server, "transaction", "default_pool_size=5")
	l := open(t, server.URL())
	var last uint64
	for range 5 {
		tx := begin(t, connect(t, bouncer.URL()), pgx.TxOptions{})
		token := mustLockTx(t, tx, "key")
		if token <= last {
			t.Errorf("token %d after %d", token, last)
		}
		isLocked(t, l, "key")
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		lease := mustTry(t, l, "key")
		if last = lease.Token(); last <= token {
			t.Errorf("token %d after %d", last, token)
		}
		mustUnlock(t, lease)
	}
}
