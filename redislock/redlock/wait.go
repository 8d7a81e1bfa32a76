package redlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/server"
	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

// Wait implements locker.Queue. Once it has been refused, it rides out a quorum that is missing for a while.
func (b *redlock) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	c := b.newClaim(r, true)
	for i, n := range b.nodes { // before they can call
		c.waiters = append(c.waiters, n.Line.Join(c.names, &nodeListener{c, i}))
	}
	defer c.forget()
	inLine, failures := false, 0
	for try := 1; ; try++ {
		sent := time.Now()
		token, err := c.acquire(ctx)
		if err == nil {
			return locker.Grant{Request: r, Token: token, Sent: sent, Private: c}, nil
		}
		var vote *refusedVote
		switch {
		case errors.As(err, &vote):
			inLine, failures = true, 0
			r.ReportHolder(vote.held.Holder)
			err = c.waitForTurn(ctx, try)
		case inLine && ctx.Err() == nil && conn.Passes(err):
			failures++
			r.ReportRetry(err)
			if conn.Sleep(ctx, server.OutagePause(failures)) {
				err = c.waitForTurn(ctx, 1)
			} else {
				err = context.Cause(ctx)
			}
		}
		if err != nil {
			c.enter(ctx, protocol.Over)
			return locker.Grant{}, locker.NotAcquired(err) // what may be left is given back by the claim
		}
	}
}

// waitForTurn takes a claim that was refused to its place in line, and waits until it is its turn at a quorum.
func (c *claim) waitForTurn(ctx context.Context, try int) error {
	c.lineUpAll(ctx)
	c.expect()
	// Where it is our turn already, the lock fell between us and somebody who does not stand in line.
	if try > 1 && !conn.Sleep(ctx, c.spread(try-1)) {
		return context.Cause(ctx)
	}
	again := time.NewTimer(server.PollEvery + rand.N(server.PollEvery/2))
	defer again.Stop()
	for {
		called, err := c.turn()
		switch {
		case called >= c.b.quorum:
			return nil
		case err != nil && !conn.Passes(err):
			return err
		}
		select {
		case <-c.events:
		case <-again.C:
			if err != nil {
				c.request.ReportRetry(err)
			}
			// Called by some, but not by a quorum: the lines may not have the same order, if a node was not told our
			// place.
			if called > 0 {
				c.lineUpAgain(ctx)
			}
			c.expect()
			again.Reset(server.PollEvery + rand.N(server.PollEvery/2))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lineUpAll takes a claim to its place in the lines. The first time, that is the latest that a node has given it.
func (c *claim) lineUpAll(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.arrival == "" {
		for i := range c.places {
			if a := c.places[i].arrival; len(a) > len(c.arrival) || len(a) == len(c.arrival) && a > c.arrival {
				c.arrival = a
			}
		}
		if c.arrival == "" { // nobody has refused it, but nobody has kept it either
			c.arrival = c.b.least()
		}
	}
	c.enterLocked(ctx, protocol.Waiting)
}

// lineUpAgain tells all nodes of the place.
func (c *claim) lineUpAgain(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.places {
		c.places[i].arrival = ""
	}
	c.enterLocked(ctx, protocol.Waiting)
}

// expect makes sure that each node is asked, should its call get lost.
func (c *claim) expect() {
	for i, n := range c.b.nodes {
		c.mu.Lock()
		remaining := time.Duration(0)
		if r := c.places[i].refusal; r != nil {
			remaining = r.Remaining
		}
		c.mu.Unlock() // a line calls an nodeListener with its own mutex held
		n.Line.Expect(c.waiters[i], remaining)
	}
}

// forget ends the waiting on our side.
func (c *claim) forget() {
	for i, w := range c.waiters {
		c.b.nodes[i].Line.Leave(w)
	}
	c.waiters = nil
}

// turn returns how many nodes say that it is our turn, or an error if too many cannot be asked.
func (c *claim) turn() (called int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var reasons []error
	for i := range c.places {
		p := &c.places[i]
		if p.failing != nil {
			if errors.Is(p.failing, locker.ErrClosed) && !errors.Is(p.failing, conn.ErrClientClosed) {
				return 0, p.failing // by Close
			}
			reasons = append(reasons, c.b.nodes[i].blame(p.failing))
		}
		if p.called {
			called++
		}
	}
	if len(reasons) > len(c.places)-c.b.quorum {
		return 0, &noQuorumError{len(c.places), c.b.quorum, reasons}
	}
	return called, nil
}

// nodeListener hears what one node says to a claim that waits.
type nodeListener struct {
	c *claim
	i int
}

func (e *nodeListener) note(change func(p *place)) {
	e.c.mu.Lock()
	change(&e.c.places[e.i])
	e.c.mu.Unlock()
	e.c.wake()
}

// Call implements listener.
func (e *nodeListener) Call() { e.note(func(p *place) { p.called, p.failing = true, nil }) }

// Fail implements listener.
func (e *nodeListener) Fail(err error) { e.note(func(p *place) { p.failing = err }) }

// Retry implements listener.
func (e *nodeListener) Retry(err error) { e.Fail(err) }

// Heard implements listener.
func (e *nodeListener) Heard() {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	e.c.places[e.i].failing = nil
}

// Deaf implements listener: the node is asked whose turn it is, and counts.
func (e *nodeListener) Deaf(err error) { e.c.request.ReportRetry(e.c.b.nodes[e.i].blame(err)) }
