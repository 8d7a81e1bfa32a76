package locker

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Backend is what a store must be able to do to carry locks; New makes a Client of it. It is meant to be small
// enough to write in an afternoon: one attempt, and no waiting, no renewing, no timers. Prove it with package
// conformance. Everything a user sees beyond that (waiting, renewal, loss, deadlines, clean-up, Close) is New's.
// A String method, if there is one, names the backend in errors. A Features method says what else it can do.
//
// Each method may be called by many goroutines at once. For one owner, New makes one call after the other. It calls
// Release when Acquire has returned, also with an error, and never before the result of a renewal of the same grant has
// come. New does not wait for a call that ignores its ctx.
//
// ctx bounds each call: it ends when the answer is of no more use. A client that ignores it does no harm, but
// holds a goroutine until it returns. The ctx of Acquire does not end with the caller's: an attempt whose caller has
// given up has a second more, so that its outcome becomes known, and is then undone. (For backends with
// Features.HeedsContext, it does end with the caller's.)
//
// An error of the store should wrap ErrDenied or ErrUnfit where it is that. Any other counts as ErrUnavailable, and is
// ridden out where that makes sense.
type Backend interface {
	// Acquire makes one attempt to lock r.Name() for r.Owner, and does not wait for a holder to leave. In one atomic
	// step the store must find the key free, set its owner, set its expiry, and mint a token greater than the token of
	// every earlier grant of this key. A key is free, too, when its holder's lease has expired. The expiry is r.TTL
	// from now by the store's own clock. A second call with the same owner, while it holds, returns the same token
	// again and sets the expiry anew: answers get lost, and clients repeat requests. (A store of several servers of
	// which some have failed in between may not know the token for sure, and mint a greater one.)
	//
	// The Grant needs the Token; its Request is filled in by New, except that a TTL in it other than zero is taken for
	// the one that the store has granted.
	//
	// It returns a *Held (or ErrLocked) when there is another owner. Before the store is asked, it returns an error
	// wrapping ErrInvalidOption for a TTL that it cannot keep, and ErrInvalidKey for a key that it cannot store. After
	// any other error the outcome counts as unknown, and New calls Release; NotAcquired around an error saves that,
	// where the lock is certainly not held.
	Acquire(ctx context.Context, r Request) (Grant, error)

	// Renew pushes the expiry of each grant to its TTL from now, and calls done with the index and the result of each
	// as soon as it is known: in any order, from any goroutine, once for each, and before Renew returns. Do not wait
	// for all results to report the first one: what is slow for one grant must not delay the others. A grant without a
	// result counts as unanswered.
	//
	// It must never bring back a lock that the store has let go. New passes the leases that are due at the same time
	// together, up to a thousand, so that a backend can renew them in one round trip. gs is New's: leave it as it is.
	Renew(ctx context.Context, gs []Grant, done func(i int, r Renewal))

	// Release frees the key if g.Owner holds it, and returns ErrLost if not. Owners are compared whole. After other
	// errors, New tries again until the lease has ended; Final around an error says that this would not help.
	//
	// g.Token is 0 when the outcome of the acquire is unknown: Acquire or Wait has returned an error, but the request
	// may have been served, may still be on its way, or was never sent. Release must then leave nothing of g.Owner
	// behind; a store that can do it should see to it that a request which arrives later is refused.
	Release(ctx context.Context, g Grant) error

	// Close frees what the backend itself has opened. New calls it once, after everything held has been released,
	// with no other call under way that still heeded its ctx.
	Close() error
}

// Renewal is the result of the renewal of one grant.
type Renewal struct {
	// Err is nil if the lease was renewed. It is ErrLost if the key has another owner or is free, which it also is if
	// the lease has expired and nobody has taken it since. It is any other error if the outcome is unknown.
	Err error

	// Sent is when the request was sent that was confirmed: validity counts from here. Zero means the moment at which
	// Renew was called. It may be earlier: a backend whose one request renews every lease can report when it sent the
	// last one, and send no other. It is never later than the call.
	Sent time.Time

	// TTL is for how long the store has renewed the lease, if that is not Grant.TTL; zero if it is.
	TTL time.Duration
}

// Features says what a Backend can do beyond the methods of Backend. A Backend with a method
//
//	Features() Features
//
// states it; without that method, the zero value counts. New asks once. What is not stated is not asked of the backend:
// where a user wants it, he gets errors.ErrUnsupported. So a backend that is older than a feature never misunderstands
// a request.
type Features struct {
	// HeedsContext: Acquire, Wait and Release return as soon as their ctx ends, whatever the store does, and need no
	// goroutine of New's to see to that. They are then called on the caller's own goroutine, which is faster, with a
	// ctx that does end with the caller's.
	HeedsContext bool

	// Queue: the backend implements Queue. Without it, Lock polls with Acquire, backing off, which is neither fair nor
	// as fast.
	Queue bool

	// Expirer: the backend implements Expirer.
	Expirer bool

	// Shared: Acquire and Wait know Request.Mode ModeShared.
	Shared bool

	// Slots: Acquire and Wait know Request.Mode ModeSlots.
	Slots bool

	// Inspect: the backend implements Inspector.
	Inspect bool

	// Revoke: the backend implements Revoker.
	Revoke bool

	// MinHold: Release heeds Grant.Keep.
	MinHold bool

	// Adopt: the backend implements Adopter.
	Adopt bool
}

// offer returns errors.ErrUnsupported if the backend cannot do what is asked of it.
func (f Features) offer(m Mode, minHold time.Duration) error {
	switch {
	case minHold > 0 && !f.MinHold:
		return fmt.Errorf("%w: to keep a key beyond Unlock (MinHold)", errors.ErrUnsupported)
	case m == ModeShared && !f.Shared:
		return fmt.Errorf("%w: shared locks", errors.ErrUnsupported)
	case m == ModeSlots && !f.Slots:
		return fmt.Errorf("%w: locks with several slots", errors.ErrUnsupported)
	}
	return nil
}

// Queue is implemented by a Backend whose store has a waiting line of its own, and which states Features.Queue.
type Queue interface {
	// Wait is Acquire that waits for its turn: it returns when r.Owner has the lock, when the store says something
	// that is not an answer, or when ctx ends, and then promptly. It tries at once, and joins the line in the same
	// step if refused. It sets Grant.Sent to the moment before it sent the request that was granted.
	//
	// Wait calls r.ReportHolder as soon as the store has answered that the key is held, also if it does not know by
	// whom. From then on an error of the class ErrUnavailable does not end the user's Lock: New calls Wait again after
	// a pause, for another owner, who joins the line at its end. A backend that can keep its place in line meanwhile
	// does not return such an error, but calls r.ReportRetry and goes on.
	//
	// ctx is derived from the caller's. When it ends, Wait leaves the line, or returns an error for which New calls
	// Release, which must then do so; a lock granted at that moment is returned or given up, never kept.
	Wait(ctx context.Context, r Request) (Grant, error)
}

// Expirer is implemented by a Backend that wants to know of leases that have ended by themselves, and which states
// Features.Expirer: one whose store keeps a lock alive for as long as a connection or a session lives, say.
type Expirer interface {
	// Expired is called soon after the deadline of leases has passed without a renewal in time, when their holders have
	// been told: nobody will renew or release them any more, and their keys may be freed. It must not wait for the
	// store. It is not called for leases that the backend itself has reported as lost.
	Expired(gs []Grant)
}

// Mode is what a lock lets others do.
type Mode uint8

// The modes of a Request.
const (
	ModeExclusive Mode = iota // one holder
	ModeShared                // any number of holders that are all shared
	ModeSlots                 // at most Request.Slots holders
)

// String returns "exclusive", "shared" or "slots".
func (m Mode) String() string {
	switch m {
	case ModeExclusive:
		return "exclusive"
	case ModeShared:
		return "shared"
	case ModeSlots:
		return "slots"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Owner identifies one acquisition: 128 random bits, constant for the life of a lease. It is what ownership is
// decided by; the fencing token is another thing.
type Owner [16]byte

// String returns the owner as 32 hexadecimal digits.
func (o Owner) String() string { return hex.EncodeToString(o[:]) }

// newOwner returns a fresh Owner. The generator of math/rand/v2 is ChaCha8, seeded by the operating system;
// owners must be unique, not secret: who can write to the store can break its locks anyhow.
func newOwner() (o Owner) {
	binary.NativeEndian.PutUint64(o[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(o[8:], rand.Uint64())
	return o
}

// Request asks a Backend for a lock. Fields may be added to it.
type Request struct {
	Prefix  string // of the Client; "" unless the option Prefix was given
	Key     string // as the caller wrote it: 1 to MaxKeyLen bytes of any value
	Mode    Mode   // ModeExclusive, or what Features states
	Slots   int    // with ModeSlots, how many holders there may be; else 0
	Owner   Owner
	Holder  string        // a name for people, to be stored beside the owner and returned in Held; may be ""
	TTL     time.Duration // of the lease, from the moment when the store grants it
	NoRenew bool          // the lease will not be renewed: it ends with its TTL
	MinHold time.Duration // how long the key is to be kept from others, from the grant on: see Grant.Keep; or 0

	lease *Lease // who is told; nil when the request does not come from a Client
}

// Name returns the key with its prefix: two requests are for the same lock if their names are equal.
func (r Request) Name() string { return r.Prefix + r.Key }

// ReportLost tells the holder that the store has taken the lock away. A backend calls it when it learns of a loss
// otherwise than by Renew, before anybody else can be granted the lock: a session ended, an operator freed the
// key. It returns when the lease's Done is closed. cause becomes part of Lease.Err. Not for the losses that Renew
// reports. It has no effect on a lease that has ended; a request that is granted after it is given back, and fails.
func (r Request) ReportLost(cause error) { ReportLost([]Request{r}, cause) }

// ReportLost is Request.ReportLost for many requests, such as those that had locks in a session that has ended. Their
// holders are told on all processors, and sooner than one after the other.
func ReportLost(rs []Request, cause error) {
	rs = slices.DeleteFunc(slices.Clone(rs), func(r Request) bool { return r.lease == nil })
	for len(rs) > 0 {
		c := rs[0].lease.client
		others := slices.IndexFunc(rs, func(r Request) bool { return r.lease.client != c })
		if others < 0 {
			others = len(rs)
		}
		c.lose(rs[:others], cause)
		rs = rs[others:]
	}
}

// ReportHolder tells that the store has answered a Wait: the lock is held, by the holder of that name, "" if it is not
// known. A wait that ends by its ctx says so.
func (r Request) ReportHolder(holder string) {
	if r.lease != nil {
		r.lease.setWaitsFor(r.Owner, holder)
	}
}

// ReportRetry tells that a Wait goes on after a failure, in its place in line. Observers are told.
func (r Request) ReportRetry(failure error) {
	if r.lease != nil {
		r.lease.goesOn(r.Owner, failure)
	}
}

// Grant is a lock that a Backend has given.
type Grant struct {
	Request
	Token uint64 // the fencing token; never 0
	Slot  int    // with ModeSlots, which of the numbers 0 to Slots-1 the owner has, and no other holder; else 0

	// Sent is a moment before the request that was granted was sent, with its monotonic clock reading: validity
	// counts from here. Acquire may leave it zero for the moment of its call. Wait must set it.
	Sent time.Time

	// Keep is set for Release alone, with Features.MinHold: the owner gives the lock back, and is done with it, but
	// nobody else gets the key before so much time has passed. It is what is left of MinHold, and may be longer than
	// the TTL.
	Keep time.Duration

	// Private is for the backend: what it sets here is handed back to Renew, Release and Expired, and returned by
	// GrantOf. It is nil in what Release gets for an acquire whose outcome is unknown.
	Private any
}

// validFor is how long a lease may be trusted after its request was sent. The holder's clock and the store's may
// run at slightly different rates, so the holder gives up 1 % and 2 ms early: the drift of the Redlock algorithm
// (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).
func validFor(ttl time.Duration) time.Duration {
	return ttl - ttl/100 - 2*time.Millisecond
}
