package peers

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	gopglock "github.com/allisson/go-pglock/v3"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// goPglockPeer is go-pglock on the key that ours has.
type goPglockPeer struct{ db *sql.DB }

func newSQL(t *testing.T) *sql.DB {
	db := must(sql.Open("pgx", pgtest.URL(t)))(t)
	t.Cleanup(func() { db.Close() })
	return db
}

// onPostgres opens one of ours, on a pool that is closed after it.
func onPostgres(t *testing.T) locker.Locker {
	pool := must(pgxpool.New(t.Context(), pgtest.URL(t)))(t)
	t.Cleanup(pool.Close)
	l := openAfterGoPglock(pool)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

type goPglockHold struct{ *gopglock.Lock }

func (p goPglockPeer) tryLock(ctx context.Context, key string, _ time.Duration) (hold, error) {
	l, err := gopglock.NewLock(ctx, pglock.Key(key), p.db)
	if err != nil {
		return nil, err
	}
	ok, err := l.Lock(ctx)
	if !ok {
		return nil, errors.Join(errHeld, err, l.Close())
	}
	return goPglockHold{&l}, err
}

func (p goPglockPeer) lock(ctx context.Context, key string, _ time.Duration) (hold, error) {
	l, err := gopglock.NewLock(ctx, pglock.Key(key), p.db)
	if err != nil {
		return nil, err
	}
	return goPglockHold{&l}, l.WaitAndLock(ctx)
}

func (goPglockHold) extend(context.Context, time.Duration) error { return nil }
func (h goPglockHold) unlock(ctx context.Context) error {
	return errors.Join(h.Unlock(ctx), h.Close())
}

// TestGoPglock: on the same key of 64 bits, go-pglock and ours exclude one another, and tokens increase over its
// holders.
func TestGoPglock(t *testing.T) {
	t.Parallel()
	var tokens []uint64
	ours := lockerPeer{onPostgres(t), func(token uint64) { tokens = append(tokens, token) }}
	testExclusion(t, goPglockPeer{newSQL(t)}, ours)
	if len(tokens) != 2 || tokens[0] >= tokens[1] {
		t.Errorf("tokens %d", tokens)
	}
}

// TestGoPglockClose: what is closed without Unlock goes back to its pool with the lock, for which others wait until the
// pool closes the connection.
func TestGoPglockClose(t *testing.T) {
	t.Parallel()
	theirs, l := goPglockPeer{newSQL(t)}, onPostgres(t)
	h := must(theirs.lock(t.Context(), t.Name(), long))(t)
	if err := h.(goPglockHold).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.TryLock(t.Context(), t.Name()); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("if this is so no longer, the page has to be changed: %v", err)
	}
	if err := theirs.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := must(l.Lock(t.Context(), t.Name()))(t).Unlock(); err != nil {
		t.Error(err)
	}
}

// TestGoPglockIsNotTold: an administrator ends the session of a holder. Another gets the lock, and the holder's Unlock
// is the first that it hears of it.
func TestGoPglockIsNotTold(t *testing.T) {
	t.Parallel()
	db, l := newSQL(t), onPostgres(t)
	lock := must(gopglock.NewLock(t.Context(), pglock.Key(t.Name()), db))(t)
	defer lock.Close()
	if ok, err := lock.Lock(t.Context()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	key := uint64(pglock.Key(t.Name()))
	_, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND classid = $1 AND objid = $2`, key>>32, key&(1<<32-1))
	if err != nil {
		t.Fatal(err)
	}
	if err := must(l.Lock(t.Context(), t.Name()))(t).Unlock(); err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(t.Context()); err == nil {
		t.Error("Unlock says nothing")
	}
}

// TestGoPglockPage: from another key, the way over takes both locks for a time.
func TestGoPglockPage(t *testing.T) {
	t.Parallel()
	db, ours := newSQL(t), onPostgres(t) // where no other test has the keys of the page
	old := func(ctx context.Context, w work) error { return beforeGoPglock(ctx, db, w) }
	both := func(ctx context.Context, w work) error { return bothGoPglock(ctx, db, ours, w) }
	testTogether(t, map[string]func(context.Context, work) error{"old": old, "another old": old, "both": both})
	testTogether(t, map[string]func(context.Context, work) error{
		"both":        both,
		"new":         func(ctx context.Context, w work) error { return after(ctx, ours, w) },
		"another new": func(ctx context.Context, w work) error { return after(ctx, ours, w) },
	})

	lock := must(sameKeyGoPglock(t.Context(), db))(t)
	defer lock.Close()
	if ok, err := lock.Lock(t.Context()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := ours.TryLock(t.Context(), "orders/42"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("on the same key: %v", err)
	}
	if err := lock.Unlock(t.Context()); err != nil {
		t.Error(err)
	}
}
