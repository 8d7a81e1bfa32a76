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

// Wait implements locker.Queue. Once in line, it rides out what may pass: the server keeps the place for as long as it
// takes the waiter for alive, and who has lost it joins the line again with the arrival that he had.
func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	a := attempt{names: namesOf(r, b.line.process), ttl: r.TTL, join: true}
	events := &waitEvents{called: make(chan struct{}, 1), failed: make(chan error, 1), request: r}
	w := b.line.join(a.names, events)
	defer b.line.leave(w)
	failures := 0
	for {
		sent := time.Now()
		token, refused, err := b.acquire(hurried{ctx, sent.Add(r.TTL)}, &a) // a later answer would be of no use
		switch {
		case err == nil && refused == nil:
			return locker.Grant{Request: r, Token: token, Sent: sent}, nil
		case err == nil:
			failures = 0
			a.arrival = refused.arrival
			r.ReportHolder(holderIn(refused.value))
			b.line.expect(w, refused.remaining)
		case a.arrival == "": // not in line, as far as we know
			return locker.Grant{}, err
		case passes(err) && ctx.Err() == nil:
			// The lock may be ours by now: the next attempt, of the same owner, will tell.
			failures++
			r.ReportRetry(err)
			if sleep(ctx, outagePause(failures)) {
				continue
			}
			err = context.Cause(ctx)
			fallthrough
		default:
			b.line.withdraw(func(ctx context.Context) error { return b.leave(ctx, a.names, true) })
			return locker.Grant{}, err
		}
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

// outagePause is how long to wait after so many failures in a row: a random time of a range that doubles each time, up
// to one that is shorter than the liveness of a waiter.
func outagePause(failures int) time.Duration {
	const first, longest = 50 * time.Millisecond, 2 * time.Second
	most := min(first<<min(failures-1, 10), longest)
	return most/2 + rand.N(most/2)
}

// line is the waiting side of a Locker: who waits here, and the one subscription by which they are called. Calls are
// only hints; the poll behind them finds what they miss.
type line struct {
	client  *client
	scripts *scripts
	prefix  string // of the channel
	process string // 32 hexadecimal digits: the rest of it

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
	asking  bool      // that is under way
	failed  int       // so many times in a row
}

// waiter is who waits in the line of a key.
type waiter struct {
	names names
	owner string
	listener
}

// listener is told what the server says to a waiter. None of its methods may block.
type listener interface {
	call()           // it may be its turn: it has to try again
	fail(err error)  // it cannot be its turn any more, ever
	retry(err error) // the server could not be asked, and will be again
	heard()          // the server has answered, and whatever it said, it is there
}

// waitEvents is the listener of a waiter with one server.
type waitEvents struct {
	called chan struct{} // has room for one
	failed chan error    // has room for one

	request locker.Request
}

// newProcess returns a name for the channel of a Locker.
func newProcess() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

func newLine(c *client, scripts *scripts, prefix, process string) *line {
	life, end := context.WithCancel(context.Background())
	return &line{
		client:  c,
		scripts: scripts,
		prefix:  prefix,
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

// retry implements listener.
func (w *waitEvents) retry(err error) { w.request.ReportRetry(err) }

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
			err := l.client.explain(l.listen(ctx))
			if errors.Is(err, ErrPermission) {
				// Waiting would work without, slowly; but then nobody would find out why.
				l.failAll(fmt.Errorf("cannot subscribe to a channel %s*: %w", l.prefix, err))
			}
			l.client.reload()
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
	sub := l.client.Subscribe(ctx, l.prefix+l.process)
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

// mayListen subscribes to the channel for a moment, and returns why that is not possible, if so.
func (l *line) mayListen(ctx context.Context) error {
	sub := l.client.Subscribe(ctx, l.prefix+l.process)
	closeSub := func() { _ = sub.Close() }
	defer closeSub()
	defer context.AfterFunc(ctx, closeSub)()
	var err error
	for range attempts { // go-redis replaces a connection that has failed, and says so once
		if _, err = sub.ReceiveTimeout(ctx, maxTimeout); err == nil || isReply(err) || ctx.Err() != nil {
			break
		}
	}
	err, _ = l.client.meaningOf(err)
	return err
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
	var asking sync.WaitGroup
	defer asking.Wait()
	busy := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.kick:
		}
		if due := l.due(time.Now()); len(due) > 0 {
			asked := make(chan struct{})
			asking.Go(func() {
				defer close(asked)
				l.ask(ctx, due)
			})
			select { // a node of a cluster that hangs must not delay those who wait at others
			case <-asked:
			case <-time.After(askPatience):
			}
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

// askPatience is how long to wait for the answers about some keys before others are asked about.
const askPatience = pollEvery / 10

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
	key    *lineKey
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
		if len(due) == pollTogether || k.asking || k.ask.After(now.Add(pollEvery/4)) {
			continue
		}
		k.asking, k.ask = true, now.Add(nextPoll(0))
		q := question{key: k, names: k.names}
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
		if !k.asking && k.ask.Before(next) {
			next = k.ask
		}
	}
	return next, len(l.keys) > 0
}

// ask asks about keys and calls those whose turn it is.
func (l *line) ask(ctx context.Context, due []question) {
	bounded, cancel := context.WithTimeout(ctx, liveness)
	defer cancel()
	work := &batch{script: l.scripts.poll}
	for _, q := range due {
		words := make([]string, 0, 3+len(q.owners))
		words = append(words, q.names.lock, q.names.queue, q.names.alive)
		for _, owner := range q.owners {
			words = append(words, l.process+":"+owner)
		}
		work.add(bounded, 3, words)
	}
	begun := time.Now()
	work.done = func(i int) {
		reply, err := work.cmds[i].Slice()
		if err != nil && ctx.Err() != nil {
			return // nobody waits any more
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.answer(due[i], reply, err)
		if time.Since(begun) > askPatience {
			l.hurry() // poll does not wait for this answer any more
		}
	}
	_ = l.client.runBatch(bounded, work)
}

// answer applies the answer about one key.
func (l *line) answer(q question, reply []any, err error) {
	q.key.asking = false
	if isUnsettled(err) && !l.client.single {
		return // the key is on its way to another node: nobody can take it meanwhile
	}
	if err != nil {
		l.unanswered(q, l.client.explain(err))
		return
	}
	q.key.failed = 0
	for _, owner := range q.owners {
		if w := l.waiters[owner]; w != nil {
			w.heard()
		}
	}
	if len(reply) == 0 {
		return
	}
	if left, ok := reply[0].(int64); ok && left >= 0 {
		l.askAgain(q.key, nextPoll(remainingOf(left)))
	}
	for _, member := range reply[1:] {
		if member, ok := member.(string); ok && len(member) > len(l.process) {
			if w := l.waiters[member[len(l.process)+1:]]; w != nil {
				w.call()
			}
		}
	}
}

// unanswered applies an error of the request about one key. What may pass does not end the waits. That a connection
// fails once is not worth telling: one from the pool may have been broken long ago.
func (l *line) unanswered(q question, err error) {
	q.key.failed++
	q.key.ask = time.Now().Add(outagePause(q.key.failed))
	err = fmt.Errorf("waiting: %w", err)
	for _, owner := range q.owners {
		switch w := l.waiters[owner]; {
		case w == nil:
		case !passes(err):
			w.fail(err)
		case q.key.failed > 1:
			w.retry(err)
		}
	}
}

// askAgain makes poll ask about a key when so much time has passed, if not before.
func (l *line) askAgain(k *lineKey, after time.Duration) {
	if ask := time.Now().Add(after); ask.Before(k.ask) {
		k.ask = ask
	}
}
