package redislock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// node is one of the independent servers of a Redlock.
type node struct {
	*backend
	name    string          // for people
	life    context.Context // of the Locker
	running sync.WaitGroup  // goroutines that Close waits for

	inFlight atomic.Int32
	silent   atomic.Bool // a request was not answered in time, and nothing else has been since it was sent
	late     atomic.Bool // it was not waited for when others had answered, and has not answered since
	answers  atomic.Int64
	progress atomic.Int64 // since begun, when it last answered, or was asked with nothing else under way
	ahead    atomic.Int64 // by how much the server's clock was ahead of ours in its last answer, in microseconds; 0 if unknown

	mu     sync.Mutex
	debts  []debt
	paying bool // a goroutine is at work on the debts
}

// blame says which node an error is of. It is never that of a ctx: nobody's has ended.
func (n *node) blame(err error) error {
	if isContext(err) {
		err = errNoAnswer
	}
	return fmt.Errorf("%s: %w", n.name, err)
}

// maxToSilent is how many requests may be under way to a node that does not answer. More locks are not asked for: each would
// occupy a goroutine, room in a connection's buffer and a debt, for nothing.
const maxToSilent = 256

// errSilent is the error of a request that was not sent.
var errSilent = backends.Sentinel(locker.ErrUnavailable, "redis: the server has not answered lately")

// errGivenUp is what a node says to a request that it takes for a late one of an owner who has given up.
var errGivenUp = errors.New("redis: the request came after its owner had given up")

// nodeBound is how long one node may take to answer a request about a lease. Nobody waits for that long for a node that
// others can do without, or that is known to be silent, so it need not be as short as the Redlock algorithm has it.
func nodeBound(ttl time.Duration) time.Duration { return min(ttl/2, maxTimeout) }

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
	err := request(hurried{ctx, time.Now().Add(bound)})
	switch {
	case err == nil || isReply(err) || isLost(err) || errors.Is(err, errGivenUp) || errors.Is(err, errWrongServer):
		n.answers.Add(1)
		n.progress.Store(int64(time.Since(begun)))
		n.silent.Store(false)
		n.late.Store(false)
	case n.answers.Load() == before: // else it is only slow: machines are, at times
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

// debt is what an owner may have left behind at a node that did not answer when it was to be given back. It is asked
// again until that has expired by itself.
type debt struct {
	names names
	left  string // see leaveWords
	until time.Time
}

const (
	// maxDebts bounds the memory that a dead node costs. What does not find room waits for its expiry.
	maxDebts = 10_000

	// payTogether is how many debts are paid in one round trip.
	payTogether = 500
)

// oweTry is owe for one try of an owner who goes on with another, and keeps his place in line.
func (n *node) oweTry(names names, ttl time.Duration) {
	names.member = ""
	n.owe(names, names.gone, ttl)
}

// owe makes sure that what an owner has at the node will be released, and his place in line left, when the node answers again.
func (n *node) owe(names names, left string, ttl time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.debts) == maxDebts || n.life.Err() != nil {
		return
	}
	n.debts = append(n.debts, debt{names, left, time.Now().Add(ttl + ttl/3)}) // a renewal may be on its way
	if !n.paying {
		n.paying = true
		n.running.Go(n.pay)
	}
}

// pay pays the debts, and ends when there are none left.
func (n *node) pay() {
	const first, longest = 20 * time.Millisecond, time.Second
	for pause := first; ; pause = min(2*pause, longest) {
		select {
		case <-n.life.Done():
			return
		case <-time.After(pause):
		}
		owed := n.due()
		if len(owed) == 0 {
			return
		}
		if n.payOff(owed) {
			pause = first
		}
	}
}

// due returns the debts to be paid next, without those that have expired. If there are none, paying ends.
func (n *node) due() []debt {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	left := n.debts[:0]
	for _, d := range n.debts {
		if now.Before(d.until) {
			left = append(left, d)
		}
	}
	clear(n.debts[len(left):])
	n.debts = left
	if len(left) == 0 {
		n.paying, n.debts = false, nil
	}
	return append([]debt(nil), left[:min(len(left), payTogether)]...)
}

// payOff pays debts that are the first ones of the list, and reports whether the node has answered.
func (n *node) payOff(owed []debt) bool {
	ctx, cancel := context.WithTimeout(n.life, maxTimeout)
	defer cancel()
	work := &batch{script: n.scripts.release}
	for _, d := range owed {
		work.add(ctx, 5, leaveWords(d.names, d.left))
	}
	err := n.call(ctx, maxTimeout, func(ctx context.Context) error { return n.client.runBatch(ctx, work) })
	if err != nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var unpaid []debt
	for i, cmd := range work.cmds {
		if cmd.Err() != nil {
			unpaid = append(unpaid, owed[i])
		}
	}
	n.debts = append(n.debts[len(owed):], unpaid...)
	return len(unpaid) < len(owed)
}

// confirm makes token the last one of the node, and reports whether the lock there is still what the owner was granted. With a
// TTL, it sets a lock that is gone again; late means that a first request, given up, may yet arrive.
func (n *node) confirm(ctx context.Context, names names, token uint64, ttl time.Duration) (ours, late bool, err error) {
	words := []string{names.lock, names.fence, names.gone, names.value, strconv.FormatUint(token, 10)}
	if ttl > 0 {
		words = append(words, ms(ttl))
	}
	return n.yes(ctx, n.scripts.confirm, 3, words)
}

// lineUp takes the owner back to its place in line, and reports whether it is its turn; late means that a first request, given
// up, may yet arrive. left is the key by which the line knows who has left for good.
func (n *node) lineUp(ctx context.Context, names names, left, arrival string, doubt bool) (turn, late bool, err error) {
	words := []string{names.lock, names.queue, names.alive, names.gone, left, names.value, names.member, arrival, "0"}
	if doubt {
		words[len(words)-1] = "1"
	}
	return n.yes(ctx, n.scripts.lineup, 5, words)
}

// giveBack frees the lock and leaves the line, for good: left is the key by which the line knows that, if there is doubt.
func (n *node) giveBack(ctx context.Context, names names, left string, inLine, doubt bool) error {
	if doubt {
		return n.releaseKeys(ctx, 5, leaveWords(names, left))
	}
	words := releaseWords(names, false)
	if !inLine {
		words = words[:5]
	}
	return n.releaseKeys(ctx, 4, words)
}

// leaveWords are releaseWords in doubt, with the key by which the line knows that an owner has left for good: that of his first try.
func leaveWords(names names, left string) []string {
	return slices.Insert(releaseWords(names, true), 4, left)
}

// yes executes a script that returns 1 or 0, and may be executed twice, which late says that it may be.
func (n *node) yes(ctx context.Context, s *script, keys int, words []string) (yes, late bool, err error) {
	for i := 1; ; i++ {
		reply, err := n.client.run(ctx, s, keys, words)
		if err == nil && reply == int64(-1) {
			err = errGivenUp
		}
		if err == nil || errors.Is(err, errGivenUp) {
			return reply == int64(1), late, err
		}
		late = late || !isReply(err) && !isDial(err)
		if i == attempts || !pause(ctx, err, i) {
			return false, late, n.client.explain(err)
		}
	}
}
