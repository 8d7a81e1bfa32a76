package server

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

const (
	// PollEvery is how often a process asks about the keys that it has waiters for, at least. It bounds what a lost
	// message costs.
	PollEvery = scripts.Liveness / 3

	// pingEvery is how long the subscription may be silent before it is asked whether it still works.
	pingEvery = 3 * time.Second

	// longestDeaf is the longest pause between two attempts to subscribe at a server that answers everything else.
	longestDeaf = 10 * time.Second

	// fewKeys is for how many keys a process asks more often that is not called.
	fewKeys = 1000

	// linger is how long the subscription outlives the last waiter.
	linger = 10 * time.Second

	// pollTogether is for how many waiters one round trip asks, unless those of one key are more.
	pollTogether = 500

	// pollsAtOnce is how many of these round trips are under way at the same time. Each occupies a pooled connection.
	pollsAtOnce = 4

	// membersTogether is for how many waiters one script asks: the server does nothing else meanwhile, which is for
	// less than a millisecond.
	membersTogether = 200
)

// Line is the waiting side of a Locker: who waits here, and the one subscription by which they are called. Calls are
// only hints; the poll behind them finds what they miss.
type Line struct {
	client  *conn.Client
	scripts *scripts.Set
	prefix  string // of the channel
	Process string // 32 hexadecimal digits: the rest of it

	mu         sync.Mutex
	closed     bool
	waiters    map[string]*Waiter  // by owner
	keys       map[string]*lineKey // those that have waiters which were refused, by the name of the lock
	due        dueKeys             // those of them about which nothing is being asked
	urgent     []*lineKey          // those to be asked about at once, unless they have been since the last subscription
	subscribed int                 // so many times; what was said before the last time may not have been heard
	uncalled   error               // why nobody is called, although the server answers what is asked; nil if they are
	answered   time.Time           // when it did that the last time
	wake       time.Time           // when poll looks whether a key is due
	stop       context.CancelFunc  // ends the goroutines of watch; nil while there are none
	running    sync.WaitGroup
	kick       chan struct{} // has room for one: look at the times again

	leases *leases
}

// lineKey is a key with waiters.
type lineKey struct {
	names   scripts.Names // as one of the waiters calls them; value and member are not used
	waiters map[*Waiter]struct{}
	ask     time.Time // when to ask about it
	asked   int       // line.subscribed, when it was asked about the last time
	asking  int       // so many questions are under way
	failing bool      // one of them has failed
	failed  int       // so many times in a row
	place   int       // in line.due; -1 if it is not there
}

// dueKeys is a heap of keys, by the time when to ask about them.
type dueKeys []*lineKey

func (d dueKeys) Len() int           { return len(d) }
func (d dueKeys) Less(i, j int) bool { return d[i].ask.Before(d[j].ask) }

func (d dueKeys) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *dueKeys) Push(x any) {
	k := x.(*lineKey)
	k.place = len(*d)
	*d = append(*d, k)
}

func (d *dueKeys) Pop() any {
	last := len(*d) - 1
	k := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	k.place = -1
	return k
}

// Waiter is who waits in the line of a key.
type Waiter struct {
	names scripts.Names
	owner string
	told  error // the last line.uncalled that it was told of
	Listener
}

// Listener is told what the server says to a waiter. None of its methods may block.
type Listener interface {
	Call()           // it may be its turn: it has to try again
	Fail(err error)  // it cannot be its turn any more, ever
	Retry(err error) // the server could not be asked, and will be again
	Heard()          // the server has answered, and whatever it said, it is there
	Deaf(err error)  // it is not going to be called, and asks instead
}

// NewProcess returns a name for the channel of a Locker.
func NewProcess() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

func newLine(c *conn.Client, set *scripts.Set, prefix, process string) *Line {
	l := &Line{
		client:  c,
		scripts: set,
		prefix:  prefix,
		Process: process,
		waiters: make(map[string]*Waiter),
		keys:    make(map[string]*lineKey),
		kick:    make(chan struct{}, 1),
	}
	l.leases = newLeases(l.start)
	return l
}

// Join makes a waiter that can be called.
func (l *Line) Join(n scripts.Names, told Listener) *Waiter {
	w := &Waiter{names: n, owner: n.Member[len(l.Process)+1:], Listener: told}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters[w.owner] = w
	return w
}

// Leave forgets a waiter.
func (l *Line) Leave(w *Waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, w.owner)
	if k := l.keys[w.names.Lock]; k != nil {
		delete(k.waiters, w)
		if len(k.waiters) == 0 {
			delete(l.keys, w.names.Lock)
			if k.place >= 0 {
				heap.Remove(&l.due, k.place)
			}
		}
	}
}

// awaits reports whether somebody here waits for a lock, who was refused.
func (l *Line) awaits(lock string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[lock] != nil
}

// Expect makes sure that w will be called: by a message, or else by the poll when the holder's lease ends.
func (l *Line) Expect(w *Waiter, remaining time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		w.Fail(locker.ErrClosed)
		return
	}
	k := l.keys[w.names.Lock]
	if k == nil {
		k = &lineKey{names: w.names, waiters: make(map[*Waiter]struct{}), place: -1}
		l.keys[w.names.Lock] = k
	}
	k.waiters[w] = struct{}{}
	if ask := time.Now().Add(l.nextPoll(remaining)); k.ask.IsZero() || ask.Before(k.ask) {
		l.plan(k, ask)
	}
	l.startLocked()
}

// startLocked starts watch, unless it runs.
func (l *Line) startLocked() {
	if l.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		l.stop = stop
		l.running.Go(func() { l.watch(ctx) })
	}
}

// start starts watch, unless it runs, for leases that somebody may take away.
func (l *Line) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.startLocked()
	}
}

// plan has poll ask about a key at a given time, if it has waiters then. While one is under way, answer does that.
func (l *Line) plan(k *lineKey, ask time.Time) {
	k.ask = ask
	switch {
	case k.asking > 0 || l.keys[k.names.Lock] != k:
		return
	case k.place < 0:
		heap.Push(&l.due, k)
	default:
		heap.Fix(&l.due, k.place)
	}
	if ask.Before(l.wake) {
		l.hurry()
	}
}

func (l *Line) hurry() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// close ends the waiting for good.
func (l *Line) close() {
	l.mu.Lock()
	l.closed = true
	for _, w := range l.waiters {
		w.Fail(locker.ErrClosed)
	}
	if l.stop != nil {
		l.stop()
	}
	l.mu.Unlock()
	l.running.Wait()
}

// watch listens and polls, until ctx ends or there has been nobody to tell anything for a while.
func (l *Line) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	listening.Go(func() { l.keepListening(ctx) })
	l.poll(ctx)
}
