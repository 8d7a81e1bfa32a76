package redlock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// node is one of the independent servers of a Redlock.
type node struct {
	*server.Server
	name    string         // for people
	running sync.WaitGroup // goroutines that Close waits for

	inFlight atomic.Int32
	silent   atomic.Bool // a request was not answered in time, and nothing else has been since it was sent
	late     atomic.Bool // it was not waited for when others had answered, and has not answered since
	answers  atomic.Int64
	progress atomic.Int64 // since begun, when it last answered, or was asked with nothing else under way
	ahead    atomic.Int64 // by how much its clock was ahead of ours in its last answer, in microseconds; 0 if unknown
}

// blame says which node an error is of. It is never that of a ctx: nobody's has ended.
func (n *node) blame(err error) error {
	if conn.IsContext(err) {
		err = conn.ErrNoAnswer
	}
	return fmt.Errorf("%s: %w", n.name, err)
}

// maxToSilent is how many requests may be under way to a node that does not answer. More locks are not asked for: each
// would occupy a goroutine, room in a connection's buffer and in the outbox, for nothing.
const maxToSilent = 256

// errSilent is the error of a request that was not sent.
var errSilent = backends.Sentinel(locker.ErrUnavailable, "redis: the server has not answered lately")

// nodeBound is how long one node may take to answer a request about a lease. Nobody waits for that long for a node that
// others can do without, or that is known to be silent, so it need not be as short as the Redlock algorithm has it.
func nodeBound(ttl time.Duration) time.Duration { return min(ttl/2, conn.MaxTimeout) }

// lags reports whether others should not be kept waiting for this node.
func (n *node) lags() bool { return n.late.Load() || n.silent.Load() }

// stalled is for how long a node must not have answered anything to be taken for silent, before the bound of a request
// has passed.
const stalled = 500 * time.Millisecond

// full reports whether no more should be asked of the node for now. However many locks are asked for, a node that hangs
// costs no more goroutines than come in the time of stalled.
func (n *node) full() bool {
	return n.inFlight.Load() >= maxToSilent &&
		(n.silent.Load() || time.Since(begun)-time.Duration(n.progress.Load()) > stalled)
}

// call makes a request of the node, with a bound that does not depend on the client.
func (n *node) call(ctx context.Context, bound time.Duration, request func(ctx context.Context) error) error {
	if n.inFlight.Add(1) == 1 {
		n.progress.Store(int64(time.Since(begun)))
	}
	defer n.inFlight.Add(-1)
	before := n.answers.Load()
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := request(ctx)
	switch {
	case err == nil || conn.IsReply(err) || isLost(err),
		errors.Is(err, conn.ErrGivenUp), errors.Is(err, conn.ErrWrongServer):
		n.answers.Add(1)
		n.progress.Store(int64(time.Since(begun)))
		n.silent.Store(false)
		n.late.Store(false)
	case conn.IsSilence(err) && n.answers.Load() == before: // else it is only slow: machines are, at times
		n.silent.Store(true)
	}
	return err
}

// begun is where our clock begins.
var begun = time.Now()

// observe notes what time it is at the node, in microseconds.
func (n *node) observe(clock uint64) {
	n.ahead.Store(int64(clock) - time.Since(begun).Microseconds()) //nolint:gosec // far from overflow
}

// releaseLater makes sure that what an owner has at the node will be released, and his place in line left, when the
// node answers again. A renewal may be on its way, and so may a request for the lock, which would get it as late as
// that.
func (n *node) releaseLater(names scripts.Names, tombstone string, ttl time.Duration) {
	until := time.Now().Add(max(ttl+ttl/3, scripts.RefuseLate))
	n.Outbox.Put(names.LeaveWords(tombstone), until)
}

// releaseTryLater is releaseLater for one try of an owner who goes on with another, and keeps his place in line.
func (n *node) releaseTryLater(names scripts.Names, ttl time.Duration) {
	names.Member = ""
	n.releaseLater(names, names.Tombstone, ttl)
}

// confirm makes token the last one of the node, and reports whether the lock there is still what the owner was
// granted. With a TTL, it sets a lock that is gone again; late means that a first request, given up, may yet arrive.
func (n *node) confirm(
	ctx context.Context, names scripts.Names, token uint64, ttl time.Duration,
) (ours, late bool, err error) {
	return n.yes(ctx, n.Scripts.Confirm, names.ConfirmWords(token, ttl))
}

// lineUp takes the owner back to its place in line, and reports whether it is its turn; late means that a first
// request, given up, may yet arrive. tombstone is the key by which the line knows who has left for good.
func (n *node) lineUp(
	ctx context.Context, names scripts.Names, tombstone, arrival string, doubt bool,
) (turn, late bool, err error) {
	return n.yes(ctx, n.Scripts.LineUp, names.LineUpWords(tombstone, arrival, doubt))
}

// giveBack frees the lock and leaves the line, for good: tombstone is the key by which the line knows that, if there
// is doubt.
func (n *node) giveBack(ctx context.Context, names scripts.Names, tombstone string, inLine, doubt bool) error {
	switch {
	case doubt:
		return n.ReleaseWith(ctx, names.LeaveWords(tombstone))
	case inLine:
		return n.ReleaseWith(ctx, names.ReleaseWords(false))
	}
	return n.Free(ctx, names, false)
}

// yes executes a script that returns 1 or 0, and may be executed twice, which late says that it may be.
func (n *node) yes(ctx context.Context, s *scripts.Script, w scripts.Words) (yes, late bool, err error) {
	for i := 1; ; i++ {
		reply, err := n.Client.Run(ctx, time.Time{}, s, w)
		if err == nil && reply == int64(-1) {
			err = conn.ErrGivenUp
		}
		if err == nil || errors.Is(err, conn.ErrGivenUp) {
			return reply == int64(1), late, err
		}
		late = late || !conn.IsReply(err) && !conn.IsDial(err)
		if i == conn.Attempts || !conn.Pause(ctx, err, i) {
			return false, late, n.Client.Explain(err)
		}
	}
}
