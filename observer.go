package locker

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// Observer is told what becomes of locks and leases: see the option Observe. Each function may be nil; more will be
// added. (The shape comes from net/http/httptrace.ClientTrace.)
//
// The functions are called outside of all locks of this library, from many goroutines. LockStart, LockDone and, for an
// Unlock, LeaseDone are called on the goroutine of the caller, who waits for them. The others come one after the other
// on a goroutine of their own, so that they delay nothing, and may come late; if they are slower than the renewals,
// some Renewed are left out. None of them is called for Ping.
type Observer struct {
	// LockStart is called when Lock, TryLock or Adopt begins. The backend's calls for this acquisition get contexts
	// with the values of the one that it returns. So the spans of a store's client become children of a span begun
	// here. It is also passed to LockDone. When it ends does not matter. A nil context means ctx.
	LockStart func(ctx context.Context, info LockStartInfo) context.Context

	// LockDone is called before one of these returns, with the context that LockStart has returned.
	LockDone func(ctx context.Context, info LockDoneInfo)

	// LeaseDone is called when a lease has ended: at once if it was lost, and when the store has answered, or has
	// failed to, if it was unlocked. It is called once for each LockDone without an error, and after it.
	LeaseDone func(info LeaseDoneInfo)

	// Renewed is called when the result of a renewal has come. How much validity was left then, compared with the TTL,
	// is the earliest sign that leases are going to be lost.
	Renewed func(info RenewedInfo)

	// Retry is called when a Lock goes on waiting after a failure, and when Lead campaigns again after one. (Lead tells
	// only the Observers of a Client, or of what embeds one.)
	Retry func(info RetryInfo)

	// Revoked is called before Revoke or Break returns, on the caller's goroutine: by the one who took a lock away.
	// Who lost it is told by LeaseDone.
	Revoked func(info RevokedInfo)
}

// LockStartInfo describes a Lock, TryLock or Adopt that begins.
type LockStartInfo struct {
	Op    string // "lock", "trylock" or "adopt"
	Key   string // as the caller wrote it
	Store string // the name of the backend: "redis", "postgres", ...
	Mode  Mode   // what is asked for, as far as the options are valid
}

// LockDoneInfo describes a Lock, TryLock or Adopt that has ended.
type LockDoneInfo struct {
	Op    string
	Key   string
	Store string
	Mode  Mode // the same as in LockStartInfo

	Waited time.Duration // since LockStart
	Queued bool          // the store has answered that the key was held, and Lock has waited
	Behind string        // the name of who held it, where that is known
	Token  uint64        // the fencing token; 0 if there is an error
	Err    error         // what is returned: an *Error, or nil
}

// LeaseDoneInfo describes a lease that has ended.
type LeaseDoneInfo struct {
	Key   string
	Store string
	Mode  Mode
	Token uint64

	// Held is how long the lease was held, until its end, or, if it was unlocked, until the store had answered.
	Held time.Duration

	// Err is nil if the lease was unlocked. It is ErrLost with the reason if it was lost. It is any other error if it
	// was unlocked but the store could not be told, so that the key is free after the TTL.
	Err error

	// Expired: it was lost because its deadline has passed without a renewal, not because the store has said so. If Err
	// is of no other class than ErrLost then, the process was paused, or the option NoRenew was given.
	Expired bool
}

// RenewedInfo describes the result of a renewal.
type RenewedInfo struct {
	Key   string
	Store string
	Mode  Mode
	Token uint64

	TTL      time.Duration // of the lease
	Slack    time.Duration // what was left until its deadline when the answer came; normally about two thirds of the TTL
	Failures int           // how many renewals in a row have failed, this one included; 0 if it succeeded
	Err      error         // why it failed; it is tried again until the deadline
}

// RetryInfo describes a failure that is ridden out.
type RetryInfo struct {
	Op    string // "lock" for a Lock that goes on waiting, "lead" for a Lead that campaigns again
	Key   string
	Store string
	Mode  Mode

	Attempt int           // how many have failed in a row
	Err     error         // why the last one failed
	Pause   time.Duration // until the next; 0 if the backend decides
}

// RevokedInfo describes a Revoke or Break that has ended.
type RevokedInfo struct {
	Op    string // "revoke" or "break"
	Key   string
	Store string
	Revocation
	Err error // what is returned: an *Error, or nil
}

// observation is what has to be known of a Lease for the sake of Observers. It is guarded by Client.mu, but for begun,
// which is set before the lease is anybody's.
type observation struct {
	begun    time.Time // when it was granted
	lockDone bool      // they know that it was
	leaseEnd func()    // tells of its end, if that has come before
	expired  bool      // it was lost because its deadline has passed

	retries int       // how often the backend has gone on after a failure, in a row
	retried time.Time // when it last did
}

// lock is Lock and TryLock: acquire, of which the Observers are told.
func (c *Client) lock(ctx context.Context, op, key string, opts []CallOption) (*Lease, error) {
	if len(c.defaults.observers) == 0 {
		return c.acquire(ctx, op, key, opts)
	}
	return c.observed(ctx, op, key, c.modeOf(opts), func(ctx context.Context) (*Lease, error) {
		return c.acquire(ctx, op, key, opts)
	})
}

// observed acquires a lease, and tells the Observers of it, if there are any.
func (c *Client) observed(
	ctx context.Context, op, key string, mode Mode, acquire func(context.Context) (*Lease, error),
) (*Lease, error) {
	begun := time.Now()
	start := LockStartInfo{Op: op, Key: key, Store: c.name, Mode: mode}
	for _, o := range c.defaults.observers {
		if o.LockStart == nil {
			continue
		}
		if values := o.LockStart(ctx, start); values != nil {
			ctx = valuesOf{ctx, context.WithoutCancel(values)}
		}
	}
	lease, err := acquire(ctx)
	info := LockDoneInfo{Op: op, Key: key, Store: c.name, Mode: mode, Waited: time.Since(begun), Err: err}
	if lease != nil {
		var answers int
		info.Token = lease.Token()
		info.Behind, answers = lease.waitedFor()
		info.Queued = answers > 0
	} else if e, ok := err.(*Error); ok { //nolint:errorlint // acquire returns it as it is
		info.Behind, info.Queued = e.Holder, e.answered
	}
	for _, o := range c.defaults.observers {
		if o.LockDone != nil {
			o.LockDone(ctx, info)
		}
	}
	if lease != nil && lease.seen != nil {
		lease.tellAfterLockDone()
	}
	return lease, err
}

// modeOf returns the mode that a call with opts asks for.
func (c *Client) modeOf(opts []CallOption) Mode {
	if len(opts) == 0 {
		return c.defaults.mode
	}
	s, _ := c.defaults.with(opts) // that they are not valid is what the call returns
	return s.mode
}

// beSeen has the Observers told of what becomes of a lease, if there are any.
func (l *Lease) beSeen() {
	if len(l.client.defaults.observers) > 0 {
		l.seen = new(observation)
	}
}

// tellAfterLockDone notes that the Observers know of a lease, and tells them of its end if that has come before.
func (l *Lease) tellAfterLockDone() {
	l.client.mu.Lock()
	l.seen.lockDone = true
	end := l.seen.leaseEnd
	l.client.mu.Unlock()
	if end != nil {
		end()
	}
}

// valuesOf is a context with the values of another.
type valuesOf struct {
	context.Context
	values context.Context
}

// Value implements context.Context.
func (c valuesOf) Value(key any) any {
	if v := c.values.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// observeLosses tells of those leases that are observed and were lost. (Of an Unlock they are told when the store has
// been.)
func (c *Client) observeLosses(ends []ending) {
	if len(c.defaults.observers) == 0 {
		return
	}
	for _, e := range ends {
		if l := e.lease; l.seen != nil && !errors.Is(l.reason, ErrUnlocked) {
			info := l.doneInfo(l.err())
			c.news.add(func() { c.tellLeaseDone(l, info) })
		}
	}
}

// news is what Observers are told on a goroutine of its own, one after the other: who has the news may hold a mutex
// that an Observer wants, and what is due for other leases does not wait for them.
type news struct {
	mu      sync.Mutex
	queue   []func()
	telling bool // there is a goroutine
}

// mostNews is how much may be in the queue before renewals are not told any more: Observers who are slower than the
// renewals must not fill the memory.
const mostNews = 10_000

func (n *news) add(tell func()) { n.addUpTo(math.MaxInt, tell) }

func (n *news) renewed(tell func()) { n.addUpTo(mostNews, tell) }

func (n *news) addUpTo(most int, tell func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) >= most {
		return
	}
	n.queue = append(n.queue, tell)
	if !n.telling {
		n.telling = true
		go n.tell()
	}
}

// tell tells what is in the queue, until there is nothing.
func (n *news) tell() {
	for {
		n.mu.Lock()
		queue := n.queue
		n.queue = nil
		n.telling = len(queue) > 0
		n.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		for _, tell := range queue {
			tell()
		}
	}
}

// doneInfo describes the end of a lease, just now.
func (l *Lease) doneInfo(err error) LeaseDoneInfo {
	return LeaseDoneInfo{
		Key: l.Key(), Store: l.client.name, Mode: l.Mode(), Token: l.Token(),
		Held: time.Since(l.seen.begun), Err: err, Expired: l.seen.expired,
	}
}

// tellLeaseDone tells of the end of a lease that is observed, but not before they have been told of its beginning.
func (c *Client) tellLeaseDone(l *Lease, info LeaseDoneInfo) {
	c.mu.Lock()
	if !l.seen.lockDone {
		l.seen.leaseEnd = func() { c.tellLeaseDone(l, info) }
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	for _, o := range c.defaults.observers {
		if o.LeaseDone != nil {
			o.LeaseDone(info)
		}
	}
}

// tellRenewed tells of a renewal.
func (c *Client) tellRenewed(l *Lease, info RenewedInfo) {
	info.Key, info.Store, info.Mode, info.Token = l.Key(), c.name, l.Mode(), l.Token()
	if info.Err != nil {
		info.Err = classified(info.Err)
	}
	for _, o := range c.defaults.observers {
		if o.Renewed != nil {
			o.Renewed(info)
		}
	}
}

// tellRetry tells of a failure that is ridden out.
func (c *Client) tellRetry(info RetryInfo) {
	for _, o := range c.defaults.observers {
		if o.Retry != nil {
			o.Retry(info)
		}
	}
}
