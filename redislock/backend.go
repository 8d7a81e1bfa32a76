package redislock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

const (
	// fenceTTL is for how long the last token of a key is remembered after its last use. The clock alone makes tokens
	// increase; remembering them covers a clock that is set back by less than this.
	fenceTTL = time.Hour

	// refuseLate is for how long a request that arrives after its owner has given up is refused: longer than any
	// connection holds one back, unless the server itself is stopped.
	refuseLate = time.Minute

	// renewTogether is how many leases one script renews: the server does nothing else meanwhile.
	renewTogether = 200
)

// ms returns a duration as Redis wants it.
func ms(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// check refuses, before Redis is asked, what it could not keep.
func (b *backend) check(r locker.Request) error {
	if b.replicas > 0 && b.within >= r.TTL {
		return fmt.Errorf("%w: TTL(%v) is not longer than the %v that replicas have",
			locker.ErrInvalidOption, r.TTL, b.within)
	}
	if r.TTL%time.Millisecond != 0 {
		return fmt.Errorf("%w: TTL(%v): Redis counts in whole milliseconds", locker.ErrInvalidOption, r.TTL)
	}
	return checkName(r.Name())
}

// Acquire implements locker.Backend.
func (b *backend) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	a := attempt{names: namesOf(r, b.line.process), ttl: r.TTL}
	token, refusal, err := b.acquire(ctx, &a)
	switch {
	case err != nil:
		return locker.Grant{}, err
	case refusal != nil:
		return locker.Grant{}, &locker.Held{Holder: holderIn(refusal.value), Remaining: refusal.remaining}
	}
	return locker.Grant{Request: r, Token: token}, nil
}

// refusal is why a lock was not granted.
type refusal struct {
	value     string        // of the lock; "" if it is free, and others are in line for it
	remaining time.Duration // of the holder's lease, if it has an end
	arrival   string        // in the line
}

// attempt is what an owner does to get a lock.
type attempt struct {
	names   names
	ttl     time.Duration
	join    bool   // the line, if refused
	arrival string // in the line; "" if it has not joined it yet

	// least is the least token that will do, for one of several servers; "" where there is but one. clock is then set to
	// that of the server, in microseconds, and again if the owner had the lock already.
	least string
	clock uint64
	again bool

	sent bool // a request has gone out, whatever became of it

	// doubt is set when a request may still be on its way, because it was given up unanswered: the kernel goes on
	// sending what was written to a connection that is closed. What is done next leaves a mark, by which it is refused
	// if it arrives when the owner has gone.
	doubt bool
}

// acquire asks for the lock, and again if a connection fails: one from the pool may have been broken long ago.
func (b *backend) acquire(ctx context.Context, a *attempt) (uint64, *refusal, error) {
	var failure error
	for i := 1; ; i++ {
		n, doubt := a.names, "0"
		if a.doubt {
			doubt = "1"
		}
		words := []string{n.lock, n.fence, n.gone, n.queue, n.alive, n.value, ms(a.ttl), doubt, a.least, n.member, a.arrival}
		if !a.join {
			words = words[:9]
		}
		reply, err := b.ask(ctx, a.names, words)
		if err == nil {
			a.sent = true
			return a.answer(reply)
		}
		if !isDial(err) {
			a.sent = true
			a.doubt = a.doubt || !isReply(err) && !isShortfall(err)
		}
		if failure == nil || !isContext(err) {
			failure = err // what went wrong says more than that there was no time left to try again
		}
		if i == attempts || !pause(ctx, err, i) {
			break
		}
	}
	err, refused := b.client.meaningOf(b.client.diagnose(ctx, failure))
	if !a.sent || refused && !a.doubt {
		err = locker.NotAcquired(err)
	}
	return 0, nil, err
}

// answer turns a reply to the acquire script into a token, or a refusal.
func (a *attempt) answer(reply any) (uint64, *refusal, error) {
	switch reply := reply.(type) {
	case string:
		text, clock, _ := strings.Cut(reply, " ")
		token, err := strconv.ParseUint(text, 10, 64)
		if clock != "" && err == nil {
			clock, a.again = strings.CutSuffix(clock, " again")
			a.clock, err = strconv.ParseUint(clock, 10, 64)
		}
		if err != nil {
			return 0, nil, fmt.Errorf("redis: unexpected token %q", reply)
		}
		return token, nil, nil
	case int64:
		return 0, nil, locker.NotAcquired(errGivenUp)
	case []any:
		if len(reply) == 3 {
			value, _ := reply[0].(string)
			left, _ := reply[1].(int64)
			arrival, _ := reply[2].(string)
			return 0, &refusal{value, remainingOf(left), arrival}, nil
		}
	}
	return 0, nil, fmt.Errorf("redis: unexpected reply %v", reply)
}

// remainingOf turns a PTTL into a duration. A lease that is in its last millisecond, of which Redis says 0, still has an
// end, unlike one that has none, of which it says -1.
func remainingOf(pttl int64) time.Duration { return time.Duration(max(pttl+1, 0)) * time.Millisecond }

// Renew implements locker.Backend.
func (b *backend) Renew(ctx context.Context, gs []locker.Grant, done func(i int, r locker.Renewal)) {
	value := func(i int) string { return valueOf(gs[i].Owner.String(), gs[i].Holder) }
	b.renew(ctx, gs, value, func(i int, err error) { done(i, locker.Renewal{Err: err}) })
}

// renew renews the locks that have the given values. It calls done for each when its script has been answered: each
// script goes out by itself, and on a cluster those for each node do.
func (b *backend) renew(ctx context.Context, gs []locker.Grant, value func(i int) string, done func(i int, err error)) {
	together := renewTogether
	if b.client.cluster {
		together = 1
	}
	var batches []*batch
	for i := 0; i < len(gs); i += together {
		part := gs[i:min(i+together, len(gs))]
		words := make([]string, 3*len(part))
		for j, g := range part {
			words[j], words[len(part)+2*j], words[len(part)+2*j+1] = g.Name(), value(i+j), ms(g.TTL)
		}
		if i == 0 || !b.client.cluster {
			work := &batch{script: b.scripts.renew}
			work.done = func(k int) { b.renewed(work.cmds[k], i+k*together, min(i+k*together+len(part), len(gs)), done) }
			batches = append(batches, work)
		}
		batches[len(batches)-1].add(ctx, len(part), words)
	}
	parallel(batches, func(work *batch) { _ = b.client.runBatch(ctx, work) })
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

// renewed reports what a script has said about the leases from i to end.
func (b *backend) renewed(cmd once, i, end int, done func(i int, err error)) {
	results, err := cmd.Slice()
	if err != nil {
		err = b.client.explain(err)
	}
	for j := range end - i {
		switch {
		case err != nil:
			done(i+j, err)
		case j >= len(results):
			done(i+j, fmt.Errorf("redis: unexpected reply %v", results))
		default:
			done(i+j, b.renewedOne(results[j]))
		}
	}
}

// renewedOne turns the result for one lease into its error.
func (b *backend) renewedOne(result any) error {
	switch result := result.(type) {
	case int64:
		if result == 1 {
			return nil
		}
		return locker.ErrLost
	case string:
		return b.client.explain(scriptError(result))
	}
	return fmt.Errorf("redis: unexpected result %v", result)
}

// scriptError is an error of Redis that a script has passed on.
type scriptError string

func (e scriptError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (e scriptError) RedisError() {}

// Release implements locker.Backend.
func (b *backend) Release(ctx context.Context, g locker.Grant) error {
	n := namesOf(g.Request, b.line.process)
	if g.Token == 0 { // unknown outcome: it may be in line, or still on its way
		return final(b.leave(ctx, n, true))
	}
	return final(b.free(ctx, n))
}

// final marks the error of a release that is the same for ever.
func final(err error) error {
	if errors.Is(err, locker.ErrClosed) {
		return locker.Final(err)
	}
	return err
}

// free gives back a lock of an owner who is not in line.
func (b *backend) free(ctx context.Context, n names) error {
	return b.releaseKeys(ctx, 4, []string{n.lock, n.queue, n.alive, n.gone, n.value})
}

// leave takes the owner out of line and gives back what it has. If there is doubt, requests of it that arrive later are
// refused.
func (b *backend) leave(ctx context.Context, n names, doubt bool) error {
	return b.releaseKeys(ctx, 4, releaseWords(n, doubt))
}

// releaseWords returns the words of the release script for an owner who may be in line.
func releaseWords(n names, doubt bool) []string {
	words := []string{n.lock, n.queue, n.alive, n.gone, n.value, n.member, "0"}
	if doubt {
		words[6] = "1"
	}
	return words
}

// releaseKeys frees the lock; for the words, of which so many are keys, see release.lua.
func (b *backend) releaseKeys(ctx context.Context, keys int, words []string) error {
	// Not run again on errors: the second answer would say that the lock was not ours any more. Who called knows that.
	reply, err := b.client.run(ctx, b.scripts.release, keys, words)
	switch {
	case err != nil:
		return b.client.explain(err)
	case reply == int64(1):
		return nil
	case reply == int64(0):
		return locker.ErrLost
	}
	return fmt.Errorf("redis: unexpected reply %v", reply)
}
