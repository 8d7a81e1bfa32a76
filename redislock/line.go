package redislock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
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
	liveness = 3 * pollEvery

	// reservation is how long the first in line has to take a key that is free.
	reservation = time.Second

	// pingEvery is how long the subscription may be silent before it is asked whether it still works.
	pingEvery = 3 * time.Second

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
	a := attempt{names: namesOf(r, b.line.process), ttl: r.TTL, join: true}
	events := &waitEvents{called: make(chan struct{}, 1), failed: make(chan error, 1)}
	w := b.line.join(a.names, events)
	defer b.line.leave(w)
	for {
		sent := time.Now()
		token, refused, err := b.acquire(hurried{ctx, sent.Add(r.TTL)}, &a) // a later answer would be of no use
		switch {
		case err != nil:
			if a.arrival != "" { // in line, whatever became of this attempt
				b.line.withdraw(func(ctx context.Context) error { return b.leave(ctx, a.names, true) })
			}
			return locker.Grant{}, err
		case refused == nil:
			return locker.Grant{Request: r, Token: token, Sent: sent}, nil
		}
		a.arrival = refused.arrival
		r.ReportHolder(holderIn(refused.value))
		b.line.expect(w, refused.remaining)
		select {
		case <-events.called:
			continue
		case err = <-events.failed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.line.withdraw(func(ctx context.Context) error { return b.leave(ctx, a.names, a.doubt) })
		return locker.Grant{}, locker.NotAcquired(err) // who is in line is granted nothing
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
	life    context.Context    // ends a while after close has begun
	end     context.CancelFunc // ends life
	kick    chan struct{}      // has room for one: look at the times again
}

// lineKey is a key with waiters.
type lineKey struct {
	names   names // as one of the waiters calls them; value and member are not used
	waiters map[*waiter]struct{}
	ask     time.Time // when to ask about it
}

// waiter is who waits in the line of a key.
type waiter struct {
	names names
	owner string
	listener
}

// listener is told what the server says to a waiter. None of its methods may block.
type listener interface {
	call()          // it may be its turn: it has to try again
	fail(err error) // the server could not be asked
	heard()         // the server has answered, and whatever it said, it is there
}

// waitEvents is the listener of a waiter with one server.
type waitEvents struct {
	called chan struct{} // has room for one
	failed chan error    // has room for one
}

// newProcess returns a name for the channel of a Locker.
func newProcess() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

func newLine(c *client, process string) *line {
	life, end := context.WithCancel(context.Background())
	return &line{
		client:  c,
		life:    life,
		end:     end,
		process: process,
		waiters: make(map[string]*waiter),
		keys:    make(map[string]*lineKey),
		kick:    make(chan struct{}, 1),
	}
}

// join makes a waiter that can be called.
func (l *line) join(n names, told listener) *waiter {
	w := &waiter{names: n, owner: n.member[len(l.process)+1:], listener: told}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters[w.owner] = w
	return w
}

// withdraw takes a waiter that no longer waits out of the line, in the background. If that fails, the waiter is
// skipped when it has not been heard of for a while.
func (l *line) withdraw(leave func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.running.Go(func() {
		ctx, cancel := context.WithTimeout(l.life, liveness)
		defer cancel()
		for attempt := 1; attempt <= attempts; attempt++ {
			if err := leave(ctx); errors.Is(err, locker.ErrLost) || !pause(ctx, err, attempt) {
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
		next = min(next, remaining)
	}
	return next
}

func (l *line) hurry() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// call implements listener.
func (w *waitEvents) call() {
	select {
	case w.called <- struct{}{}:
	default:
	}
}

// fail implements listener: it ends the wait.
func (w *waitEvents) fail(err error) {
	select {
	case w.failed <- err:
	default:
	}
}

// heard implements listener.
func (w *waitEvents) heard() {}

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
	patience := time.AfterFunc(pollEvery, l.end) // for those who are about to leave the line
	defer patience.Stop()
	l.running.Wait()
	l.end()
}

// watch listens for calls and polls, until ctx ends or there has been nobody to call for a while.
func (l *line) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	listening.Go(func() {
		for ctx.Err() == nil {
			err := explain(l.listen(ctx))
			if errors.Is(err, ErrPermission) {
				// Waiting would work without, slowly; but then nobody would find out why.
				l.failAll(fmt.Errorf("cannot subscribe to the channel locker:*: %w", err))
			}
			select {
			case <-ctx.Done():
			case <-time.After(rand.N(pollEvery)):
			}
		}
	})
	l.poll(ctx)
}

// listen subscribes to the channel of this process and passes calls on, until that fails. A connection that is silent
// is pinged, so that one which is dead without knowing it does not stay.
func (l *line) listen(ctx context.Context) error {
	sub := l.client.Subscribe(ctx, "locker:"+l.process)
	closeSub := func() { _ = sub.Close() }
	defer closeSub()
	defer context.AfterFunc(ctx, closeSub)() // Receive does not heed ctx
	pinged, failed := false, false
	for {
		message, err := sub.ReceiveTimeout(ctx, pingEvery)
		var netErr net.Error
		switch {
		case err == nil:
			pinged, failed = false, false
			l.heard(message)
		case !pinged && errors.As(err, &netErr) && netErr.Timeout():
			pinged = true
			_ = sub.Ping(ctx)
		case !pinged && !failed && !isReply(err):
			failed = true // go-redis has replaced the connection, and will say so with a *redis.Subscription
		default:
			return err
		}
	}
}

// heard passes on what came by the subscription.
func (l *line) heard(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		l.askNow() // what was said before was not heard
	case *redis.Message:
		l.mu.Lock()
		defer l.mu.Unlock()
		if w := l.waiters[message.Payload]; w != nil {
			w.call()
		}
	}
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

// poll asks Redis, whenever that is due, whose turn it is, until ctx ends or there has been nobody to ask for.
func (l *line) poll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.kick:
		}
		if due := l.due(time.Now()); len(due) > 0 {
			l.ask(ctx, due)
		}
		next, waiting := l.nextAsk()
		if waiting {
			busy = time.Now()
		} else if time.Since(busy) > linger && l.retire() {
			return
		}
		timer.Reset(time.Until(next))
	}
}

// retire reports whether nobody is waiting, and if so makes room for another watch.
func (l *line) retire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.keys) > 0 {
		return false
	}
	l.stop = nil
	return true
}

// question is what is asked about one key.
type question struct {
	names  names
	owners []string
}

// due returns the keys to be asked about now, with those that are nearly due.
func (l *line) due(now time.Time) (due []question) {
	if next, _ := l.nextAsk(); next.After(now) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		if len(due) == pollTogether || k.ask.After(now.Add(pollEvery/4)) {
			continue
		}
		k.ask = now.Add(nextPoll(0))
		q := question{names: k.names}
		for w := range k.waiters {
			q.owners = append(q.owners, w.owner)
		}
		due = append(due, q)
	}
	return due
}

// nextAsk returns when the next key is to be asked about, and whether there are any.
func (l *line) nextAsk() (next time.Time, waiting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = time.Now().Add(pollEvery)
	for _, k := range l.keys {
		if k.ask.Before(next) {
			next = k.ask
		}
	}
	return next, len(l.keys) > 0
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
			words := make([]string, 0, 3+len(q.owners))
			words = append(words, q.names.lock, q.names.queue, q.names.alive)
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
	for _, owner := range q.owners {
		if w := l.waiters[owner]; w != nil {
			w.heard()
		}
	}
	if len(reply) == 0 {
		return
	}
	if left, ok := reply[0].(int64); ok && left >= 0 {
		if k := l.keys[q.names.lock]; k != nil {
			if ask := time.Now().Add(nextPoll(remainingOf(left))); ask.Before(k.ask) {
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
