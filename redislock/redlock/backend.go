package redlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/server"
	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

// redlock is a locker.Backend and locker.Queue over several independent servers, its nodes.
//
// # The protocol
//
// To take a lock, an owner asks all nodes at once, each with the script that one server is asked with, and which mints
// a token there. With the grants of a quorum, the token of the lock is the greatest of theirs. Before the lock is
// granted, a quorum has to know that token: nodes that minted a lesser one are told, and answer that the lock is still
// the owner's. So every later quorum has a node that mints a greater one. Owners send along the least token to be
// minted, a little ahead of the clocks that they have seen, so that normally all nodes mint the same and need not be
// told.
//
// What was not granted is given back everywhere, at nodes that did not answer when they do, and each try is another
// owner to the nodes, so that what comes late can be refused: see claim.
//
// Waiters stand in the lines of all nodes, at the same place: when the first try is refused, the latest time of
// arrival that a node gave is made the place at all of them. Release calls the first in line at each node; called by a
// quorum, it tries again. As the lines have the same order, there is one who is first in a majority of them.
type redlock struct {
	nodes   []*node
	quorum  int
	process string
}

var (
	_ locker.Backend = (*redlock)(nil)
	_ locker.Queue   = (*redlock)(nil)
)

// Features implements the optional method of locker.Backend.
func (b *redlock) Features() locker.Features { return locker.Features{HeedsContext: true, Queue: true} }

// String names the backend in errors.
func (b *redlock) String() string { return "redlock" }

// check refuses what cannot be kept.
func (b *redlock) check(r locker.Request) error { return b.nodes[0].Check(r) }

// MayListen returns an error if waiters could not be called by a quorum.
func (b *redlock) MayListen(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // nobody waits for a server that the others can do without
	answers := make(chan error, len(b.nodes))
	for _, n := range b.nodes {
		go func() {
			err := n.MayListen(ctx)
			if err != nil {
				err = n.blame(err)
			}
			answers <- err
		}()
	}
	var reasons []error
	for well := 0; well < b.quorum; {
		if err := <-answers; err == nil {
			well++
		} else if reasons = append(reasons, err); len(reasons) > len(b.nodes)-b.quorum {
			failure := &noQuorumError{len(b.nodes), b.quorum, reasons}
			if !failure.open(len(b.nodes) - well - len(reasons)) {
				return failure
			}
		}
	}
	return nil
}

// leastAhead is how much the least token is ahead of the greatest clock: as long as a request takes to arrive on a good
// network. It is short, so that the clock alone makes tokens increase even if all nodes have lost their data: no server
// restarts as fast.
const leastAhead = 3 * time.Millisecond

// least returns the least token that the nodes are to mint. It saves a round trip if it is greater than their clocks;
// nothing else depends on it.
func (b *redlock) least() string {
	var ahead int64
	for _, n := range b.nodes {
		ahead = max(ahead, n.ahead.Load())
	}
	if ahead == 0 {
		return "0"
	}
	return strconv.FormatInt(ahead+(time.Since(begun)+leastAhead).Microseconds(), 10)
}

// Acquire implements locker.Backend.
func (b *redlock) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	// One attempt; but where several fell upon a free lock at the same time and nobody has got it, nobody is served by
	// telling each of them that it is locked.
	open := time.Now()
	for c, again := b.newClaim(r, false), 1; ; again++ {
		sent := time.Now()
		token, err := c.acquire(ctx)
		if err == nil {
			return locker.Grant{Request: r, Token: token, Sent: sent, Private: c}, nil
		}
		c.enter(ctx, protocol.Over)
		var vote *refusedVote
		if !errors.As(err, &vote) {
			return locker.Grant{}, locker.NotAcquired(err) // what may be left is given back by the claim
		}
		if !vote.contested || again == contests || time.Since(open) > contestFor || !conn.Sleep(ctx, c.spread(again)) {
			return locker.Grant{}, vote.held
		}
		next := b.newClaim(r, false)
		next.tries = c.tries
		c = next
	}
}

const (
	// contests is how many times a lock is tried that is contested.
	contests = 8

	// contestFor is for how long that goes on, at the most: with servers that are slow, it would take long.
	contestFor = 500 * time.Millisecond

	// maxSpread bounds what is waited between two tries for each that has been made.
	maxSpread = 200 * time.Millisecond
)

// spread returns a random time to wait before the next try, so that the same ones do not meet again.
func (c *claim) spread(try int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rand.N(time.Duration(min(try, contests)) * min(max(2*c.took, 2*time.Millisecond), maxSpread))
}

// claimOf returns the claim that g was granted to, or one that knows nothing of the nodes.
func (b *redlock) claimOf(g locker.Grant) *claim {
	if c, ok := g.Private.(*claim); ok && c.request.Owner == g.Owner {
		return c
	}
	c := b.newClaim(g.Request, true)
	c.nextNames()
	for i := range c.places {
		c.places[i].state = unknown
	}
	return c
}

// Release implements locker.Backend.
func (b *redlock) Release(ctx context.Context, g locker.Grant) error {
	return server.Final(b.release(ctx, g))
}

func (b *redlock) release(ctx context.Context, g locker.Grant) error {
	c := b.claimOf(g)
	if !c.giveBack(ctx) {
		return locker.ErrLost // by an earlier call
	}
	start := time.Now()
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	patient := true
	for {
		c.mu.Lock()
		settled, waiting, err := c.released()
		c.mu.Unlock()
		switch {
		case settled && (waiting == 0 || err != nil):
			return err
		case settled && patient:
			// A quorum is enough for the next owner, if it answers him. If some other node fails, he needs those that
			// are late now.
			patient = false
			patience.Reset(max(minPatience, time.Since(start)))
		}
		select {
		case <-c.events:
		case <-patience.C:
			c.noteLate()
			return nil
		case <-ctx.Done():
			if settled {
				return nil
			}
			return conn.ErrNoAnswer
		}
	}
}

// noteLate notes which nodes were not worth waiting for.
func (c *claim) noteLate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.places {
		if p := &c.places[i]; p.answer != given || p.state == held || p.state.uncertain() {
			c.b.nodes[i].late.Store(true)
		}
	}
}

// giveBack makes the claim one that is over, and reports whether it was not already, with success.
func (c *claim) giveBack(ctx context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == protocol.Over && c.tally().freed >= c.b.quorum {
		return false
	}
	for i := range c.places {
		c.places[i].err = nil // of an earlier call
	}
	c.enterLocked(ctx, protocol.Over)
	return true
}

// released reports whether a claim that is over has been given back, so that a quorum does not have it any more, or
// too little of it was left for a lock, and how many nodes are still to answer that answered before.
func (c *claim) released() (settled bool, waiting int, err error) {
	t := c.tally()
	var failed, lagging int
	for i := range c.places {
		switch p := &c.places[i]; {
		case p.state.uncertain() && p.err != nil && p.answer == given:
			failed++
		case p.answer != given || p.state == held || p.state.uncertain():
			waiting++
			if c.b.nodes[i].lags() {
				lagging++
			}
		}
	}
	switch gone := len(c.places) - t.freed - waiting - failed; {
	case t.freed >= c.b.quorum:
		return true, waiting - lagging, nil
	case gone > len(c.places)-c.b.quorum:
		return true, 0, locker.ErrLost
	case t.freed+gone >= c.b.quorum:
		// It was on a bare majority, and those that have not answered are too few for anybody.
		return true, waiting - lagging, nil
	case waiting == 0:
		return true, 0, c.noQuorum()
	}
	return false, waiting, nil
}

// closePatience is how long Close waits, at least, for the rest of the nodes when a quorum has closed: one that is
// well gives back what is left there within that time. One that is not may take maxTimeout, be it only that go-redis
// still dials.
const closePatience = 100 * time.Millisecond

// Close implements locker.Backend. It does not wait for nodes that do not answer: what is left there ends by itself.
func (b *redlock) Close() error {
	start := time.Now()
	answers := make(chan error, len(b.nodes))
	for _, n := range b.nodes {
		go func() {
			n.running.Wait()
			answers <- n.Server.Close()
		}()
	}
	patience := time.NewTimer(conn.MaxTimeout)
	defer patience.Stop()
	patient := true
	var errs []error
	for len(errs) < len(b.nodes) {
		if patient && len(errs) >= min(b.quorum, b.lively()) {
			patient = false
			patience.Reset(max(closePatience, time.Since(start)))
		}
		select {
		case err := <-answers:
			errs = append(errs, err)
		case <-patience.C:
			return errors.Join(errs...)
		}
	}
	return errors.Join(errs...)
}

// lively returns how many nodes are worth waiting for.
func (b *redlock) lively() (count int) {
	for _, n := range b.nodes {
		if !n.lags() {
			count++
		}
	}
	return count
}

// Renew implements locker.Backend: a lease is renewed when a quorum has renewed it. It does not wait for the others,
// but brings the lease back to those that say they have lost it. A request to one that is slow may be sent later, when
// the lease has been unlocked, perhaps; it then renews nothing, unless it was about to be sent at that moment.
func (b *redlock) Renew(ctx context.Context, gs []locker.Grant, done func(i int, r locker.Renewal)) {
	r := &renewal{
		b: b, gs: slices.Clone(gs), report: done, open: len(gs), decided: make(chan struct{}),
		votes: make([]ballot, len(gs)),
	}
	for i := range gs {
		r.claims = append(r.claims, b.claimOf(gs[i]))
	}
	bound := conn.MaxTimeout
	if deadline, ok := ctx.Deadline(); ok {
		bound = time.Until(deadline)
	}
	detached := context.WithoutCancel(ctx)
	for i := range b.nodes {
		b.nodes[i].running.Go(func() { r.ask(detached, i, bound) })
	}
	select {
	case <-r.decided:
	case <-ctx.Done():
	}
	r.end()
}
