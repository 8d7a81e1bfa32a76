package redlock

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/internal/server"
	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

// claim is what one owner wants of the nodes of a Redlock: first the lock, perhaps a place in line until it can be
// had, then that it is kept, and in the end that nothing is left of it. The phase says which. Each node has a place in
// the claim; whenever the two do not fit, because the phase has changed or because an answer came late, settle sends
// the node what is missing, on a goroutine that nobody waits for unless he needs the answer.
type claim struct {
	b         *redlock
	request   locker.Request
	names     scripts.Names    // of the last try: the member of the line stays the same, the value does not
	tombstone string           // the key by which the lines know that the owner has left for good
	join      bool             // the line, if refused
	events    chan struct{}    // has room for one: there is something to look at
	waiters   []*server.Waiter // at each node; only for who waits

	mu      sync.Mutex
	vacated sync.Cond // some place is not busy any more
	phase   protocol.Phase
	tries   int
	took    time.Duration // to decide the last try
	arrival string        // the place in line, the same at all nodes; "" while not known
	token   uint64        // agreed on, from confirming on
	places  []place
}

// place is what a claim has at one node. Its fields are guarded by claim.mu.
type place struct {
	busy    bool            // a request is under way: those to a node about one claim go out one after the other
	next    *bid            // the request for the lock that waits until the place is not busy; a later try replaces it
	queued  bool            // a goroutine waits until the place is not busy, to settle it
	answer  answer          // to the present try
	refusal *server.Refusal // that answer, if it was one
	state   state
	token   uint64 // of the lock that is held
	again   bool   // that was granted before, to this same try
	err     error  // of the last request, if that failed
	strays  strays

	arrival string // in the node's line
	called  bool   // it is our turn here
	failing error  // the node cannot be asked whose turn it is
}

// answer says whether a node has answered a try.
type answer uint8

const (
	given   answer = iota
	pending        // not yet
	skipped        // not yet, and it is not waited for any more
)

// bid is a request for the lock, of one try.
type bid struct {
	ctx     context.Context
	try     int
	attempt server.Attempt
}

// state is what a node knows of a claim.
type state uint8

const (
	nothing   state = iota // nothing of it is there
	held                   // it has the lock there
	refused                // it has not; and is in line there, if it wanted to be
	freed                  // it had the lock, and has given it back
	unknown                // the node did not answer: it may have any of these, or get it yet
	releasing              // nor did it when it was asked to give back what there may be: its outbox goes on with that
	freeing                // the same, and it had the lock
)

// uncertain reports whether the node has not answered.
func (s state) uncertain() bool { return s >= unknown }

// strays are requests that were given up, and may yet arrive.
type strays uint8

const (
	strayTry  strays = 1 << iota // the present try's for the lock
	strayMove                    // one to line up, of whatever try, or one to repair
)

func (b *redlock) newClaim(r locker.Request, join bool) *claim {
	names := scripts.NamesOf(r, b.process)
	c := &claim{
		b: b, request: r, names: names, tombstone: names.Tombstone, join: join,
		places: make([]place, len(b.nodes)), events: make(chan struct{}, 1),
	}
	c.vacated.L = &c.mu
	return c
}

// occupyLocked waits until no request is under way to a place, for one that is to be now.
func (c *claim) occupyLocked(p *place) {
	for p.busy {
		c.vacated.Wait()
	}
	p.busy = true
}

func (c *claim) vacateLocked(p *place) {
	p.busy = false
	c.vacated.Broadcast()
}

// wake makes whoever waits for answers look at them.
func (c *claim) wake() {
	select {
	case c.events <- struct{}{}:
	default:
	}
}

// nextNames returns the names for another try. Each try is another owner as far as the nodes are concerned: what is
// left on its way of one that was given up can then be refused without refusing those that follow.
func (c *claim) nextNames() scripts.Names {
	n := c.names
	if c.tries > 0 {
		owner := c.request.Owner
		tail := owner[len(owner)-4:]
		binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+uint32(c.tries)) //nolint:gosec // it may wrap around
		word := owner.String()
		n.Value = scripts.ValueOf(word, c.request.Holder)
		n.Tombstone = n.Tombstone[:len(n.Tombstone)-len(word)] + word
	}
	c.tries++
	return n
}

// ask asks all nodes for the lock.
func (c *claim) ask(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = protocol.Asking
	before := c.names
	c.names = c.nextNames()
	a := server.Attempt{Names: c.names, TTL: c.request.TTL, Join: c.join, Arrival: c.arrival, Least: c.b.least()}
	ctx = context.WithoutCancel(ctx) // cut short, the outcome would be unknown
	for i := range c.places {
		p := &c.places[i]
		// Of the try before, and it has not been possible to give it back.
		if p.strays&strayTry != 0 || p.state.uncertain() || p.state == held {
			c.b.nodes[i].releaseTryLater(before, c.request.TTL)
			p.state = nothing
		}
		p.answer, p.called = pending, false
		if p.next == nil { // else there is a goroutine already
			c.b.nodes[i].running.Go(func() { c.askOne(i) })
		}
		p.next = &bid{ctx, c.tries, a}
	}
}

// askOne asks one node for the lock, when it has answered what it was asked before.
func (c *claim) askOne(i int) {
	p, n := &c.places[i], c.b.nodes[i]
	c.mu.Lock()
	c.occupyLocked(p)
	ctx, try, a := p.next.ctx, p.next.try, p.next.attempt
	p.next = nil
	wanted := c.phase != protocol.Over
	c.mu.Unlock()
	var refusal *server.Refusal
	err := errSilent
	if wanted && !n.full() {
		err = n.call(ctx, nodeBound(a.TTL), func(ctx context.Context) (err error) {
			refusal, err = n.Try(ctx, &a)
			return err
		})
	}
	if a.Clock != 0 {
		n.observe(a.Clock)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.vacateLocked(p)
	if try != c.tries { // another try did not wait for this answer
		if a.Sent && refusal == nil || a.Unanswered > 0 {
			n.releaseTryLater(a.Names, a.TTL)
		}
		return
	}
	p.answer, p.err, p.refusal, p.token, p.again = given, err, refusal, a.Token, a.Again
	p.strays &^= strayTry
	if a.Unanswered > 0 {
		p.strays |= strayTry
	}
	switch {
	case err != nil && a.Sent:
		p.state = unknown
	case err != nil: // the state is what it was
	case refusal != nil:
		p.state, p.arrival = refused, refusal.Arrival
	default:
		p.state = held
	}
	c.settleLocked(ctx, i)
	c.wake()
}

// enter makes p the phase, and settles what is not under way. (What is settles itself when its answer comes.)
func (c *claim) enter(ctx context.Context, p protocol.Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enterLocked(ctx, p)
}

func (c *claim) enterLocked(ctx context.Context, p protocol.Phase) {
	c.phase = p
	ctx = context.WithoutCancel(ctx)
	for i := range c.places {
		if p := &c.places[i]; p.answer == given && !p.queued && c.missing(i) != nil {
			p.queued = true
			c.b.nodes[i].running.Go(func() {
				c.settle(ctx, i)
				c.wake()
			})
		}
	}
}

// settle sends a node what is missing for the phase of the claim, when it has answered what it was asked before.
func (c *claim) settle(ctx context.Context, i int) {
	p := &c.places[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.occupyLocked(p)
	defer c.vacateLocked(p)
	p.queued = false // what is missing from now on may not be seen here
	c.settleLocked(ctx, i)
}

// settleLocked is settle for a place that is busy, with c.mu held.
func (c *claim) settleLocked(ctx context.Context, i int) {
	for request := c.missing(i); request != nil; request = c.missing(i) {
		before := c.phase
		request(ctx, i)
		if c.phase == before {
			return // whatever came of it
		}
	}
}

// missing returns the request that would make a place fit the phase, or nil. Requests are made with c.mu held, and
// release it while they wait for the node.
func (c *claim) missing(i int) func(ctx context.Context, i int) {
	switch protocol.Next(c.phase, c.status(i)) {
	case protocol.Confirm:
		return c.confirm
	case protocol.LineUp:
		return c.lineUp
	case protocol.Leave:
		return c.leave
	}
	return nil
}

// status returns what a node is known to have of the claim.
func (c *claim) status(i int) protocol.Status {
	p := &c.places[i]
	switch {
	case p.state.uncertain():
		return protocol.Unknown
	case p.state == held && p.token < c.token:
		return protocol.Behind
	case p.state == held:
		return protocol.Held
	case p.state == refused && c.join && p.arrival != c.arrival:
		return protocol.Elsewhere
	case p.state == refused && c.join:
		return protocol.InLine
	case p.strays != 0:
		return protocol.Late
	case p.state == freed:
		return protocol.Freed
	}
	return protocol.Nothing
}

// do makes a request of a node without holding c.mu.
func (c *claim) do(ctx context.Context, i int, request func(ctx context.Context, n *node) error) error {
	c.mu.Unlock()
	defer c.mu.Lock()
	n := c.b.nodes[i]
	return n.call(ctx, nodeBound(c.request.TTL), func(ctx context.Context) error { return request(ctx, n) })
}

// confirm tells a node which token the lock was granted with.
func (c *claim) confirm(ctx context.Context, i int) {
	names, token := c.names, c.token
	var ours bool
	err := c.do(ctx, i, func(ctx context.Context, n *node) (err error) {
		ours, _, err = n.confirm(ctx, names, token, 0) // one that is late does nothing when the lock is not ours
		return err
	})
	p := &c.places[i]
	switch {
	case err != nil:
		p.state, p.err = unknown, err
	case ours:
		p.token = token
	default:
		p.state, p.err = unknown, nil // gone, or granted again since
	}
}

// lineUp takes what a node has granted back to the line.
func (c *claim) lineUp(ctx context.Context, i int) {
	p := &c.places[i]
	names, arrival, doubt := c.names, c.arrival, p.strays&strayTry != 0 || p.state.uncertain()
	p.called = false // a call that comes from now on may be faster than the answer
	var turn, late bool
	err := c.do(ctx, i, func(ctx context.Context, n *node) (err error) {
		turn, late, err = n.lineUp(ctx, names, c.tombstone, arrival, doubt)
		return err
	})
	if late {
		p.strays |= strayMove
	}
	if err != nil {
		p.state, p.err = unknown, err     // the poll will find out
		if c.names.Value != names.Value { // nobody else will
			c.b.nodes[i].releaseTryLater(names, c.request.TTL)
		}
		return
	}
	p.state, p.err, p.arrival = refused, nil, arrival
	p.called = p.called || turn // a call may have overtaken the answer
}

// leave leaves the line of a node, and, of a claim that is over, gives back what the node has granted.
func (c *claim) leave(ctx context.Context, i int) {
	p := &c.places[i]
	names, inLine, doubt := c.names, p.state != held, p.strays != 0 || p.state.uncertain()
	final := c.phase == protocol.Over
	if !final {
		// The lock that is held was refused here, but may be here by the time that the request arrives, as the node is
		// repaired: so the request has a value that no lock has. Nor does it have the node refuse what comes late of
		// the present try, which would be to refuse that repair.
		names.Value, doubt = names.Member, p.strays&strayMove != 0 && c.tombstone != names.Tombstone
		names.Tombstone = c.tombstone
	}
	err := c.do(ctx, i, func(ctx context.Context, n *node) error {
		return n.giveBack(ctx, names, c.tombstone, inLine, doubt)
	})
	if final && (err == nil || isLost(err)) {
		p.strays = 0 // what comes late is refused from now on
	}
	switch {
	case err == nil || isLost(err) && p.state == freeing: // the first time, if not now
		p.state, p.err = freed, nil
	case isLost(err):
		p.state, p.err = nothing, nil
	case !final: // it is only a place in line, which expires soon
		p.state, p.err = unknown, err
	default:
		if p.state < releasing {
			c.b.nodes[i].releaseLater(names, c.tombstone, c.request.TTL)
		}
		if p.state == held || p.state == freeing {
			p.state = freeing
		} else {
			p.state = releasing
		}
		p.err = err
	}
}

// tally counts the places.
type tally struct {
	held      int // granted
	confirmed int // granted, and the node knows the token
	refused   int
	failed    int // did not answer
	pending   int // may still answer
	lagging   int // of them, those that others are not to be kept waiting for
	again     bool
	freed     int
}

func (c *claim) tally() (t tally) {
	for i := range c.places {
		p := &c.places[i]
		switch {
		case p.answer == skipped:
			t.failed++
		case p.answer == pending:
			t.pending++
			if c.b.nodes[i].lags() {
				t.lagging++
			}
		case p.state == held && (c.phase == protocol.Asking || p.token <= c.token):
			t.held++
			if p.token == c.token {
				t.confirmed++
			}
			t.again = t.again || p.again
		case p.err != nil:
			t.failed++
		default:
			t.refused++
		}
		if p.state == freed {
			t.freed++
		}
	}
	return t
}

// acquire makes one try at the lock: it returns the token, or a *refusedVote. Afterwards the claim is
// holding; or, after an error, still asking or confirming.
func (c *claim) acquire(ctx context.Context) (uint64, error) {
	if err := c.b.tooFull(); err != nil {
		return 0, err
	}
	c.ask(ctx)
	start := time.Now()
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	impatient := false
	for {
		select {
		case <-c.events:
		case <-patience.C:
			c.skipLagging()
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		c.mu.Lock()
		t := c.tally()
		decided, err := c.decide(ctx, t)
		c.took = time.Since(start)
		token := c.token
		c.mu.Unlock()
		if decided {
			return token, err
		}
		if t.pending > 0 && t.pending == t.lagging && !impatient && !t.again {
			// All that are known to be alive have answered. Those that did not answer the last time get as long as that
			// took, again, instead of the whole bound. But who asks again has been granted a token, perhaps, and it
			// takes two of three to know which, of whom one may have restarted since.
			impatient = true
			patience.Reset(max(minPatience, time.Since(start)))
		}
	}
}

// minPatience is how long a node is waited for, at least, that did not answer the last time.
const minPatience = 20 * time.Millisecond

// skipLagging gives up those that have not answered yet, and did not the last time.
func (c *claim) skipLagging() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.places {
		if p := &c.places[i]; p.answer == pending && c.b.nodes[i].lags() {
			p.answer = skipped
		}
	}
}

// decide reports whether the outcome of a try is certain, and what it is. It begins to confirm when there is a quorum.
func (c *claim) decide(ctx context.Context, t tally) (decided bool, err error) {
	q := c.b.quorum
	if c.phase == protocol.Asking && t.held >= q && (!t.again || t.pending == 0) {
		c.token = c.agreed()
		c.enterLocked(ctx, protocol.Confirming)
		t = c.tally()
	}
	switch {
	case c.phase == protocol.Confirming && t.confirmed >= q:
		c.enterLocked(ctx, protocol.Holding)
		return true, nil
	case t.held+t.pending >= q:
		return false, nil
	case t.failed > len(c.places)-q:
		failure := c.noQuorum()
		return !failure.open(t.pending - t.lagging), failure
	case t.held+t.refused >= q:
		return true, c.refusal(t)
	}
	return false, nil
}
