package redislock

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// claim is what one owner wants of the nodes of a Redlock: first the lock, perhaps a place in line until it can be had,
// then that it is kept, and in the end that nothing is left of it. The phase says which. Each node has a place in the
// claim; whenever the two do not fit, because the phase has changed or because an answer came late, settle sends the node
// what is missing, on a goroutine that nobody waits for unless he needs the answer.
type claim struct {
	b       *redlock
	request locker.Request
	names   names         // of the last try: the member of the line stays the same, the value does not
	left    string        // the key by which the lines know that the owner has left for good
	join    bool          // the line, if refused
	events  chan struct{} // has room for one: there is something to look at
	waiters []*waiter     // at each node; only for who waits

	mu      sync.Mutex
	phase   phase
	tries   int
	took    time.Duration // to decide the last try
	arrival string        // the place in line, the same at all nodes; "" while not known
	token   uint64        // agreed on, from confirming on
	places  []place
}

// phase is what a claim is about.
type phase int

const (
	asking     phase = iota // the nodes have been asked for the lock
	confirming              // a quorum has granted it, and is told which token that means
	holding                 // granted
	waiting                 // in line
	over                    // given back, or given up
)

// place is what a claim has at one node. Its fields are guarded by claim.mu.
type place struct {
	busy sync.Mutex // held during a request: the requests to a node about one claim go out one after the other

	next    *bid // the request for the lock that waits until the place is not busy; a later try replaces it
	queued  bool // a goroutine waits until the place is not busy, to settle it
	state   state
	pending bool // the node has not answered the present try yet
	skipped bool // the pending answer is not waited for any more
	again   bool // it was granted before, to this same try
	token   uint64
	refusal *refusal
	err     error // of the last request, if that failed
	doubt   bool  // a request of the present try was given up, and may still be on its way
	late    bool  // one to line up was, of whatever try, or one to repair
	had     bool  // the lock was granted here, and an answer to giving it back got lost
	owed    bool  // the node will be asked to take it back until it answers

	arrival string // in the node's line
	called  bool   // it is our turn here
	failing error  // the node cannot be asked whose turn it is
}

// bid is a request for the lock, of one try.
type bid struct {
	ctx     context.Context
	try     int
	attempt attempt
}

// state is what a node knows of a claim.
type state int

const (
	nothing state = iota // nothing of it is there, and nothing on its way
	held                 // it has the lock there
	refused              // it has not; and is in line there, if it wanted to be
	freed                // it had the lock, and has given it back
	unknown              // the node did not answer: it may have any of these, or get it yet
)

func (b *redlock) newClaim(r locker.Request, join bool) *claim {
	names := namesOf(r, b.process)
	return &claim{
		b: b, request: r, names: names, left: names.gone, join: join,
		places: make([]place, len(b.nodes)), events: make(chan struct{}, 1),
	}
}

// wake makes whoever waits for answers look at them.
func (c *claim) wake() {
	select {
	case c.events <- struct{}{}:
	default:
	}
}

// nextNames returns the names for another try. Each try is another owner as far as the nodes are concerned: what is left on
// its way of one that was given up can then be refused without refusing those that follow.
func (c *claim) nextNames() names {
	n := c.names
	if c.tries > 0 {
		owner := c.request.Owner
		tail := owner[len(owner)-4:]
		binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+uint32(c.tries)) //nolint:gosec // it may wrap around
		word := owner.String()
		n.value = valueOf(word, c.request.Holder)
		n.gone = n.gone[:len(n.gone)-len(word)] + word
	}
	c.tries++
	return n
}

// ask asks all nodes for the lock.
func (c *claim) ask(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = asking
	before := c.names
	c.names = c.nextNames()
	a := attempt{names: c.names, ttl: c.request.TTL, join: c.join, arrival: c.arrival, least: c.b.least()}
	ctx = context.WithoutCancel(ctx) // cut short, the outcome would be unknown
	for i := range c.places {
		p := &c.places[i]
		if p.doubt || p.state == unknown || p.state == held { // of the try before, and it has not been possible to give it back
			c.b.nodes[i].oweTry(before, c.request.TTL)
			p.state = nothing
		}
		p.pending, p.skipped, p.called = true, false, false
		if p.next == nil { // else there is a goroutine already
			c.b.nodes[i].running.Go(func() { c.askOne(i) })
		}
		p.next = &bid{ctx, c.tries, a}
	}
}

// askOne asks one node for the lock, when it has answered what it was asked before.
func (c *claim) askOne(i int) {
	p, n := &c.places[i], c.b.nodes[i]
	p.busy.Lock()
	defer p.busy.Unlock()
	c.mu.Lock()
	ctx, try, a := p.next.ctx, p.next.try, p.next.attempt
	p.next = nil
	wanted := c.phase != over
	c.mu.Unlock()
	var token uint64
	var refusal *refusal
	err := errSilent
	if wanted && !n.full() {
		err = n.call(ctx, nodeBound(a.ttl), func(ctx context.Context) (err error) {
			token, refusal, err = n.acquire(ctx, &a)
			return err
		})
	}
	if a.clock != 0 {
		n.observe(a.clock)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if try != c.tries { // another try did not wait for this answer
		if a.sent && refusal == nil || a.doubt {
			n.oweTry(a.names, a.ttl)
		}
		return
	}
	p.pending, p.err, p.refusal, p.token, p.again, p.doubt = false, err, refusal, token, a.again, a.doubt
	switch {
	case err != nil && a.sent:
		p.state = unknown
	case err != nil: // the state is what it was
	case refusal != nil:
		p.state, p.arrival = refused, refusal.arrival
	default:
		p.state = held
	}
	c.settleLocked(ctx, i)
	c.wake()
}

// enter makes p the phase, and settles what is not under way. (What is settles itself when its answer comes.)
func (c *claim) enter(ctx context.Context, p phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enterLocked(ctx, p)
}

func (c *claim) enterLocked(ctx context.Context, p phase) {
	c.phase = p
	ctx = context.WithoutCancel(ctx)
	for i := range c.places {
		if p := &c.places[i]; !p.pending && !p.queued && c.missing(i) != nil {
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
	p.busy.Lock()
	defer p.busy.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
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

// missing returns the request that would make a place fit the phase, or nil. Requests are made with c.mu held, and release
// it while they wait for the node.
func (c *claim) missing(i int) func(ctx context.Context, i int) {
	p := &c.places[i]
	switch c.phase {
	case confirming, holding:
		switch {
		case p.state == held && p.token < c.token:
			return c.confirm
		case p.state == refused && c.join && c.phase == holding: // from where there is no way back into the line
			return c.leave
		}
	case waiting:
		if p.state == held || p.state == unknown || p.state == nothing || p.state == refused && p.arrival != c.arrival {
			return c.lineUp
		}
	case over:
		if p.state == held || p.state == unknown || p.state == refused && c.join || p.doubt || p.late { // or has to refuse what is late
			return c.leave
		}
	case asking:
	}
	return nil
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
	names, arrival, doubt := c.names, c.arrival, p.doubt || p.state == unknown
	p.called = false // a call that comes from now on may be faster than the answer
	var turn, late bool
	err := c.do(ctx, i, func(ctx context.Context, n *node) (err error) {
		turn, late, err = n.lineUp(ctx, names, c.left, arrival, doubt)
		return err
	})
	p.late = p.late || late
	if err != nil {
		p.state, p.err = unknown, err     // the poll will find out
		if c.names.value != names.value { // nobody else will
			c.b.nodes[i].oweTry(names, c.request.TTL)
		}
		return
	}
	p.state, p.err, p.arrival = refused, nil, arrival
	p.called = p.called || turn // a call may have overtaken the answer
}

// leave leaves the line of a node, and, of a claim that is over, gives back what the node has granted.
func (c *claim) leave(ctx context.Context, i int) {
	p := &c.places[i]
	names, inLine, doubt := c.names, p.state != held, p.doubt || p.late || p.state == unknown
	final := c.phase == over
	if !final {
		// The lock that is held was refused here, but may be here by the time that the request arrives, as the node is repaired:
		// so the request has a value that no lock has. Nor does it have the node refuse what comes late of the present try, which
		// would be to refuse that repair.
		names.value, doubt = names.member, p.late && c.left != names.gone
		names.gone = c.left
	}
	err := c.do(ctx, i, func(ctx context.Context, n *node) error {
		return n.giveBack(ctx, names, c.left, inLine, doubt)
	})
	if final && (err == nil || isLost(err)) {
		p.doubt, p.late = false, false // what comes late is refused from now on
	}
	switch {
	case err == nil || isLost(err) && p.had: // the first time, if not now
		p.state, p.err = freed, nil
	case isLost(err):
		p.state, p.err = nothing, nil
	default:
		p.had = p.had || p.state == held
		p.state, p.err = unknown, err
		if final && !p.owed { // else it is only a place in line, which expires soon
			c.b.nodes[i].owe(names, c.left, c.request.TTL)
			p.owed = true
		}
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
		case p.pending && p.skipped:
			t.failed++
		case p.pending:
			t.pending++
			if c.b.nodes[i].lags() {
				t.lagging++
			}
		case p.state == held && (c.phase == asking || p.token <= c.token):
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
			// took, again, instead of the whole bound. But who asks again has been granted a token, perhaps, and it takes
			// two of three to know which, of whom one may have restarted since.
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
		if p := &c.places[i]; p.pending && c.b.nodes[i].lags() {
			p.skipped = true
		}
	}
}

// decide reports whether the outcome of a try is certain, and what it is. It begins to confirm when there is a quorum.
func (c *claim) decide(ctx context.Context, t tally) (decided bool, err error) {
	q := c.b.quorum
	if c.phase == asking && t.held >= q && (!t.again || t.pending == 0) {
		c.token = c.agreed()
		c.enterLocked(ctx, confirming)
		t = c.tally()
	}
	switch {
	case c.phase == confirming && t.confirmed >= q:
		c.enterLocked(ctx, holding)
		return true, nil
	case t.held+t.pending >= q:
		return false, nil
	case t.failed > len(c.places)-q:
		return true, c.noQuorum()
	case t.held+t.refused >= q:
		return true, c.refusal(t)
	}
	return false, nil
}
