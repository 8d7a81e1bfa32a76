package peers

import (
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
)

// A mixed fleet has members of each kind, and as many of ours as of all others together.
const (
	ofEachKind  = 2
	mixedRounds = 300 // of all together
	rest        = 200 * time.Millisecond
)

func TestMixedFleet(t *testing.T) {
	t.Parallel()
	testMixedFleet(t, oneServer(t), kinds)
}

// testMixedFleet has all kinds of clients increment a counter as it may only be done under a lock. The tokens of those
// that are ours increase, whoever comes in between.
func testMixedFleet(t *testing.T, s *site, kinds []kind) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience) // far more than it takes: for a deadlock
	defer cancel()

	type member struct {
		kind string
		peer peer
	}
	var tokens []uint64 // appended to under the lock of the fleet, and under mu for the race detector
	var mu sync.Mutex
	granted := func(token uint64) {
		mu.Lock()
		defer mu.Unlock()
		tokens = append(tokens, token)
	}
	var fleet []member
	for _, k := range kinds {
		if k.name == "node-redlock" && !haveNode() {
			t.Log("without node-redlock, as there is none")
			continue
		}
		for range ofEachKind {
			fleet = append(fleet, member{k.name, k.open(t, s)}, member{"ours", lockerPeer{s.locker(t), granted}})
		}
	}

	c := &counter{
		redis.NewClient(&redis.Options{Addr: redistest.Address(t)}), t.Name() + "/" + crand.Text(), atomic.Int32{},
	}
	t.Cleanup(func() { c.rdb.Close() })
	var wg sync.WaitGroup
	each := mixedRounds / len(fleet)
	start := time.Now()
	var order []string // of kinds, as tokens
	for _, m := range fleet {
		wg.Go(func() {
			for i := range each {
				time.Sleep(rand.N(rest)) // or else few kinds would have it all to themselves, one after the other
				h, err := m.peer.lock(ctx, t.Name(), long)
				for errors.Is(err, locker.ErrUnavailable) && ctx.Err() == nil { // servers may be late on a busy machine
					h, err = m.peer.lock(ctx, t.Name(), long)
				}
				if err != nil {
					t.Errorf("%s, round %d: %v", m.kind, i, err)
					return
				}
				if err := c.increment(ctx); err != nil {
					t.Errorf("%s, round %d: %v", m.kind, i, err)
				}
				mu.Lock()
				order = append(order, m.kind)
				mu.Unlock()
				if err := h.unlock(ctx); err != nil {
					t.Errorf("%s, round %d: release: %v", m.kind, i, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d holders in %v; the kind changed %d times", len(order), time.Since(start).Round(time.Millisecond),
		len(slices.Compact(slices.Clone(order)))-1)
	if n := must(c.value(t.Context()))(t); n != each*len(fleet) {
		t.Errorf("%d holders counted to %d", each*len(fleet), n)
	}
	if len(tokens) != each*len(fleet)/2 {
		t.Errorf("%d of our holders have %d tokens", each*len(fleet)/2, len(tokens))
	}
	for i := range len(tokens) - 1 {
		if tokens[i+1] <= tokens[i] {
			t.Errorf("token %d follows %d", tokens[i+1], tokens[i])
		}
	}
}

// haveNode reports whether node-redlock is there. Who asks has a test besides that says if not.
func haveNode() bool {
	_, err := theNode.Get()
	return err == nil
}

// counter is a number in Redis that only one may increment at a time.
type counter struct {
	rdb    redis.UniversalClient
	key    string
	inside atomic.Int32
}

func (c *counter) increment(ctx context.Context) error {
	defer c.inside.Add(-1)
	if c.inside.Add(1) != 1 {
		return errors.New("not alone")
	}
	n, err := c.value(ctx)
	if err != nil {
		return err
	}
	return c.rdb.Set(ctx, c.key, n+1, 0).Err()
}

func (c *counter) value(ctx context.Context) (int, error) {
	s, err := c.rdb.Get(ctx, c.key).Result()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}
