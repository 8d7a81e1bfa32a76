package peers

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
)

// patience is how long a test waits for what must happen: long, as other tests keep the machine busy.
const patience = 30 * time.Second

// retry is the pause after which a peer that waits asks again, on average.
const retry = 10 * time.Millisecond

var (
	errHeld    = errors.New("somebody else has it")
	errNotHeld = errors.New("not ours any more")
)

// peer is a client of another library, or of ours, in a fleet.
type peer interface {
	// tryLock makes one attempt. It returns errHeld if somebody else has the key.
	tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error)

	// lock waits in the manner of the library.
	lock(ctx context.Context, key string, ttl time.Duration) (hold, error)
}

// hold is a lock that a peer has got. Its methods return errNotHeld if it is not the peer's any more.
type hold interface {
	extend(ctx context.Context, ttl time.Duration) error
	unlock(ctx context.Context) error
}

// kind is a kind of peer.
type kind struct {
	name    string
	open    func(t *testing.T, s *site) peer
	several bool // it can lock on several servers at once
}

var kinds = []kind{
	{name: "redsync", open: openRedsync, several: true},
	{name: "node-redlock", open: openNodeRedlock, several: true},
	{name: "bsm-redislock", open: openBsm},
	{name: "SET-NX-PX", open: openByHand},
	{name: "node-distributed-lock", open: openGetThenDel},
}

func TestMain(m *testing.M) {
	os.Exit(etcdtest.Main(mainFunc(func() int {
		return pgtest.Main(mainFunc(func() int {
			return redistest.Main(mainFunc(func() int { defer endNode(); return m.Run() }))
		}))
	})))
}

type mainFunc func() int

func (f mainFunc) Run() int { return f() }
