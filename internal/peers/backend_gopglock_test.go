package peers

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	gopglock "github.com/allisson/go-pglock/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/pglock"
)

// goPglockLibrary is go-pglock on the number that pglock makes of a name. Its lock is a session, to which it sends
// two statements, and no third: what a renewal can do is to lock once more, which counts, and to unlock once. So the
// wrapper finds out, which the library does not tell, that a session has ended.
type goPglockLibrary struct{ db *sql.DB }

func (l goPglockLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, (*gopglock.Lock).Lock)
}

func (l goPglockLibrary) lock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, func(lock *gopglock.Lock, ctx context.Context) (bool, error) {
		return true, lock.WaitAndLock(ctx)
	})
}

func (l goPglockLibrary) acquire(
	ctx context.Context, r locker.Request, by func(*gopglock.Lock, context.Context) (bool, error),
) (hold, error) {
	lock, err := gopglock.NewLock(ctx, pglock.Key(r.Name()), l.db)
	if err != nil {
		return nil, locker.NotAcquired(err)
	}
	ok, err := by(&lock, ctx)
	switch {
	case err != nil:
		return goPglockLease{&lock}, err
	case !ok:
		return nil, errors.Join(errHeld, lock.Close())
	}
	return goPglockLease{&lock}, nil
}

func (l goPglockLibrary) close() error { return l.db.Close() }

type goPglockLease struct{ *gopglock.Lock }

// extend may come when the session ends, where pgx's driver for database/sql has been seen to panic in Rows.Next: the
// answer had no columns.
func (h goPglockLease) extend(ctx context.Context, _ time.Duration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	again, err := h.Lock.Lock(ctx)
	switch {
	case err != nil:
		return endedSession(err)
	case !again:
		return errNotHeld
	}
	return endedSession(h.Unlock(ctx))
}

// unlock comes before Close, which alone would give the session back to its pool with the lock.
func (h goPglockLease) unlock(ctx context.Context) error {
	return endedSession(errors.Join(h.Unlock(ctx), h.Close()))
}

// endedSession is errNotHeld for the errors of a session that has ended, and the lock with it.
func endedSession(err error) error {
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return errNotHeld
	}
	return err
}
