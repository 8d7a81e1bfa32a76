package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// Wait implements locker.Queue. Once in line, it rides out what may pass: the server keeps the place for as long as it
// takes the waiter for alive, and who has lost it joins the line again with the arrival that he had.
func (b *Server) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.WaitFrom(ctx, r, &Place{})
}

// Place is what an owner keeps from one wait for the next one. The zero Place is for the first.
type Place struct {
	Arrival    string // in the line; "" if it has not joined it yet
	Unanswered int    // see Attempt
}

// WaitFrom is Wait for who may have waited before, and notes what to keep.
func (b *Server) WaitFrom(ctx context.Context, r locker.Request, place *Place) (locker.Grant, error) {
	if err := b.Check(r); err != nil {
		return locker.Grant{}, err
	}
	a := Attempt{
		Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL, Join: true,
		Arrival: place.Arrival, Unanswered: place.Unanswered,
	}
	var events *waitEvents
	var w *Waiter
	a.enter = func() {
		events = &waitEvents{called: make(chan struct{}, 1), failed: make(chan error, 1), request: r}
		w = b.Line.Join(a.Names, events)
	}
	defer func() {
		if w != nil {
			b.Line.Leave(w)
		}
		*place = Place{a.Arrival, a.Unanswered}
	}()
	failures := 0
	for {
		sent := time.Now()
		a.Until = sent.Add(r.TTL)
		refused, err := b.Try(ctx, &a)
		switch {
		case err == nil && refused == nil:
			b.Line.leases.granted(r, a.Arrival != "")
			return locker.Grant{Request: r, Token: a.Token, Slot: a.Slot, Sent: sent}, nil
		case err == nil:
			failures = 0
			a.Arrival = refused.Arrival
			r.ReportHolder(scripts.HolderIn(refused.Value))
			b.Line.Expect(w, refused.Remaining)
		case a.Arrival == "": // not in line, as far as we know
			if a.Unanswered > 0 { // Release comes in its own time, and no longer than the TTL; a place may last for longer
				b.withdraw(a.Names, true)
			}
			return locker.Grant{}, err
		case conn.Passes(err) && ctx.Err() == nil && !errors.Is(err, locker.ErrLost):
			// The lock may be ours by now: the next attempt, of the same owner, will tell.
			failures++
			r.ReportRetry(err)
			if conn.Sleep(ctx, OutagePause(failures)) {
				continue
			}
			err = context.Cause(ctx)
			fallthrough
		default:
			b.withdraw(a.Names, true)
			return locker.Grant{}, err
		}
		select {
		case <-events.called:
			continue
		case err = <-events.failed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.withdraw(a.Names, a.Unanswered > 0)
		return locker.Grant{}, locker.NotAcquired(err) // who is in line is granted nothing
	}
}

// withdraw takes a waiter that no longer waits out of the line, in the background. Until that has been done, the waiter
// is skipped when it has not been heard of for a while.
func (b *Server) withdraw(n scripts.Names, doubt bool) {
	b.Outbox.Put(n.ReleaseWords(doubt), time.Now().Add(scripts.Liveness))
}

// OutagePause is how long to wait after so many failures in a row: up to a time that is shorter than the liveness of a
// waiter.
func OutagePause(failures int) time.Duration { return backOff(failures, 2*time.Second) }

// backOff returns a random time of a range that doubles with each failure in a row, up to the longest one.
func backOff(failures int, longest time.Duration) time.Duration {
	const first = 50 * time.Millisecond
	most := min(first<<min(failures-1, 10), longest)
	return most/2 + rand.N(most/2)
}

// waitEvents is the listener of a waiter with one server.
type waitEvents struct {
	called chan struct{} // has room for one
	failed chan error    // has room for one

	request locker.Request
}

// Call implements listener.
func (w *waitEvents) Call() {
	select {
	case w.called <- struct{}{}:
	default:
	}
}

// Fail implements listener: it ends the wait.
func (w *waitEvents) Fail(err error) {
	select {
	case w.failed <- err:
	default:
	}
}

// Retry implements listener.
func (w *waitEvents) Retry(err error) { w.request.ReportRetry(err) }

// Heard implements listener.
func (w *waitEvents) Heard() {}

// Deaf implements listener.
func (w *waitEvents) Deaf(err error) { w.request.ReportRetry(err) }
