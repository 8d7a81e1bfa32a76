package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// FuzzRevokedMessage has messages of whoever may send on the channel. They name whom they name, and crash nothing.
func FuzzRevokedMessage(f *testing.F) {
	owner := locker.Owner{1, 2, 15: 255}
	for _, kind := range []string{"r", "b", "", "x", "rr"} {
		for _, why := range []string{"by why", "by", "", "% %zz", "by why and"} {
			text := owner.String()
			for _, whom := range []string{text, text + "00", text[:31], "", ",", "," + text} {
				f.Add(kind + " " + why + " " + whom)
			}
		}
	}
	f.Fuzz(func(t *testing.T, message string) {
		l := newLeases(func() {})
		l.held[owner] = lease{}
		l.heard(message)
		last := message[strings.LastIndexByte(message, ' ')+1:]
		named := slices.Contains(strings.Split(strings.ToLower(last), ","), owner.String())
		if told := len(l.held) == 0; told && !named {
			t.Errorf("%q is about a holder that it does not name", message)
		}
		if message == "r by why "+owner.String() && len(l.held) > 0 {
			t.Errorf("%q is about nobody", message)
		}
	})
}

// TestRevokedAsksAgain: an owner whose lock was revoked before it knew that it had it is told so when it asks again,
// and leaves nothing behind. A request of it that comes late changes nothing.
func TestRevokedAsksAgain(t *testing.T) {
	t.Parallel()
	for _, mode := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		for _, join := range []bool{false, true} {
			b := testBackend(t)
			r := inMode(t, 1, mode, 1)
			mustAcquire(t, b, r) // whose answer is lost
			if err := b.Revoke(t.Context(), r.Name(), &locker.Revocation{}); err != nil {
				t.Fatal(err)
			}
			a := Attempt{Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL, Join: join, Unanswered: 1}
			if refused, err := b.Try(t.Context(), &a); !errors.Is(err, locker.ErrRevoked) || !errors.Is(err,
				locker.ErrLost) {
				t.Errorf("%v, join %v: asked again, it has %+v, %v; want ErrLost with ErrRevoked", mode, join, refused,
					err)
			}
			if _, err := b.Acquire(t.Context(), inMode(t, 2, locker.ModeExclusive, 0)); !errors.Is(err,
				locker.ErrLocked) {
				t.Errorf("%v, join %v: before it is given back, another owner has %v; want ErrLocked", mode, join, err)
			}
			mustRelease(t, b, locker.Grant{Request: r})
			nothingIsLeft(t, b, r)
		}
	}
}

// TestRevokeLeavesOutNobody has holders who were told give back, and others renew, while those behind them are looked
// at.
func TestRevokeLeavesOutNobody(t *testing.T) {
	t.Parallel()
	for _, apart := range []time.Duration{0, time.Millisecond} { // between the ends of two leases
		const readers = 2200
		var revoking atomic.Pointer[func()]
		rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t), DisableIdentity: true})
		rdb.AddHook(redistest.Hook(func(cmds ...redis.Cmder) {
			f := revoking.Load()
			if sha, ok := cmds[0].Args()[1].(*string); ok && *sha == scripts.Default().Revoke.SHA && f != nil {
				(*f)()
			}
		}))
		b, err := Config{}.New(rdb, NewProcess(), rdb.Close)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		r := inMode(t, 1, locker.ModeShared, 0)
		n := scripts.NamesOf(r, b.Line.Process)
		mustAcquire(t, b, r)
		end := time.Now().Add(time.Minute)
		holders := make([]redis.Z, readers)
		for i := range holders {
			owner := locker.Owner{9, byte(i), byte(i >> 8)}
			holders[i] = redis.Z{Score: float64(end.Add(time.Duration(i) * apart).UnixMilli()), Member: owner.String()}
		}
		ctx := context.Background()
		b.Client.ZAdd(ctx, n.Holders, holders...)
		b.Client.PExpireAt(ctx, n.Lock, end.Add(time.Minute))
		mustRelease(t, b, locker.Grant{Request: r, Token: 1})

		runs, other := 0, testBackend(t)
		between := func() {
			runs++
			released := 0
			if runs > 6 {
				return
			}
			for i, member := range other.Client.ZRange(ctx, n.Holders, 0, 999).Val() {
				switch revoked := strings.HasPrefix(member, "locker:revoked:"); {
				case revoked && runs%3 == 0 && released < 500:
					released++
					other.Client.ZRem(ctx, n.Holders, member)
				case !revoked && runs == 2 && i%8 == 0:
					other.Client.ZIncrBy(ctx, n.Holders, 20_000, member)
				}
			}
		}
		revoking.Store(&between)
		bounded, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err = b.Revoke(bounded, r.Name(), &locker.Revocation{})
		cancel()
		if err != nil {
			t.Fatalf("ends %v apart: %v, after %d runs", apart, err, runs)
		}
		left := slices.DeleteFunc(b.Client.ZRange(ctx, n.Holders, 0, -1).Val(), func(member string) bool {
			return strings.HasPrefix(member, "locker:revoked:")
		})
		if len(left) > 0 || runs < 4 {
			t.Errorf("ends %v apart: %d of %d holders were left out, in %d runs", apart, len(left), readers, runs)
		}
		b.Client.Del(ctx, n.Lock, n.Holders)
	}
}

// TestLeasesAreForgotten: what is kept of leases that nobody renews or releases any more is bounded.
func TestLeasesAreForgotten(t *testing.T) {
	for name, note := range map[string]func(*leases, locker.Request){
		"granted": func(l *leases, r locker.Request) { l.granted(r, false) },
		"renewed": func(l *leases, r locker.Request) { l.renewed([]locker.Grant{{Request: r}}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLeases(func() {})
				longest := 0
				for i := range 50_000 {
					owner := locker.Owner{byte(i), byte(i >> 8), byte(i >> 16)}
					note(l, locker.Request{Owner: owner, TTL: time.Second})
					longest = max(longest, len(l.held))
					time.Sleep(10 * time.Millisecond) // a hundred are alive
				}
				if longest > 5000 {
					t.Errorf("%d leases were kept, of which a hundred were alive", longest)
				}
				if !l.any() {
					t.Error("those that are alive are forgotten")
				}
				time.Sleep(time.Second)
				if l.any() || len(l.held) > 0 {
					t.Errorf("%d leases are kept that are over", len(l.held))
				}
			})
		})
	}
}

// TestShortLocksAreNotListenedFor: a Locker that holds each lock for a moment needs no connection to listen, whatever
// their number; one that holds a lock for longer does, once.
func TestShortLocksAreNotListenedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var listens atomic.Int32
		l := newLeases(func() { listens.Add(1) })
		owner := func(i int) locker.Owner { return locker.Owner{byte(i), byte(i >> 8)} }
		for i := range 1000 {
			l.granted(locker.Request{Owner: owner(i), TTL: time.Minute}, false)
			time.Sleep(listenAfter / 5)
			l.released(owner(i - i%2)) // half of them a little later
			l.released(owner(i - 1))
		}
		if n := listens.Load(); n > 0 {
			t.Errorf("%d times, for locks that were held for %v", n, listenAfter/5*2)
		}
		begun := time.Now()
		l.granted(locker.Request{Owner: owner(0), TTL: time.Minute}, false)
		for listens.Load() == 0 && time.Since(begun) < time.Second {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(begun); took < listenAfter || took > 2*listenAfter+time.Millisecond {
			t.Errorf("it listens after %v; want %v to twice that", took, listenAfter)
		}
		time.Sleep(time.Minute)
		if n := listens.Load(); n != 1 {
			t.Errorf("it began to listen %d times for one lock", n)
		}
	})
}

// TestRevokeOfAnotherKind: a lock that nearly looks like one of ours is left alone. One without an end would never be
// free again: who set it does not know it by the mark of a revocation.
func TestRevokeOfAnotherKind(t *testing.T) {
	t.Parallel()
	b := testBackend(t)
	r := newRequest(t, 1)
	hex := strings.Repeat("0123456789abcdef", 2)
	for value, ttl := range map[string]time.Duration{hex: 0, hex + "0": time.Minute, hex[1:]: time.Minute} {
		b.Client.Set(t.Context(), r.Name(), value, ttl)
		if err := b.Revoke(t.Context(), r.Name(), &locker.Revocation{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Revoke of %q: %v; want ErrUnsupported", value, err)
		}
		if got := b.Client.Get(t.Context(), r.Name()).Val(); got != value {
			t.Errorf("the lock is set to %q; want %q", got, value)
		}
	}
	b.Client.Del(t.Context(), r.Name())
}

// TestListensForLeases: there is somebody to listen for while any lease goes on, whoever has renewed last.
func TestListensForLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Line{leases: newLeases(func() {})}
		if !l.retire() {
			t.Error("it listens for nobody")
		}
		long, short := newRequest(t, 1), newRequest(t, 2)
		long.TTL, short.TTL = time.Hour, time.Second
		l.leases.renewed([]locker.Grant{{Request: long}, {Request: short}})
		l.leases.renewed([]locker.Grant{{Request: short}})
		time.Sleep(time.Minute)
		if l.retire() {
			t.Error("it does not listen, and there is a lease of an hour")
		}
		l.leases.released(long.Owner)
		if !l.retire() {
			t.Error("it listens when the last lease has been given back")
		}
	})
}

// TestRevokedInLine: a waiter whose lock was revoked before it knew of it does not ask again and again.
func TestRevokedInLine(t *testing.T) {
	t.Parallel()
	b := testBackend(t)
	r := newRequest(t, 1)
	n := scripts.NamesOf(r, b.Line.Process)
	b.Client.Set(t.Context(), n.Lock, "locker:revoked:"+n.Value, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := b.WaitFrom(ctx, r, &Place{Arrival: "1"})
	if !errors.Is(err, locker.ErrRevoked) {
		t.Errorf("WaitFrom: %v; want ErrRevoked", err)
	}
	for b.Client.Exists(ctx, n.Lock).Val() > 0 { // it is given back in the background
		if ctx.Err() != nil {
			t.Fatal("it is not given back")
		}
		time.Sleep(time.Millisecond)
	}
}

// FuzzRevokeReply has answers of revoke.lua.
func FuzzRevokeReply(f *testing.F) {
	for _, reply := range []string{"0 ", "1 ", "500 1795991392", "500 (1795991392", "-1 ", "left", "", " ", "x y"} {
		f.Add(reply)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		taken, more, err := parseTaken(reply)
		if err == nil && (taken < 0 || !strings.HasSuffix(reply, " "+more)) || err != nil && (taken != 0 ||
			more != "") {
			t.Errorf("%q: %d, %q, %v", reply, taken, more, err)
		}
		for _, odd := range []any{nil, int64(1), []any{reply}} {
			if _, _, err := parseTaken(odd); err == nil {
				t.Errorf("%v is an answer", odd)
			}
		}
	})
}

// TestRevokedLeaseEndsAsItWas: neither a renewal nor a request that comes again prolongs a lease that was revoked, and
// why it was is kept for no longer.
func TestRevokedLeaseEndsAsItWas(t *testing.T) {
	t.Parallel()
	for _, mode := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		b := testBackend(t)
		r := inMode(t, 1, mode, 1)
		n := scripts.NamesOf(r, b.Line.Process)
		g := mustAcquire(t, b, r)
		if err := b.Revoke(t.Context(), r.Name(), &locker.Revocation{}); err != nil {
			t.Fatal(err)
		}
		g.TTL = time.Hour
		if err := renewAll(t, b, g)[0]; !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrRevoked) {
			t.Errorf("%v: renewal: %v; want ErrLost with ErrRevoked", mode, err)
		}
		a := Attempt{Names: n, TTL: time.Hour}
		if _, err := b.Try(t.Context(), &a); !errors.Is(err, locker.ErrRevoked) {
			t.Errorf("%v: asked again: %v; want ErrRevoked", mode, err)
		}
		for _, name := range []string{n.Lock, scripts.NoteOf(n)} {
			if left := b.Client.PTTL(t.Context(), name).Val(); left <= 0 || left > r.TTL+time.Millisecond {
				t.Errorf("%v: %q expires in %v; want at most %v", mode, name, left, r.TTL)
			}
		}
		mustRelease(t, b, g)
		nothingIsLeft(t, b, r)
	}
}

// TestBrokenTokenIsKept: the token that Break mints is greater than the one before, also if the server's clock has been
// set back since, and is kept for as long as that would have been.
func TestBrokenTokenIsKept(t *testing.T) {
	t.Parallel()
	b := testBackend(t)
	r := newRequest(t, 1)
	r.TTL = 3 * scripts.DefaultTokenRetention
	n := scripts.NamesOf(r, b.Line.Process)
	for _, ahead := range []time.Duration{0, time.Hour} {
		last := mustAcquire(t, b, r).Token
		if ahead > 0 {
			last += uint64(ahead.Microseconds())
			b.Client.Set(t.Context(), n.Fence, last, redis.KeepTTL)
		}
		if err := b.Break(t.Context(), r.Name(), &locker.Revocation{Broken: true}, false); err != nil {
			t.Fatal(err)
		}
		token, _ := b.Client.Get(t.Context(), n.Fence).Uint64()
		if left := b.Client.PTTL(t.Context(), n.Fence).Val(); token <= last || left < r.TTL-time.Minute {
			t.Errorf("token %d after %d, kept for %v; want a greater one, for %v", token, last, left, r.TTL)
		}
		nothingIsLeft(t, b, r)
		b.Client.Del(t.Context(), n.Fence)
	}
}

// TestRevocationIsHeard: who has renewed a lease is told of a revocation by a message, unless the lease has been given
// back.
func TestRevocationIsHeard(t *testing.T) {
	t.Parallel()
	b, other := testBackend(t), testBackend(t)
	held := func() int {
		b.Line.leases.mu.Lock()
		defer b.Line.leases.mu.Unlock()
		return len(b.Line.leases.held)
	}
	g := mustAcquire(t, b, newRequest(t, 1))
	if err := renewAll(t, b, g)[0]; err != nil || held() != 1 {
		t.Fatalf("renewal: %v; %d are kept in mind", err, held())
	}
	mustRelease(t, b, g)
	if held() != 0 {
		t.Error("a lease that was given back is kept in mind")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for owner := byte(2); ; owner++ { // until it has subscribed
		r := newRequest(t, owner)
		r.TTL = time.Minute
		g := mustAcquire(t, b, r)
		if err := renewAll(t, b, g)[0]; err != nil {
			t.Fatal(err)
		}
		if err := other.Revoke(ctx, r.Name(), &locker.Revocation{}); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(100 * time.Millisecond); held() > 0 && time.Now().Before(until); {
			time.Sleep(time.Millisecond)
		}
		heard := held() == 0
		mustRelease(t, b, g)
		if heard {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("no revocation is heard")
		}
	}
}
