package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// exclusionDefects are broken in how they give locks, and what they take for the same lock.
var exclusionDefects = []defect{
	{
		name:    "acquire checks first and acts then",
		backend: func(_ *testing.T, c *client) locker.Backend { return checkThenAct{c} },
		caught:  []string{"exclusion/OneHolder", "exclusion/Counter"},
		fine:    []string{"exclusion/TryLockHeld", "exclusion/NotReentrant", "unlock/FreesAtOnce", "lease/NoRenew"},
	},
	{
		name:    "reentrant per process",
		backend: func(_ *testing.T, c *client) locker.Backend { return newOwnerPerProcess(c) },
		caught:  []string{"exclusion/NotReentrant", "exclusion/OneHolder"},
		fine:    []string{"exclusion/TryLockHeld", "exclusion/Relock", "unlock/FreesAtOnce", "lease/OutlivesTTL"},
	},
	{
		name:   "TryLock waits",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return tryWaits{l} },
		caught: []string{"exclusion/TryLockHeld"},
		fine:   []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "unlock/FreesAtOnce"},
	},
	{
		name:    "a key blocks those below it",
		backend: func(_ *testing.T, c *client) locker.Backend { return prefixRange{c} },
		caught:  []string{"exclusion/KeysAreIndependent"},
		fine:    []string{"exclusion/OneHolder", "exclusion/PrefixIsolates", "unlock/FreesAtOnce"},
	},
	{
		name:   "keys without regard to case",
		store:  naming(func(r locker.Request) string { return strings.ToLower(r.Name()) }),
		caught: []string{"exclusion/KeysAreIndependent"},
		fine:   []string{"exclusion/OneHolder", "exclusion/PrefixIsolates", "unlock/FreesAtOnce"},
	},
	{
		name: "keys end at a NUL",
		store: naming(func(r locker.Request) string {
			name, _, _ := strings.Cut(r.Name(), "\x00")
			return name
		}),
		caught: []string{"exclusion/KeysAreIndependent", "exclusion/KeyAlphabet"},
		fine:   []string{"exclusion/OneHolder", "exclusion/PrefixIsolates"},
	},
	{
		name:   "keys made valid UTF-8",
		store:  naming(func(r locker.Request) string { return strings.ToValidUTF8(r.Name(), "\uFFFD") }),
		caught: []string{"exclusion/KeyAlphabet"},
		fine:   []string{"exclusion/OneHolder", "exclusion/KeysAreIndependent", "exclusion/PrefixIsolates"},
	},
	{
		name:   "long keys truncated",
		store:  naming(func(r locker.Request) string { return r.Name()[:min(255, len(r.Name()))] }),
		caught: []string{"exclusion/KeyAlphabet"},
		fine:   []string{"exclusion/OneHolder", "exclusion/KeysAreIndependent", "exclusion/PrefixIsolates"},
	},
	{
		name:   "prefix left out",
		store:  naming(func(r locker.Request) string { return r.Key }),
		caught: []string{"exclusion/PrefixIsolates"},
		fine:   []string{"exclusion/OneHolder", "exclusion/KeysAreIndependent"},
	},
}

func naming(nameOf func(locker.Request) string) func(*store) {
	return func(s *store) { s.nameOf = nameOf }
}

// checkThenAct needs two requests for one step.
type checkThenAct struct{ *client }

func (b checkThenAct) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var holder *record
	if err := b.ask(ctx, func(s *store) { holder = s.held[r.Name()] }); err != nil {
		return locker.Grant{}, err
	}
	if holder != nil {
		return locker.Grant{}, locker.ErrLocked
	}
	time.Sleep(time.Millisecond)
	var g locker.Grant
	if err := b.ask(ctx, func(s *store) { g = s.grant(r) }); err != nil {
		return locker.Grant{}, err
	}
	return g, nil
}

// ownerPerProcess takes all that one Locker acquires for one owner's.
type ownerPerProcess struct {
	*client
	owner locker.Owner
}

func newOwnerPerProcess(c *client) ownerPerProcess {
	b := ownerPerProcess{client: c}
	rand.Read(b.owner[:])
	return b
}

func (b ownerPerProcess) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	r.Owner = b.owner
	return b.client.Acquire(ctx, r)
}

func (b ownerPerProcess) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	gs = slices.Clone(gs)
	for i := range gs {
		gs[i].Owner = b.owner
	}
	b.client.Renew(ctx, gs, done)
}

func (b ownerPerProcess) Release(ctx context.Context, g locker.Grant) error {
	g.Owner = b.owner
	return b.client.Release(ctx, g)
}

// prefixRange asks for all keys that begin with its own, as one does who keeps owners at key/owner.
type prefixRange struct{ *client }

func (b prefixRange) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var below bool
	if err := b.ask(ctx, func(s *store) {
		for name := range s.held {
			below = below || strings.HasPrefix(name, r.Name()+"/")
		}
	}); err != nil {
		return locker.Grant{}, err
	}
	if below {
		return locker.Grant{}, locker.ErrLocked
	}
	return b.client.Acquire(ctx, r)
}

// tryWaits is a Locker whose TryLock waits for a while.
type tryWaits struct{ locker.Locker }

func (l tryWaits) TryLock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	lease, err := l.Lock(soon, key, opts...)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = locker.ErrLocked
	}
	return lease, err
}

// waitingDefects are broken in how they wait, and in what they leave behind when they wait no more.
var waitingDefects = []defect{
	{
		name:   "last come, first served",
		store:  func(s *store) { s.turn = func(waiting int) int { return waiting - 1 } },
		caught: []string{"waiting/FIFO"},
		fine:   []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/WakesOnExpiry", "waiting/CancelStorm"},
	},
	{
		name:    "no line at all",
		backend: func(_ *testing.T, c *client) locker.Backend { return c },
		caught:  []string{"waiting/FIFO"},
		fine:    []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/Cancelled"},
	},
	{
		name:    "a line that is not stated",
		backend: func(_ *testing.T, c *client) locker.Backend { return saysNothing{queued{c}} },
		caught:  []string{"waiting/FIFO"},
		fine:    []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/Cancelled"},
	},
	{
		name:    "wake-up lost",
		backend: func(_ *testing.T, c *client) locker.Backend { return asksSeldom{c} },
		caught:  []string{"waiting/WakesOnRelease"},
		fine:    []string{"exclusion/TryLockHeld", "waiting/WakesOnExpiry", "waiting/Cancelled", "unlock/FreesAtOnce"},
	},
	{
		name:   "ctx ignored while waiting",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return waitsForever{l} },
		caught: []string{"waiting/Cancelled", "waiting/DeadlineExceeded", "waiting/HungStore"},
		fine: []string{
			"waiting/WakesOnRelease", "waiting/AlreadyCancelled", "waiting/WaitDoesNotBoundHold", "exclusion/OneHolder",
		},
	},
	{
		name:   "a ctx that has ended is not looked at",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return looksTooLate{l} },
		caught: []string{"waiting/AlreadyCancelled"},
		fine:   []string{"waiting/Cancelled", "waiting/DeadlineExceeded", "waiting/HungStore"},
	},
	{
		name:   "hold bound to the ctx of the wait",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return bindsHold{l} },
		caught: []string{"waiting/WaitDoesNotBoundHold", "unlock/AfterContextEnded"},
		fine:   []string{"exclusion/OneHolder", "waiting/Cancelled", "lease/OutlivesTTL"},
	},
	{
		name:    "orphan after cancel",
		backend: func(_ *testing.T, c *client) locker.Backend { return staysInLine{queued{c}} },
		caught:  []string{"waiting/CancelStorm", "waiting/CancelledWaiterDoesNotBlockQueue", "waiting/Cancelled"},
		fine:    []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/FIFO", "unlock/FreesAtOnce"},
	},
	{
		name:    "orphan after a lost reply",
		backend: func(_ *testing.T, c *client) locker.Backend { return forgetsUnknown{c} },
		caught:  []string{"waiting/LostReply", "backend/UnknownOutcome"},
		fine:    []string{"exclusion/OneHolder", "waiting/Cancelled", "waiting/CancelStorm", "unlock/FreesAtOnce"},
	},
	{
		name:   "an owner who asks again is refused",
		store:  func(s *store) { s.knows = func(_, _ locker.Request) bool { return false } },
		caught: []string{"backend/AcquireAgain"},
		fine:   []string{"exclusion/OneHolder", "waiting/Cancelled", "backend/OwnerDecides", "unlock/FreesAtOnce"},
	},
	{
		name:    "dead store reported as ErrLocked",
		backend: func(_ *testing.T, c *client) locker.Backend { return deadIsLocked{c} },
		caught:  []string{"errors/Typed"},
		fine:    []string{"exclusion/TryLockHeld", "waiting/Cancelled", "lease/DoneBeforeRival"},
	},
	{
		name: "a refused connection taken for a denial",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return classifies{client: c, acquire: locker.ErrDenied}
		},
		caught: []string{"errors/Typed"},
		fine:   []string{"exclusion/TryLockHeld", "waiting/Cancelled", "waiting/HungStore", "lease/DoneBeforeRival"},
	},
	{
		name:   "the cause of ctx in place of its end",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return justCause{l} },
		caught: []string{"waiting/Cancelled", "waiting/AlreadyCancelled", "errors/Typed"},
		fine:   []string{"waiting/DeadlineExceeded", "waiting/WakesOnRelease", "exclusion/OneHolder"},
	},
	{
		name: "a broken connection ends the wait for good",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return classifies{client: c, wait: locker.ErrUnfit}
		},
		caught: []string{"waiting/RidesOut"},
		fine:   []string{"waiting/Cancelled", "waiting/WakesOnRelease", "waiting/FIFO", "waiting/OwnKey"},
	},
	{
		name:    "a wait that does not tell that it was answered",
		backend: func(_ *testing.T, c *client) locker.Backend { return waitsSilently{queued{c}} },
		caught:  []string{"waiting/RidesOut", "waiting/OwnKey"},
		fine:    []string{"waiting/Cancelled", "waiting/WakesOnRelease", "waiting/FIFO", "errors/Typed"},
	},
	{
		name:    "a wait that believes in a place in line that is lost",
		backend: func(_ *testing.T, c *client) locker.Backend { return waitsInVain{queued{c}} },
		caught:  []string{"waiting/RidesOut"},
		fine:    []string{"waiting/Cancelled", "waiting/WakesOnRelease", "waiting/FIFO", "waiting/OwnKey"},
	},
	{
		name:   "whoever waits is named as the holder",
		store:  func(s *store) { s.tells = func(_, caller locker.Request) string { return caller.Holder } },
		caught: []string{"waiting/OwnKey"},
		fine:   []string{"waiting/Cancelled", "waiting/RidesOut", "errors/Typed"},
	},
}

// saysNothing has a line that New does not learn of.
type saysNothing struct{ queued }

func (saysNothing) Features() locker.Features { return locker.Features{} }

// asksSeldom never hears of releases, and asks again only now and then.
type asksSeldom struct{ *client }

func (asksSeldom) Features() locker.Features { return locker.Features{Queue: true} }

func (b asksSeldom) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	for {
		g, err := b.Acquire(ctx, r)
		if !errors.Is(err, locker.ErrLocked) {
			return g, err
		}
		select {
		case <-time.After(r.TTL / 4):
		case <-ctx.Done():
			return locker.Grant{}, context.Cause(ctx)
		}
	}
}

// waitsForever is a Locker that heeds ctx until it starts to wait.
type waitsForever struct{ locker.Locker }

func (l waitsForever) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if ctx.Err() == nil {
		ctx = context.WithoutCancel(ctx)
	}
	return l.Locker.Lock(ctx, key, opts...)
}

// looksTooLate is a Locker that takes the lock if it is free, whatever ctx says.
type looksTooLate struct{ locker.Locker }

func (l looksTooLate) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if lease, err := l.TryLock(ctx, key, opts...); err == nil {
		return lease, nil
	}
	return l.Locker.Lock(ctx, key, opts...)
}

func (l looksTooLate) TryLock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	}
	return l.Locker.TryLock(ctx, key, opts...)
}

// bindsHold is a Locker whose leases end with the ctx that was given to Lock.
type bindsHold struct{ locker.Locker }

func (l bindsHold) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	lease, err := l.Locker.Lock(ctx, key, opts...)
	if err == nil {
		context.AfterFunc(ctx, func() { _ = lease.Unlock() })
	}
	return lease, err
}

// staysInLine says that a wait which was cancelled has left nothing behind, which is not true.
type staysInLine struct{ queued }

func (b staysInLine) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if ctx.Err() != nil {
		err = locker.NotAcquired(err)
	}
	return g, err
}

// forgetsUnknown takes an acquire that went unanswered for one that was not carried out.
type forgetsUnknown struct{ *client }

func (b forgetsUnknown) Release(ctx context.Context, g locker.Grant) error {
	if g.Token == 0 {
		return locker.ErrLost
	}
	return b.client.Release(ctx, g)
}

// deadIsLocked knows two outcomes only: got it, and did not get it.
type deadIsLocked struct{ *client }

func (b deadIsLocked) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	if err != nil {
		err = locker.ErrLocked
	}
	return g, err
}

// classifies gives what goes wrong with a connection a class of its own: in Acquire, and when it breaks in Wait.
type classifies struct {
	*client
	acquire, wait error
}

func (classifies) Features() locker.Features { return locker.Features{Queue: true} }

func (b classifies) as(class, err error) error {
	if class != nil && (errors.Is(err, errRefused) || errors.Is(err, errReset)) {
		return fmt.Errorf("%w: %w", class, err)
	}
	return err
}

func (b classifies) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	return g, b.as(b.acquire, err)
}

func (b classifies) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := queued{b.client}.Wait(ctx, r)
	if errors.Is(err, errReset) {
		err = b.as(b.wait, err)
	}
	return g, err
}

// justCause is a Locker that says why a ctx has ended, and not that it has.
type justCause struct{ locker.Locker }

func (l justCause) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	lease, err := l.Locker.Lock(ctx, key, opts...)
	return lease, l.because(ctx, err)
}

func (l justCause) TryLock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	lease, err := l.Locker.TryLock(ctx, key, opts...)
	return lease, l.because(ctx, err)
}

func (justCause) because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// waitsSilently does not call ReportHolder: what it makes of a request reaches no lease.
type waitsSilently struct{ queued }

func (b waitsSilently) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.queued.Wait(ctx, locker.Request{
		Prefix: r.Prefix, Key: r.Key, Mode: r.Mode, Slots: r.Slots,
		Owner: r.Owner, Holder: r.Holder, TTL: r.TTL, NoRenew: r.NoRenew,
	})
}

// waitsInVain waits on, after its connection has broken, for an answer that can only come over that.
type waitsInVain struct{ queued }

func (b waitsInVain) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if errors.Is(err, errReset) {
		r.ReportRetry(err)
		<-ctx.Done()
		return locker.Grant{}, context.Cause(ctx)
	}
	return g, err
}
