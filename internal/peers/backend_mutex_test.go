package peers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockerkit/locker"
)

// mutexLibrary is concurrency.Mutex. Its sessions are kept alive by themselves, and a renewal asks them what they
// know. The number of a holder is the revision in the header of its Lock: it grows from holder to holder.
//
// A process has one session for each TTL, as etcd documents it; or each lock has one of its own. In that case
// goroutines exclude one another, what a failed attempt has left goes with its session, and a lease that is not
// renewed ends by itself.
type mutexLibrary struct {
	client *clientv3.Client
	each   bool // a session for each lock

	mu       sync.Mutex
	sessions map[time.Duration]*concurrency.Session
}

func newMutexLibrary(client *clientv3.Client, sessionEach bool) *mutexLibrary {
	return &mutexLibrary{client: client, each: sessionEach, sessions: make(map[time.Duration]*concurrency.Session)}
}

func (l *mutexLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, (*concurrency.Mutex).TryLock)
}

func (l *mutexLibrary) lock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, (*concurrency.Mutex).Lock)
}

func (l *mutexLibrary) acquire(
	ctx context.Context, r locker.Request, by func(*concurrency.Mutex, context.Context) error,
) (hold, error) {
	if r.TTL%time.Second != 0 {
		return nil, locker.NotAcquired(fmt.Errorf("%w: etcd counts in seconds", locker.ErrInvalidOption))
	}
	session, err := l.session(ctx, r.TTL)
	if err != nil {
		return nil, err
	}
	h := &mutexLease{mutex: concurrency.NewMutex(session, r.Name()), session: session, each: l.each}
	err = by(h.mutex, ctx)
	switch {
	case errors.Is(err, concurrency.ErrLocked):
		if l.each {
			err = h.session.Close()
		}
		return nil, errors.Join(errHeld, err)
	case err != nil:
		return h, err
	}
	h.revision = uint64(h.mutex.Header().Revision)
	if l.each && r.NoRenew {
		session.Orphan()
	} else {
		h.unlocked = context.AfterFunc(session.Ctx(), func() { r.ReportLost(errors.New("concurrency: the session is done")) })
	}
	return h, nil
}

// session returns the one of the process, or another one.
func (l *mutexLibrary) session(ctx context.Context, ttl time.Duration) (*concurrency.Session, error) {
	if l.each {
		return l.newSession(ctx, ttl)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[ttl]; s != nil && s.Ctx().Err() == nil {
		return s, nil
	}
	s, err := l.newSession(ctx, ttl)
	if err == nil {
		l.sessions[ttl] = s
	}
	return s, err
}

// newSession is bounded, which NewSession is only by the context that the session itself ends with.
func (l *mutexLibrary) newSession(ctx context.Context, ttl time.Duration) (*concurrency.Session, error) {
	life, end := context.WithCancel(l.client.Ctx())
	late, waits := time.AfterFunc(ttl, end), context.AfterFunc(ctx, end)
	s, err := concurrency.NewSession(l.client, concurrency.WithTTL(int(ttl/time.Second)), concurrency.WithContext(life))
	if !late.Stop() || !waits() {
		err = errors.Join(err, errors.New("no session in time"))
	}
	if err != nil {
		end()
		return nil, err
	}
	return s, nil
}

func (l *mutexLibrary) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, s := range l.sessions {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

type mutexLease struct {
	mutex    *concurrency.Mutex
	session  *concurrency.Session
	each     bool
	revision uint64
	unlocked func() bool // nobody is to be told; nil if there was nobody
}

func (h *mutexLease) token() uint64 { return h.revision }

func (h *mutexLease) extend(context.Context, time.Duration) error {
	if h.session.Ctx().Err() != nil {
		return errNotHeld
	}
	return nil
}

func (h *mutexLease) unlock(ctx context.Context) error {
	if h.unlocked != nil {
		h.unlocked()
	}
	if h.each {
		return h.session.Close()
	}
	err := h.mutex.Unlock(ctx)
	if errors.Is(err, concurrency.ErrLockReleased) {
		return errNotHeld
	}
	return err
}
