package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// testBackend returns a backend on the server that the tests share.
func testBackend(t *testing.T) *Server {
	return testBackendOn(t, redistest.Address(t))
}

// testBackendOn returns a backend on a server.
func testBackendOn(t *testing.T, addr string) *Server {
	rdb := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	b, err := Config{}.New(rdb, NewProcess(), rdb.Close)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// renewAll returns the errors of one Renew.
func renewAll(t *testing.T, b locker.Backend, grants ...locker.Grant) []error {
	t.Helper()
	var mu sync.Mutex
	errs, calls := make([]error, len(grants)), make([]int, len(grants))
	b.Renew(t.Context(), grants, func(i int, r locker.Renewal) {
		mu.Lock()
		defer mu.Unlock()
		errs[i] = r.Err
		calls[i]++
	})
	for i, n := range calls {
		if n != 1 {
			t.Errorf("%d results for grant %d", n, i)
		}
	}
	return errs
}

func newRequest(t *testing.T, owner byte) locker.Request {
	r := locker.Request{Prefix: "test:", Key: t.Name(), Owner: locker.Owner{owner}, TTL: 10 * time.Second}
	binary.NativeEndian.PutUint64(r.Owner[1:], rand.Uint64()) // what an earlier one has left is not for this one
	return r
}

func TestAcquireTwiceIsOneGrant(t *testing.T) {
	b, ctx, r := testBackend(t), t.Context(), newRequest(t, 1)
	first, err := b.Acquire(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Acquire(ctx, r)
	if err != nil || second.Token != first.Token {
		t.Errorf("the same owner again: token %d, %v; want %d", second.Token, err, first.Token)
	}
	if err := b.Release(ctx, second); err != nil {
		t.Error(err)
	}
	if err := b.Release(ctx, first); !errors.Is(err, locker.ErrLost) {
		t.Errorf("released twice: %v; want ErrLost", err)
	}
}

// TestLateRequestIsRefused has the clean-up of an acquire arrive before the acquire itself.
func TestLateRequestIsRefused(t *testing.T) {
	b, ctx, r := testBackend(t), t.Context(), newRequest(t, 1)
	if err := b.Release(ctx, locker.Grant{Request: r}); !errors.Is(err, locker.ErrLost) {
		t.Errorf("clean-up of what is not there: %v; want ErrLost", err)
	}
	if _, err := b.Acquire(ctx, r); err == nil || errors.Is(err, locker.ErrLocked) {
		t.Errorf("an acquire that arrives after its clean-up: %v; want it refused", err)
	}
	other, err := b.Acquire(ctx, newRequest(t, 2))
	if err != nil {
		t.Fatalf("another owner: %v", err)
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := b.Wait(wait, r); err == nil || wait.Err() != nil {
		t.Errorf("a Wait that arrives after its clean-up: %v; want it refused at once", err)
	}
	if err := b.Release(ctx, other); err != nil {
		t.Error(err)
	}
}

// TestLateRequestKeepsTheMark: of an owner who has given up, a late request that is refused, as somebody has the lock,
// does not have a later one granted.
func TestLateRequestKeepsTheMark(t *testing.T) {
	b := testBackend(t)
	gone, other := newRequest(t, 1), newRequest(t, 2)
	n := scripts.NamesOf(gone, b.Line.Process)
	if err := b.Release(t.Context(), locker.Grant{Request: gone}); !errors.Is(err, locker.ErrLost) {
		t.Fatalf("giving up what is not held: %v", err)
	}
	held := mustAcquire(t, b, other)
	late := func(unanswered int) error {
		a := Attempt{Names: n, TTL: gone.TTL, Unanswered: unanswered}
		refusal, err := b.Try(t.Context(), &a)
		if err == nil && refusal == nil {
			t.Errorf("an owner who has given up was granted the lock, by his request after %d others", unanswered)
		}
		return err
	}
	if err := late(1); err != nil {
		t.Errorf("while somebody has the lock: %v; want a refusal", err)
	}
	mustRelease(t, b, held)
	if err := late(2); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("when it is free: %v; want ErrGivenUp", err)
	}
}

func TestReleaseComparesOwnersWhole(t *testing.T) {
	b, ctx, r := testBackend(t), t.Context(), newRequest(t, 1)
	g, err := b.Acquire(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*locker.Grant){
		func(g *locker.Grant) { g.Owner[15]++ },
		func(g *locker.Grant) { g.Holder = "x" }, // the value then begins like the one that is there
	} {
		stranger := g
		change(&stranger)
		if err := b.Release(ctx, stranger); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Release by %v %q: %v; want ErrLost", stranger.Owner, stranger.Holder, err)
		}
		if err := renewAll(t, b, stranger)[0]; !errors.Is(err, locker.ErrLost) {
			t.Errorf("Renew by %v %q: %v; want ErrLost", stranger.Owner, stranger.Holder, err)
		}
	}
	if err := b.Release(ctx, g); err != nil {
		t.Error(err)
	}
}

func TestRenewManyAtOnce(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	const n = 2*renewTogether + 7
	grants := make([]locker.Grant, n)
	for i := range grants {
		r := newRequest(t, byte(i))
		r.Key = t.Name() + string(rune('a'+i))
		var err error
		if grants[i], err = b.Acquire(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	lost := map[int]bool{0: true, renewTogether: true, n - 1: true}
	for i := range lost {
		if err := b.Release(ctx, grants[i]); err != nil {
			t.Fatal(err)
		}
	}
	name := grants[1].Name()
	b.Client.PExpire(ctx, name, time.Second)
	for i, err := range renewAll(t, b, grants...) {
		if errors.Is(err, locker.ErrLost) != lost[i] || err != nil && !lost[i] {
			t.Errorf("renewal of %d: %v", i, err)
		}
	}
	if ttl := b.Client.PTTL(ctx, name).Val(); ttl < 9*time.Second {
		t.Errorf("after the renewal the lock expires in %v", ttl)
	}
	for i := range lost {
		if n := b.Client.Exists(ctx, grants[i].Name()).Val(); n != 0 {
			t.Error("a renewal has brought a lock back")
		}
	}
	for i, g := range grants {
		if !lost[i] {
			_ = b.Release(ctx, g)
		}
	}
}

// oneOfEach has a lock in each mode.
func oneOfEach(t *testing.T, b *Server) (grants []locker.Grant) {
	for mode := range locker.ModeSlots + 1 {
		r := inMode(t, 1, mode, 0)
		if r.Key = fmt.Sprint(r.Key, mode); mode == locker.ModeSlots {
			r.Slots = 2
		}
		grants = append(grants, mustAcquire(t, b, r))
	}
	return grants
}

// TestRenewsOnAFullServer: who has a lock keeps it when the server has no memory left.
func TestRenewsOnAFullServer(t *testing.T) {
	b := testBackendOn(t, redistest.New(t, redistest.Options{}).Addr())
	grants := oneOfEach(t, b)
	if err := b.Client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	for i, err := range renewAll(t, b, grants...) {
		if err != nil {
			t.Errorf("renewal in mode %d: %v", grants[i].Mode, err)
		}
	}
	mustRelease(t, b, grants...)
}

// TestRenewsOnAReplica: after a renewal that finds a master to be a replica, the connection is not used any more. The
// next one may lead to the new master.
func TestRenewsOnAReplica(t *testing.T) {
	b, ctx := testBackendOn(t, redistest.New(t, redistest.Options{}).Addr()), t.Context()
	grants := oneOfEach(t, b)
	if err := b.Client.Do(ctx, "replicaof", "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	for _, g := range grants {
		before := b.Client.ClientID(ctx).Val()
		if err := renewAll(t, b, g)[0]; !errors.Is(err, conn.ErrReadOnly) {
			t.Errorf("renewal in mode %d: %v; want %v", g.Mode, err, conn.ErrReadOnly)
		}
		if after := b.Client.ClientID(ctx).Val(); after == before || after == 0 {
			t.Errorf("after a renewal in mode %d, connection %d follows connection %d; want another one", g.Mode, after, before)
		}
	}
}

// TestAskedAgainAfterSilence: who asks again, as there was no answer, is not taken for the earlier request, which is
// refused when it comes late.
func TestAskedAgainAfterSilence(t *testing.T) {
	b, ctx, r := testBackend(t), t.Context(), newRequest(t, 1)
	ask := func(unanswered int) (token uint64, refused *Refusal, err error) {
		a := Attempt{Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL, Unanswered: unanswered}
		refused, err = b.Try(ctx, &a)
		return a.Token, refused, err
	}
	other, err := b.Acquire(ctx, newRequest(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	if _, refused, err := ask(1); refused == nil || err != nil { // and let the answer to this be lost, too
		t.Fatalf("the lock is held: %v, %v", refused, err)
	}
	if err := b.Release(ctx, other); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(0); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("the first request, which comes late: %v; want %v", err, conn.ErrGivenUp)
	}
	if token, refused, err := ask(12); token == 0 {
		t.Errorf("asked again, for a key that is free: %v, %v", refused, err)
	}
	if err := b.Release(ctx, locker.Grant{Request: r}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(13); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("a request that comes when its owner has given up: %v; want %v", err, conn.ErrGivenUp)
	}
	other = mustAcquire(t, b, newRequest(t, 3))
	if token, _, _ := ask(14); token != 0 {
		t.Errorf("another one, when the key is locked, has token %d", token)
	}
	mustRelease(t, b, other)
	if _, _, err := ask(15); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("and one more, when it is free: %v; want %v", err, conn.ErrGivenUp)
	}
}

// TestWaitsAgainAfterSilence has an owner give a lock back, as one does that too few replicas have received, and wait
// for it again. One of its first requests was not answered, and is refused: those of the second wait are not.
func TestWaitsAgainAfterSilence(t *testing.T) {
	b, ctx, r := testBackend(t), t.Context(), newRequest(t, 1)
	place := Place{Unanswered: 1}
	for range 2 {
		g, err := b.WaitFrom(ctx, r, &place)
		if err != nil || place.Unanswered != 1 {
			t.Fatalf("%v; then %d requests are unanswered, want 1", err, place.Unanswered)
		}
		mustRelease(t, b, g)
	}
	if _, err := b.WaitFrom(ctx, r, &Place{}); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("a request from before: %v; want %v", err, conn.ErrGivenUp)
	}
}
