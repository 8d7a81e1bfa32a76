package server

import (
	"context"
	"sync"
	"time"

	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

const (
	// releaseTogether is how many releases go out in one round trip.
	releaseTogether = 500

	// maxFailed bounds the memory that a dead server costs, in releases that have failed. What does not find room is
	// left to its expiry.
	maxFailed = 10_000
)

// Outbox sends releases in the background, for which nobody waits: of waiters that have left the line, and of owners
// whose server did not answer when they gave back. Each is tried again, less and less often, until what it is about has
// expired by itself. Those that come together go together: when many contexts end at once, dead places must not outlast
// the storm.
type Outbox struct {
	// Call makes a request of the server.
	Call func(ctx context.Context, request func(ctx context.Context) error) error

	client  *conn.Client
	release *scripts.Script
	life    context.Context // ends a while after close has begun
	end     context.CancelFunc

	mu      sync.Mutex
	closed  bool
	waiting []release
	sending bool          // a goroutine is at work on those
	kick    chan struct{} // has room for one: there is another one
	running sync.WaitGroup
}

// release is the release of what an owner may have.
type release struct {
	words    scripts.Words
	until    time.Time // it is of no use afterwards
	next     time.Time // when to try it
	failures int
}

func newOutbox(c *conn.Client, script *scripts.Script) *Outbox {
	o := &Outbox{client: c, release: script, kick: make(chan struct{}, 1)}
	o.life, o.end = context.WithCancel(context.Background())
	o.Call = func(ctx context.Context, request func(ctx context.Context) error) error { return request(ctx) }
	return o
}

// Put has a release sent, with these words for the script.
func (o *Outbox) Put(w scripts.Words, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.putLocked(release{words: w, until: until})
	}
}

func (o *Outbox) putLocked(r release) {
	o.waiting = append(o.waiting, r)
	if !o.sending {
		o.sending = true
		o.running.Go(o.sendAll)
	}
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

// sendAll sends what is to be sent, until there is nothing left.
func (o *Outbox) sendAll() {
	for {
		due, next, more := o.take(time.Now())
		if !more || o.life.Err() != nil {
			return
		}
		if len(due) > 0 {
			o.send(due)
			continue
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-o.kick:
		case <-o.life.Done():
		}
		timer.Stop()
	}
}

// take takes out those that are due, forgets those that have expired, and returns when the next one is due. If there is
// none, nor any that is due, the sending ends.
func (o *Outbox) take(now time.Time) (due []release, next time.Time, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := o.waiting[:0]
	for _, r := range o.waiting {
		switch {
		case now.After(r.until):
		case !now.Before(r.next) && len(due) < releaseTogether:
			due = append(due, r)
		default:
			rest = append(rest, r)
			if next.IsZero() || r.next.Before(next) {
				next = r.next
			}
		}
	}
	clear(o.waiting[len(rest):])
	o.waiting = rest
	o.sending = len(due)+len(rest) > 0
	return due, next, o.sending
}

// send tries some. It does not wait for long for a node of a cluster, so that one that hangs does not delay others.
func (o *Outbox) send(due []release) {
	tried := make(chan struct{})
	o.running.Go(func() {
		defer close(tried)
		o.try(due)
	})
	var patience <-chan time.Time
	if o.client.Cluster {
		patience = time.After(askPatience)
	}
	select {
	case <-tried:
	case <-patience:
	}
}

func (o *Outbox) try(due []release) {
	ctx, cancel := context.WithTimeout(o.life, conn.MaxTimeout)
	defer cancel()
	work := &conn.Batch{Script: o.release}
	for _, r := range due {
		work.Add(ctx, r.words)
	}
	_ = o.Call(ctx, func(ctx context.Context) error { return o.client.RunBatch(ctx, work) })
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, cmd := range work.Cmds {
		if r := due[i]; cmd.Err() != nil && len(o.waiting) < maxFailed {
			r.failures++
			r.next = time.Now().Add(OutagePause(r.failures))
			o.putLocked(r)
		}
	}
}

// close gives what is under way a while. What comes later is left to its expiry.
func (o *Outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	patience := time.AfterFunc(PollEvery, o.end)
	defer patience.Stop()
	o.running.Wait()
	o.end()
}
