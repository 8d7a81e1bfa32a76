package server

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// poll asks Redis, whenever that is due, whose turn it is, until ctx ends or there has been nobody to ask for.
func (l *Line) poll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	room := make(chan struct{}, pollsAtOnce)
	busy := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.kick:
		}
		for len(room) < cap(room) {
			due := l.take(time.Now())
			if len(due) == 0 {
				break
			}
			room <- struct{}{}
			done := sync.OnceFunc(func() {
				<-room
				l.hurry()
			})
			if l.client.Cluster { // a node that hangs must not delay those who wait at others
				time.AfterFunc(askPatience, done)
			}
			asking.Go(func() {
				defer done()
				l.ask(ctx, due)
			})
		}
		next, waiting := l.nextAsk(len(room) == cap(room))
		if waiting || l.leases.any() {
			busy = time.Now()
		} else if time.Since(busy) > linger && l.retire() {
			return
		}
		timer.Reset(time.Until(next))
	}
}

// askPatience is how long to wait for the answers of a cluster about some keys before others are asked about.
const askPatience = PollEvery / 10

// retire reports whether nobody is waiting or holds anything, and if so makes room for another watch.
func (l *Line) retire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.keys) > 0 || l.leases.any() {
		return false
	}
	l.stop = nil
	return true
}

// question is what one script asks about a key, for some of its waiters.
type question struct {
	key     *lineKey
	members []string
}

// take returns what is to be asked now, if a key is due, with those that are nearly due.
func (l *Line) take(now time.Time) (questions []question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for by, members := now, 0; members < pollTogether; by = now.Add(PollEvery / 4) {
		k := l.takeKey(by)
		if k == nil {
			break
		}
		k.asked, k.failing, k.ask = l.subscribed, false, now.Add(l.nextPoll(0))
		all := make([]string, 0, len(k.waiters))
		for w := range k.waiters {
			all = append(all, w.names.Member)
		}
		members += len(all)
		for part := range slices.Chunk(all, membersTogether) {
			k.asking++
			questions = append(questions, question{k, part})
		}
	}
	return questions
}

// takeKey takes the next key that is to be asked about out of the heap, or returns nil if there is none by then.
func (l *Line) takeKey(by time.Time) *lineKey {
	for len(l.urgent) > 0 {
		last := len(l.urgent) - 1
		k := l.urgent[last]
		l.urgent = l.urgent[:last]
		if k.place >= 0 && k.asked < l.subscribed {
			heap.Remove(&l.due, k.place)
			return k
		}
	}
	l.urgent = nil
	if len(l.due) == 0 || l.due[0].ask.After(by) {
		return nil
	}
	return heap.Pop(&l.due).(*lineKey)
}

// nextPoll is when to ask again about a key whose holder's lease ends in so much time. It is sooner if that is how
// waiters learn of an Unlock, unless they wait for many keys.
func (l *Line) nextPoll(remaining time.Duration) time.Duration {
	every := PollEvery
	if l.uncalled != nil && len(l.keys) <= fewKeys {
		every /= 4
	}
	next := every - rand.N(every/4)
	if remaining > 0 {
		next = min(next, remaining)
	}
	return next
}

// nextAsk returns when poll has to look again, and whether there are any keys. If there is no room for more questions,
// poll is woken when there is.
func (l *Line) nextAsk(full bool) (next time.Time, waiting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake = time.Now().Add(PollEvery)
	if len(l.due) > 0 && l.due[0].ask.Before(l.wake) && !full {
		l.wake = l.due[0].ask
	}
	return l.wake, len(l.keys) > 0
}

// ask asks about keys and calls those whose turn it is.
func (l *Line) ask(ctx context.Context, due []question) {
	bounded, cancel := context.WithTimeout(ctx, scripts.Liveness)
	defer cancel()
	work := &conn.Batch{Script: l.scripts.Poll}
	for _, q := range due {
		work.Add(bounded, q.key.names.PollWords(q.members))
	}
	work.Done = func(i int) {
		reply, err := work.Cmds[i].Slice()
		if err != nil && ctx.Err() != nil {
			return // nobody waits any more
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.answer(due[i], reply, err)
	}
	_ = l.client.RunBatch(bounded, work)
}

// answer applies an answer about a key.
func (l *Line) answer(q question, reply []any, err error) {
	k := q.key
	l.apply(q, reply, err)
	if k.asking--; k.asking == 0 {
		l.plan(k, k.ask)
	}
}

func (l *Line) apply(q question, reply []any, err error) {
	if conn.IsUnsettled(err) && !l.client.Single {
		return // the key is on its way to another node: nobody can take it meanwhile
	}
	if err != nil {
		l.unanswered(q, l.client.Explain(err))
		return
	}
	q.key.failed = 0
	l.answered = time.Now()
	if q.key.asked < l.subscribed {
		q.key.ask = time.Now()
	}
	for _, member := range q.members {
		if w := l.waiterOf(member); w != nil {
			w.Heard()
			if l.uncalled != nil && w.told != l.uncalled { //nolint:errorlint // the same one
				w.told = l.uncalled
				w.Deaf(l.uncalled)
			}
		}
	}
	if len(reply) == 0 {
		return
	}
	if left, ok := reply[0].(int64); ok && left >= 0 {
		if ask := time.Now().Add(l.nextPoll(remainingOf(left))); ask.Before(q.key.ask) {
			q.key.ask = ask
		}
	}
	for _, member := range reply[1:] {
		if member, ok := member.(string); ok {
			if w := l.waiterOf(member); w != nil {
				w.Call()
			}
		}
	}
}

// waiterOf returns the waiter of a member of a line, or nil.
func (l *Line) waiterOf(member string) *Waiter {
	if len(member) <= len(l.Process) {
		return nil
	}
	return l.waiters[member[len(l.Process)+1:]]
}

// unanswered applies an error of a request about a key. What may pass does not end the waits. That a connection fails
// once is not worth telling: one from the pool may have been broken long ago.
func (l *Line) unanswered(q question, err error) {
	k := q.key
	if !k.failing { // else another part of what was asked has failed, too
		k.failing = true
		k.failed++
	}
	k.ask = time.Now().Add(OutagePause(k.failed))
	err = fmt.Errorf("waiting: %w", err)
	for _, member := range q.members {
		switch w := l.waiterOf(member); {
		case w == nil:
		case !conn.Passes(err):
			w.Fail(err)
		case k.failed > 1:
			w.Retry(err)
		}
	}
}
