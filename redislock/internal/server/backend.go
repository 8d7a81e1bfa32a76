// Package server keeps locks on one Redis: a server, the master that Sentinel knows, or a cluster.
package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

const (
	// renewTogether is how many leases one script renews: the server does nothing else meanwhile.
	renewTogether = 200
)

// Check refuses, before Redis is asked, what it could not keep.
func (b *Server) Check(r locker.Request) error {
	if r.TTL%time.Millisecond != 0 {
		return fmt.Errorf("%w: TTL(%v): Redis counts in whole milliseconds", locker.ErrInvalidOption, r.TTL)
	}
	return scripts.CheckName(r.Name())
}

// Acquire implements locker.Backend.
func (b *Server) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.Check(r); err != nil {
		return locker.Grant{}, err
	}
	a := Attempt{Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL}
	refusal, err := b.Try(ctx, &a)
	switch {
	case err != nil:
		return locker.Grant{}, err
	case refusal != nil:
		return locker.Grant{}, &locker.Held{Holder: scripts.HolderIn(refusal.Value), Remaining: refusal.Remaining}
	}
	b.Line.leases.granted(r, false)
	return locker.Grant{Request: r, Token: a.Token, Slot: a.Slot}, nil
}

// Refusal is why a lock was not granted.
type Refusal struct {
	Value     string        // of the lock; "" if it is free, and others are in line for it
	Remaining time.Duration // of the holder's lease, if it has an end
	Arrival   string        // in the line
}

// Attempt is what an owner does to get a lock.
type Attempt struct {
	Names   scripts.Names
	TTL     time.Duration
	Join    bool   // the line, if refused
	Arrival string // in the line; "" if it has not joined it yet

	enter func() // called before the first request that may join the line; may be nil

	// Least is the least token that will do, for one of several servers; "" where there is but one. clock is then set
	// to that of the server, in microseconds, and again if the owner had the lock already.
	Least string
	Clock uint64
	Again bool

	Token uint64 // set when the lock was granted; and so is Slot, if it has slots
	Slot  int

	Until time.Time // if not zero: an answer that comes later is of no use

	Sent bool // a request has gone out, whatever became of it

	// Unanswered is how many requests were given up without an answer, and may still be on their way: the kernel goes
	// on sending what was written to a connection that is closed. Each request says how many there were before it, and
	// leaves a mark by which those are refused if they arrive when the owner has gone.
	Unanswered int
}

// words returns what the acquire script takes.
func (a *Attempt) words() scripts.Words {
	if a.Join {
		return a.Names.JoinWords(a.TTL, a.Unanswered, a.Least, a.Arrival)
	}
	return a.Names.AcquireWords(a.TTL, a.Unanswered, a.Least)
}

// Try asks for the lock, and again if a connection fails: one from the pool may have been broken long ago. It returns
// nil twice if the lock was granted.
func (b *Server) Try(ctx context.Context, a *Attempt) (*Refusal, error) {
	var failure error
	for i := 1; ; i++ {
		reply, err := b.tryOnce(ctx, a)
		if err == nil {
			a.Sent = true
			return a.answer(reply)
		}
		if !conn.IsDial(err) {
			a.Sent = true
			if !conn.IsReply(err) {
				a.Unanswered++
			}
		}
		if failure == nil || !conn.IsContext(err) {
			failure = err // what went wrong says more than that there was no time left to try again
		}
		if i == 1 { // what follows is not worth saving a context
			var cancel context.CancelFunc
			ctx, cancel = conn.Until(ctx, a.Until)
			defer cancel()
		}
		if i == conn.Attempts || !conn.Pause(ctx, err, i) {
			break
		}
	}
	err, refused := b.Client.MeaningOf(b.Client.Diagnose(ctx, failure))
	if !a.Sent || refused && a.Unanswered == 0 {
		err = locker.NotAcquired(err)
	}
	return nil, err
}

// simple reports whether the quick script may do: if the lock can be had now, all that there is to do is to take it.
func (a *Attempt) simple() bool { return a.Arrival == "" && a.Unanswered == 0 && a.Names.Mode == "" }

// tryOnce makes one request for the lock, and a second one if the quick script does not suffice.
func (b *Server) tryOnce(ctx context.Context, a *Attempt) (any, error) {
	if a.simple() && !b.Line.awaits(a.Names.Lock) {
		reply, err := b.Client.Run(ctx, a.Until, b.Scripts.Take, a.Names.TakeWords(a.TTL, a.Least))
		if err != nil || a.suffices(reply) {
			return reply, err
		}
	}
	if a.enter != nil {
		a.enter()
		a.enter = nil
	}
	return b.Client.Run(ctx, a.Until, b.Scripts.Acquire, a.words())
}

// suffices reports whether the reply of the quick script is the answer.
func (a *Attempt) suffices(reply any) bool {
	_, granted := reply.(string)
	return granted || reply != nil && !a.Join
}

// ask runs a script that may be run again, as its answer is the same.
func (b *Server) ask(ctx context.Context, s *scripts.Script, w scripts.Words) (any, error) {
	for attempt := 1; ; attempt++ {
		reply, err := b.Client.Run(ctx, time.Time{}, s, w)
		if err == nil {
			return reply, nil
		}
		if attempt == conn.Attempts || !conn.Pause(ctx, err, attempt) {
			return nil, b.Client.Explain(err)
		}
	}
}

// answer notes what a reply to the acquire script grants, or returns why it does not.
func (a *Attempt) answer(reply any) (*Refusal, error) {
	switch reply := reply.(type) {
	case string:
		text, clock, _ := strings.Cut(reply, " ")
		token, err := strconv.ParseUint(text, 10, 64)
		if clock != "" && err == nil {
			clock, a.Again = strings.CutSuffix(clock, " again")
			a.Clock, err = strconv.ParseUint(clock, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("redis: unexpected token %q", reply)
		}
		a.Token = token
		return nil, nil
	case int64:
		if reply == -2 {
			return nil, fmt.Errorf("granted, and taken away again: %w", errRevoked) // it is to be released
		}
		return nil, locker.NotAcquired(conn.ErrGivenUp)
	case []any:
		if len(reply) == 2 {
			text, _ := reply[0].(string)
			slot, ok := reply[1].(int64)
			if token, err := strconv.ParseUint(text, 10, 64); err == nil && ok {
				a.Token, a.Slot = token, int(slot)
				return nil, nil
			}
		}
		if len(reply) == 3 {
			value, ok1 := reply[0].(string)
			left, ok2 := reply[1].(int64)
			arrival, ok3 := reply[2].(string)
			if ok1 && ok2 && ok3 {
				return &Refusal{value, remainingOf(left), arrival}, nil
			}
		}
	}
	return nil, fmt.Errorf("redis: unexpected reply %v", reply)
}

// remainingOf turns a PTTL into a duration. A lease that is in its last millisecond, of which Redis says 0, still has
// an end, unlike one that has none, of which it says -1. What somebody else has set may last for longer than a
// Duration.
func remainingOf(pttl int64) time.Duration {
	const most = math.MaxInt64/int64(time.Millisecond) - 1
	return time.Duration(min(max(pttl, -1), most)+1) * time.Millisecond
}

// Renew implements locker.Backend.
func (b *Server) Renew(ctx context.Context, gs []locker.Grant, done func(i int, r locker.Renewal)) {
	b.Line.leases.renewed(gs)
	value := func(i int) string { return scripts.ValueOf(gs[i].Owner.String(), gs[i].Holder) }
	var asking sync.WaitGroup
	defer asking.Wait()
	b.RenewValues(ctx, gs, value, func(i int, err error) {
		if err == errRevoked { //nolint:errorlint // renewedOne returns it as it is
			asking.Go(func() { done(i, locker.Renewal{Err: b.whyRevoked(ctx, gs[i])}) }) // the others do not wait
			return
		}
		done(i, locker.Renewal{Err: err})
	})
}

// errRevoked is the result of the renewal of a lease that was revoked, as far as the script knows.
var errRevoked = fmt.Errorf("%w: %w", locker.ErrLost, &locker.Revocation{})

// RenewValues renews the locks that have the given values. It calls done for each when its script has been answered:
// each script goes out by itself, and on a cluster those for each node do.
func (b *Server) RenewValues(
	ctx context.Context, gs []locker.Grant, value func(i int) string, done func(i int, err error),
) {
	var alone, beside renewals // those with a mode have holders beside them
	for i, g := range gs {
		if script, words := b.renewalOf(g, value(i)); script == b.Scripts.Renew {
			alone.add(i, words)
		} else {
			beside.add(i, words)
		}
	}
	work := append(b.renewing(ctx, b.Scripts.Renew, alone, done), b.renewing(ctx, b.Scripts.Extend, beside, done)...)
	parallel(work, func(work *conn.Batch) { _ = b.Client.RunBatch(ctx, work) })
}

// RenewalOf returns what renews a single lock.
func (b *Server) RenewalOf(g locker.Grant) (*scripts.Script, scripts.Words) {
	return b.renewalOf(g, scripts.ValueOf(g.Owner.String(), g.Holder))
}

func (b *Server) renewalOf(g locker.Grant, value string) (*scripts.Script, scripts.Words) {
	if g.Mode == locker.ModeExclusive {
		return b.Scripts.Renew, scripts.RenewWords(g.Name(), value, g.TTL)
	}
	return b.Scripts.Extend, scripts.NamesOf(g.Request, b.Line.Process).ExtendWords(g.TTL)
}

// renewals are some that one script can do together.
type renewals struct {
	words []scripts.Words
	of    []int // which grant each is about
}

func (r *renewals) add(i int, w scripts.Words) {
	r.words = append(r.words, w)
	r.of = append(r.of, i)
}

// renewing returns the batches for some renewals: one for a cluster, of as many scripts, and else one for each script.
func (b *Server) renewing(
	ctx context.Context, s *scripts.Script, all renewals, done func(i int, err error),
) (batches []*conn.Batch) {
	together := renewTogether
	if b.Client.Cluster {
		together = 1
	}
	for i := 0; i < len(all.of); i += together {
		end := min(i+together, len(all.of))
		if i == 0 || !b.Client.Cluster {
			work := &conn.Batch{Script: s}
			work.Done = func(k int) { b.renewed(work.Cmds[k], all.of[i+k*together:min(end+k*together, len(all.of))], done) }
			batches = append(batches, work)
		}
		batches[len(batches)-1].Add(ctx, scripts.Join(all.words[i:end]))
	}
	return batches
}

// parallel calls f for each item at the same time, and for a single one on this goroutine.
func parallel[T any](items []T, f func(item T)) {
	var all sync.WaitGroup
	for i, item := range items {
		if i == len(items)-1 {
			f(item)
		} else {
			all.Go(func() { f(item) })
		}
	}
	all.Wait()
}

// renewed reports what a script has said about some leases.
func (b *Server) renewed(cmd conn.Once, of []int, done func(i int, err error)) {
	results, err := cmd.Slice()
	if err != nil {
		err = b.Client.Explain(err)
	}
	for j, i := range of {
		switch {
		case err != nil:
			done(i, err)
		case j >= len(results):
			done(i, fmt.Errorf("redis: unexpected reply %v", results))
		default:
			done(i, b.renewedOne(results[j]))
		}
	}
}

// RenewedAlone turns the reply about a single lock, which RenewalOf has asked for, into its error.
func (b *Server) RenewedAlone(reply any) error {
	if results, ok := reply.([]any); ok && len(results) == 1 {
		return b.renewedOne(results[0])
	}
	return fmt.Errorf("redis: unexpected reply %v", reply)
}

// renewedOne turns the result for one lease into its error.
func (b *Server) renewedOne(result any) error {
	switch result := result.(type) {
	case int64:
		switch result {
		case 1:
			return nil
		case -1:
			return errRevoked
		}
		return locker.ErrLost
	case string:
		return b.Client.Explain(conn.ScriptError(result))
	}
	return fmt.Errorf("redis: unexpected result %v", result)
}

// Release implements locker.Backend.
func (b *Server) Release(ctx context.Context, g locker.Grant) error {
	waited := b.Line.leases.released(g.Owner)
	n := scripts.NamesOf(g.Request, b.Line.Process)
	if g.Token == 0 { // unknown outcome: it may be in line, or still on its way
		return Final(b.leave(ctx, n, true))
	}
	if g.Keep > 0 {
		return Final(b.releaseWith(ctx, b.Scripts.Keep, n.KeepWords(g.Keep)))
	}
	return Final(b.Free(ctx, n, waited))
}

// Free gives back a lock of an owner who is not in line. If it is contended, so that others are likely to be, the
// script that calls them is asked at once.
func (b *Server) Free(ctx context.Context, n scripts.Names, contended bool) error {
	if !contended && n.Mode == "" {
		reply, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Give, n.GiveWords())
		if reply != nil || err != nil {
			return b.released(reply, err)
		}
	}
	return b.ReleaseWith(ctx, n.FreeWords())
}

// Final marks the error of a release that is the same for ever.
func Final(err error) error {
	if errors.Is(err, locker.ErrClosed) {
		return locker.Final(err)
	}
	return err
}

// leave takes the owner out of line and gives back what it has. If there is doubt, requests of it that arrive later are
// refused.
func (b *Server) leave(ctx context.Context, n scripts.Names, doubt bool) error {
	return b.ReleaseWith(ctx, n.ReleaseWords(doubt))
}

// ReleaseWith gives the lock back; for the words see release.lua.
func (b *Server) ReleaseWith(ctx context.Context, w scripts.Words) error {
	return b.releaseWith(ctx, b.Scripts.Release, w)
}

func (b *Server) releaseWith(ctx context.Context, s *scripts.Script, w scripts.Words) error {
	return b.released(b.Client.Run(ctx, time.Time{}, s, w))
}

// released turns the reply to a release into its error. A release is not run again after an error: the second answer
// would say that the lock was not ours any more. Who called knows that.
func (b *Server) released(reply any, err error) error {
	switch {
	case err != nil:
		return b.Client.Explain(err)
	case reply == int64(1):
		return nil
	case reply == int64(0):
		return locker.ErrLost
	}
	return fmt.Errorf("redis: unexpected reply %v", reply)
}
