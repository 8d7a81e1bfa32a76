package pglock_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// TestHungSessionAndOthers: of a Locker with leases on two sessions, one hangs. That costs its own lease, and not that
// of the other.
func TestHungSessionAndOthers(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // there are three renewals in it, and the failure of the first is not to be enough
	const together = 10
	server := pgtest.New(t, pgtest.Options{})
	var mu sync.Mutex
	var unlocks []time.Duration
	trials, lost := wires.Trials(t, together), 0
	for begun := 0; begun < trials; begun += together {
		var wg sync.WaitGroup
		for range min(together, trials-begun) {
			wg.Go(func() {
				took, err := besideAHungSession(t, server.URL(), ttl)
				mu.Lock()
				defer mu.Unlock()
				if unlocks = append(unlocks, took); err != nil {
					lost++
					t.Errorf("the lease of the other session: %v", err)
				}
			})
		}
		wg.Wait()
	}
	slices.Sort(unlocks)
	n := len(unlocks)
	t.Logf("%d of %d leases lost; an Unlock took p50 %v, p99 %v", lost, n, unlocks[n/2], unlocks[n*99/100])
}

// besideAHungSession returns what became in three TTLs of a lease on a session that is fine, while another session of
// the same Locker hangs, and how long it took to unlock it.
func besideAHungSession(t *testing.T, url string, ttl time.Duration) (unlock time.Duration, lost error) {
	proxy, dsn := behind(t, url)
	l := open(t, dsn, locker.TTL(ttl))
	hung := mustTry(t, l, unique("key"))
	conns := proxy.Conns()
	healthy := mustTry(t, l, unique("key"), locker.TTL(ttl+time.Millisecond)) // on a session of its own
	for _, c := range conns {
		c.Set(faultproxy.BlackHole())
	}
	select {
	case <-healthy.Done():
		return 0, healthy.Err()
	case <-time.After(3 * ttl):
	}
	if err := hung.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("the lease of the session that hangs: %v; want ErrLost", err)
	}
	start := time.Now()
	mustUnlock(t, healthy)
	return time.Since(start), nil
}

// TestRenewReportsAsItComes: while a session does not answer, what another has answered is known.
func TestRenewReportsAsItComes(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute
	proxy, dsn := behind(t, pgtest.URL(t))
	b := pglock.NewBackend(pool(t, dsn))
	t.Cleanup(func() { _ = b.Close() })
	owners := byte(0)
	grant := func(ttl time.Duration) locker.Grant {
		t.Helper()
		owners++
		r := locker.Request{Key: unique("key"), Owner: locker.Owner{owners}, TTL: ttl}
		g, err := b.Acquire(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		g.Request = r
		return g
	}
	hung := grant(ttl)
	conns := proxy.Conns()
	healthy := grant(ttl + time.Millisecond)
	nobodys := locker.Grant{Request: locker.Request{Key: unique("key"), TTL: ttl}}
	for _, c := range conns {
		c.Set(faultproxy.BlackHole())
	}
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		i int
		r locker.Renewal
	}
	results := make(chan result, 10)
	over := locktest.Started(func() bool {
		b.Renew(ctx, []locker.Grant{hung, nobodys, healthy}, func(i int, r locker.Renewal) { results <- result{i, r} })
		return true
	})
	got := map[int]locker.Renewal{}
	for range 2 { // before ctx ends
		select {
		case r := <-results:
			got[r.i] = r.r
		case <-time.After(20 * time.Second):
			t.Fatalf("only %v have been reported", got)
		}
	}
	if r, ok := got[1]; !ok || !errors.Is(r.Err, locker.ErrLost) {
		t.Errorf("of the grant of nobody: %v; want ErrLost", got)
	}
	if r, ok := got[2]; !ok || r.Err != nil || r.Sent.IsZero() {
		t.Errorf("of the session that is fine: %v; want a renewal, and when it was sent", got)
	}
	cancel()
	over.Get(t)
	close(results) // nothing is reported afterwards
	var late []result
	for r := range results {
		late = append(late, r)
	}
	if len(late) != 1 || late[0].i != 0 || late[0].r.Err == nil || errors.Is(late[0].r.Err, locker.ErrLost) {
		t.Errorf("of the session that hangs: %v; want an error, as it is unknown", late)
	}
}

// TestAcquireAgainOnASessionThatEnds: who has a lock, and asks for it again with the same owner, has it renewed. If the
// session ends meanwhile, that is no loss to whoever wanted a lock.
func TestAcquireAgainOnASessionThatEnds(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	b := pglock.NewBackend(pool(t, dsn))
	t.Cleanup(func() { _ = b.Close() })
	r := locker.Request{Key: key, Owner: locker.Owner{1}, TTL: time.Minute}
	if _, err := b.Acquire(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	asked := pglock.Messages(b)
	proxy.Conns()[0].Set(faultproxy.Fault{ToServer: faultproxy.Flow{Delay: time.Minute}})
	again := locktest.Started(func() error { _, err := b.Acquire(t.Context(), r); return err })
	eventually(t, "the renewal was sent", func() bool { return pglock.Messages(b) > asked })
	takeAway(t, url, key)
	err := again.Get(t)
	if err == nil || errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrLocked) {
		t.Errorf("%v; want an error that is neither ErrLost nor ErrLocked", err)
	}
	eventually(t, "it can be had", func() bool { _, err := b.Acquire(t.Context(), r); return err == nil })
	if n := admin.holders(key); n != 1 {
		t.Errorf("%d have the key", n)
	}
}

// TestLeasesThatEnd are given back, of which the server knows: nothing else ends them as long as the session lives.
func TestLeasesThatEnd(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second // one of them is renewed, in time also when the machine is busy
	url := pgtest.URL(t)
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(ttl))
	kept := mustTry(t, l, unique("key"))
	key := unique("key")
	ends := mustTry(t, l, key, locker.NoRenew())
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	<-ends.Done()
	mustUnlock(t, next.Get(t))
	key = unique("key")
	ends = mustTry(t, l, key, locker.NoRenew())
	<-ends.Done()
	eventually(t, "the server has freed the key", func() bool { return admin.holders(key) == 0 })

	// Of what nobody has said that it is over, it is known all the same.
	key = unique("key")
	r := locker.Request{Key: key, Owner: locker.Owner{1}, TTL: ttl}
	if _, err := l.backend.Acquire(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server has freed the key", func() bool { return admin.holders(key) == 0 })
	if err := kept.Err(); err != nil {
		t.Error(err)
	}
	mustUnlock(t, kept)
	eventually(t, "nothing is left", func() bool { return pglock.Left(l.backend) == "" })
}
