package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Queue hands out jobs one after the other: job 1, and job n+1 when the result of job n has been handed in.
//
// It trusts no lock. It remembers the greatest fencing token that it has seen, and whatever comes with a smaller one is
// from a leader who has been deposed and does not know yet: refused with ErrDeposed. Any call raises that fence, so a
// leader who has called Claim is safe from all who led before, though it may be long until it hands in a result.
//
// All methods may be called again after an error, when it is unknown whether they had an effect.
type Queue interface {
	// Claim begins the term of a leader, and says from whom it takes over.
	Claim(ctx context.Context, l Leader) (Handover, error)
	// Next returns the number of the job to be done.
	Next(ctx context.Context, l Leader) (job int64, err error)
	// Submit hands in the result of a job: ErrOutOfOrder unless it is the next one.
	Submit(ctx context.Context, l Leader, job int64) error
	// Leave notes that the leader is about to unlock, so that its successor can tell how long the handover took. That
	// stands, also if a call arrives later that the leader sent before, and gave up when it was told to stop.
	Leave(ctx context.Context, l Leader) error
}

// Leader is who calls.
type Leader struct {
	Name  string // for people
	Token uint64 // the fencing token of its lease
}

func (l Leader) String() string { return fmt.Sprintf("%s, token %d", l.Name, l.Token) }

// Handover is what a queue remembers of the former leader.
type Handover struct {
	From string        // its name; "" if there was none
	Left bool          // it called Leave; else it vanished
	Ago  time.Duration // since it left, or was last heard of, by the clock of the queue; etcd tells no time, so there by theirs
}

var (
	// ErrDeposed: there is a newer leader.
	ErrDeposed = errors.New("deposed")

	// ErrOutOfOrder: this job is not the next one.
	ErrOutOfOrder = errors.New("out of order")
)

func deposed(by Leader) error { return fmt.Errorf("%w by %v", ErrDeposed, by) }

func outOfOrder(next int64) error { return fmt.Errorf("%w: the next job is %d", ErrOutOfOrder, next) }

// answerWithin bounds the wait for one answer of a queue that has a server. Who called tries again.
const answerWithin = 2 * time.Second

var errNoAnswer = fmt.Errorf("no answer within %v", answerWithin)

// sayNoAnswer returns the cause with which ctx has ended instead of an error which says no more than that it has.
func sayNoAnswer(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return cmp.Or(context.Cause(ctx), err)
	}
	return err
}

// memoryQueue is a Queue in memory.
type memoryQueue struct {
	mu      sync.Mutex
	leader  Leader
	seen    time.Time // when the leader was last heard of
	left    bool
	results []Leader // who did job i+1
}

var _ Queue = (*memoryQueue)(nil)

// fence refuses a deposed leader, and takes note of any other. The caller holds mu.
func (q *memoryQueue) fence(l Leader) (before Handover, err error) {
	now := time.Now()
	if l.Token < q.leader.Token {
		return Handover{}, deposed(q.leader)
	}
	if l.Token > q.leader.Token && q.leader.Token > 0 {
		before = Handover{From: q.leader.Name, Left: q.left, Ago: now.Sub(q.seen)}
	}
	if l.Token > q.leader.Token || !q.left {
		q.leader, q.seen, q.left = l, now, false
	}
	return before, nil
}

func (q *memoryQueue) Claim(_ context.Context, l Leader) (Handover, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fence(l)
}

func (q *memoryQueue) Next(_ context.Context, l Leader) (int64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, err := q.fence(l)
	return int64(len(q.results)) + 1, err
}

func (q *memoryQueue) Submit(_ context.Context, l Leader, job int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := q.fence(l); err != nil {
		return err
	}
	done := int64(len(q.results))
	switch {
	case job == done+1:
		q.results = append(q.results, l)
		return nil
	case job == done && job > 0 && q.results[job-1].Token == l.Token:
		return nil // again: the answer got lost
	}
	return outOfOrder(done + 1)
}

func (q *memoryQueue) Leave(_ context.Context, l Leader) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, err := q.fence(l)
	if err == nil {
		q.left = true
	}
	return err
}
