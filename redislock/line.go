package redislock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

const (
	// pollEvery is how often a process asks about the keys that it has waiters for, at least. It bounds what a lost
	// message costs.
	pollEvery = time.Second

	// liveness is for how long a waiter stays in line without having been heard of.
	liveness = 4 * pollEvery

	// reservation is how long the first in line has to take a key that is free.
	reservation = time.Second

	// linger is how long the subscription outlives the last waiter.
	linger = 10 * time.Second

	// pollTogether is how many keys are asked about in one round trip.
	pollTogether = 500
)

// Wait implements locker.Queue.
func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := check(r); err != nil {
		return locker.Grant{}, err
	}
	n := namesOf(r, b.line.process)
	w := b.line.join(n)
	defer b.line.leave(w)
	arrival := ""
	for {
		sent := time.Now()
		try, cancel := context.WithTimeout(ctx, r.TTL) // a later answer would be of no use
		token, refused, err := b.acquire(try, r, n, true, arrival)
		cancel()
		switch {
		case err != nil:
			return locker.Grant{}, err
		case refused == nil:
			return locker.Grant{Request: r, Token: token, Sent: sent}, nil
		}
		arrival = refused.arrival
		r.Waiting(refused.holder)
		b.line.expect(w, refused.remaining)
		select {
		case <-w.called:
			continue
		case err = <-w.failed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.line.withdraw(func(ctx context.Context) error { return b.release(ctx, n, n.member, "0") })
		return locker.Grant{}, locker.NotAcquired(err) // nothing is under way, and who is in line is granted nothing
	}
}

// line is the waiting side of a Locker: who waits here, and the one subscription by which they are called. Calls are
// only hints; the poll behind them finds what they miss.
type line struct {
	client  *client
	process string // 32 hexadecimal digits: the channel is "locker:" and this

	mu      sync.Mutex
	closed  bool
	waiters map[string]*waiter  // by owner
	keys    map[string]*lineKey // those that have waiters which were refused, by the name of the lock
	stop    context.CancelFunc  // ends the goroutines of watch; nil while there are none
	running sync.WaitGroup
	quiet   bool          // nobody was waiting when retire was called last
	kick    chan struct{} // has room for one: look at the times again
}

// lineKey is a key with waiters.
type lineKey struct {
	names   names // as one of the waiters calls them; value and member are not used
	waiters map[*waiter]struct{}
	ask     time.Time // when to ask about it
}

// waiter is one call of Wait.
type waiter struct {
	names  names
	owner  string
	early  bool          // called before it was refused; guarded by line.mu
	called chan struct{} // has room for one; made when the waiter is refused
	failed chan error    // has room for one; likewise
}

func newLine(c *client) *line {
	return &line{
		client:  c,
		process: fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()),
		waiters: make(map[string]*waiter),
		keys:    make(map[string]*lineKey),
		kick:    make(chan struct{}, 1),
	}
}

// join makes a waiter that can be called. It costs little, as most are never refused.
func (l *line) join(n names) *waiter {
	w := &waiter{names: n, owner: n.member[len(l.process)+1:]}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters[w.owner] = w
	return w
}

// withdraw takes a waiter that no longer waits out of the line, in the background. If that fails, the waiter is
// skipped when it has not been heard of for a while.
func (l *line) withdraw(release func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), liveness)
		defer cancel()
		for attempt := 1; attempt <= attempts; attempt++ {
			if err := release(ctx); errors.Is(err, locker.ErrLost) || !pause(ctx, err, attempt) {
				return
			}
		}
	})
}

// leave forgets a waiter.
func (l *line) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, w.owner)
	if k := l.keys[w.names.lock]; k != nil {
		delete(k.waiters, w)
		if len(k.waiters) == 0 {
			delete(l.keys, w.names.lock)
		}
	}
}

// expect makes sure that w will be called: by a message, or else by the poll when the holder's lease ends.
func (l *line) expect(w *waiter, remaining time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.called == nil {
		w.called, w.failed = make(chan struct{}, 1), make(chan error, 1)
		if w.early {
			w.call()
		}
	}
	if l.closed {
		w.fail(locker.ErrClosed)
		return
	}
	k := l.keys[w.names.lock]
	if k == nil {
		k = &lineKey{names: w.names, waiters: make(map[*waiter]struct{}), ask: time.Now().Add(time.Hour)}
		l.keys[w.names.lock] = k
	}
	k.waiters[w] = struct{}{}
	l.quiet = false
	if ask := time.Now().Add(nextPoll(remaining)); ask.Before(k.ask) {
		k.ask = ask
		l.hurry()
	}
	if l.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		l.stop = stop
		l.running.Go(func() { l.watch(ctx) })
	}
}

// nextPoll is when to ask again about a key whose holder's lease ends in so much time.
func nextPoll(remaining time.Duration) time.Duration {
	next := pollEvery - rand.N(pollEvery/4)
	if remaining > 0 {
		next = min(next, remaining+time.Millisecond)
	}
	return next
}

func (l *line) hurry() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// call tells w to try again. The caller holds line.mu.
func (w *waiter) call() {
	if w.called == nil {
		w.early = true
		return
	}
	select {
	case w.called <- struct{}{}:
	default:
	}
}

// fail ends the wait of w, if it does wait. The caller holds line.mu.
func (w *waiter) fail(err error) {
	if w.failed == nil {
		return
	}
	select {
	case w.failed <- err:
	default:
	}
}

// close ends the waiting for good.
func (l *line) close() {
	l.mu.Lock()
	l.closed = true
	for _, w := range l.waiters {
		w.fail(locker.ErrClosed)
	}
	if l.stop != nil {
		l.stop()
	}
	l.mu.Unlock()
	l.running.Wait()
}

// watch subscribes, passes calls on, and lets poll run, until ctx ends or there has been nobody to call for a while.
func (l *line) watch(ctx context.Context) {
	var polling sync.WaitGroup
	defer polling.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	polling.Go(func() { l.poll(ctx) })

	messages, unsubscribe := l.subscribe(ctx)
	defer unsubscribe()
	idle := time.NewTicker(linger)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			switch m := m.(type) {
			case *redis.Message:
				l.mu.Lock()
				if w := l.waiters[m.Payload]; w != nil {
					w.call()
				}
				l.mu.Unlock()
			case *redis.Subscription:
				l.askNow() // subscribed, perhaps again: what was said before was not heard
			}
			if !ok {
				messages = nil // the client was closed: the poll will find that out
			}
		case <-idle.C:
			if l.retire() {
				return
			}
		}
	}
}

// retire reports whether watch can end, as there has been nobody to call since the last time it was asked, and if so
// makes room for another watch.
func (l *line) retire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quiet && len(l.keys) == 0 {
		l.stop = nil
		return true
	}
	l.quiet = len(l.keys) == 0
	return false
}

// subscribe returns the channel of messages to this process. A connection that fails is replaced, in the
// background, which shows as another *redis.Subscription.
func (l *line) subscribe(ctx context.Context) (messages <-chan any, unsubscribe func()) {
	sub := l.client.Subscribe(ctx, "locker:"+l.process)
	unsubscribe = func() { _ = sub.Close() }
	_, err := sub.ReceiveTimeout(ctx, maxTimeout)
	if err == nil {
		l.askNow()
	} else if err = explain(err); errors.Is(err, ErrPermission) {
		// Waiting would work without, slowly; but then nobody would find out why.
		l.failAll(fmt.Errorf("cannot subscribe to the channel locker:*: %w", err))
	}
	return sub.ChannelWithSubscriptions(), unsubscribe
}

func (l *line) failAll(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		for w := range k.waiters {
			w.fail(err)
		}
	}
}

// askNow makes poll ask about every key at once.
func (l *line) askNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		k.ask = time.Time{}
	}
	l.hurry()
}

// poll asks Redis, whenever that is due, whose turn it is, until ctx ends.
func (l *line) poll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.kick:
		}
		due, next := l.due(time.Now())
		if len(due) > 0 {
			l.ask(ctx, due)
			_, next = l.due(time.Time{})
		}
		timer.Reset(time.Until(next))
	}
}

// question is what is asked about one key.
type question struct {
	names  names
	owners []string
}

// due returns the keys to be asked about now, and when the next ones are.
func (l *line) due(now time.Time) (due []question, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = time.Now().Add(pollEvery)
	for _, k := range l.keys {
		// Those that are nearly due go along.
		if !now.IsZero() && k.ask.Before(now.Add(pollEvery/4)) && (len(due) > 0 || !k.ask.After(now)) && len(due) < pollTogether {
			k.ask = now.Add(nextPoll(0))
			q := question{names: k.names}
			for w := range k.waiters {
				q.owners = append(q.owners, w.owner)
			}
			due = append(due, q)
		}
		if k.ask.Before(next) {
			next = k.ask
		}
	}
	return due, next
}

// ask asks about keys and calls those whose turn it is.
func (l *line) ask(ctx context.Context, due []question) {
	ctx, cancel := context.WithTimeout(ctx, liveness)
	defer cancel()
	var work *batch
	var err error
	for attempt := 1; ; attempt++ {
		work = &batch{script: pollScript}
		for _, q := range due {
			words := make([]string, 0, 5+len(q.owners))
			words = append(words, q.names.lock, q.names.queue, q.names.alive, livenessMs, reservationMs)
			for _, owner := range q.owners {
				words = append(words, l.process+":"+owner)
			}
			work.add(ctx, 3, words)
		}
		err = l.client.runBatch(ctx, work)
		if attempt == attempts || !pause(ctx, err, attempt) {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range due {
		reply, failure := work.cmds[i].Slice()
		if err != nil {
			failure = err
		}
		l.answer(q, reply, failure)
	}
}

// answer applies the answer about one key.
func (l *line) answer(q question, reply []any, err error) {
	if err != nil {
		// Not an answer: it ends the waits, whose callers decide what to do about it.
		for _, owner := range q.owners {
			if w := l.waiters[owner]; w != nil {
				w.fail(fmt.Errorf("waiting: %w", explain(err)))
			}
		}
		return
	}
	if len(reply) == 0 {
		return
	}
	if left, ok := reply[0].(int64); ok && left >= 0 {
		if k := l.keys[q.names.lock]; k != nil {
			if ask := time.Now().Add(nextPoll(time.Duration(left) * time.Millisecond)); ask.Before(k.ask) {
				k.ask = ask
			}
		}
	}
	for _, member := range reply[1:] {
		if member, ok := member.(string); ok && len(member) > len(l.process) {
			if w := l.waiters[member[len(l.process)+1:]]; w != nil {
				w.call()
			}
		}
	}
}
