package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdQueue is a Queue in etcd. The one named "jobs" has the keys
//
//	workers/jobs/queue                  an etcdState, as JSON
//	workers/jobs/0000000000000000017    token and name of who did job 17, for the last thousand jobs
//
// They have no lease, or a leader who was deposed could get in after all: delete them to begin again with job 1.
//
// etcd does not compute. It is the process that works out what a call makes of the queue, and etcd that takes it on
// condition that the queue is as it was read. So a leader that is stopped in between changes nothing when it
// goes on after another one has called.
//
// etcdlock.Guard is the same for writes that know of no queue: on condition that the lease of the leader holds.
type etcdQueue struct {
	kv     clientv3.KV
	name   string
	prefix string // of its keys
}

var _ Queue = (*etcdQueue)(nil)

func newEtcdQueue(kv clientv3.KV, name string) *etcdQueue {
	return &etcdQueue{kv: kv, name: name, prefix: "workers/" + url.PathEscape(name) + "/"} // no slash in between
}

func (q *etcdQueue) key() string             { return q.prefix + "queue" }
func (q *etcdQueue) result(job int64) string { return fmt.Sprintf("%s%019d", q.prefix, job) } // in order

// etcdState is what is known of a queue but for its results. The zero value is that of one that nobody has called yet.
type etcdState struct {
	Token  uint64    `json:"token"`  // the greatest fencing token seen
	Leader string    `json:"leader"` // whose it is
	Seen   time.Time `json:"seen"`   // when that leader was last heard of, by its own clock
	Left   bool      `json:"left"`   // whether it left then
	Done   int64     `json:"done"`   // the number of the last job done
	DoneBy uint64    `json:"doneBy"` // the token of who did it
}

// etcdAnswer is what the queue answers to a leader that has not been deposed.
type etcdAnswer struct {
	done     int64 // the number of the last job done
	accepted bool  // the result of the job, now or before
	before   Handover
}

// after returns what becomes of a queue when a leader calls, and perhaps hands in the result of a job or leaves. It
// refuses a deposed leader.
func (s etcdState) after(l Leader, leaves bool, job int64) (etcdState, etcdAnswer, error) {
	var a etcdAnswer
	now := time.Now()
	if l.Token < s.Token {
		return s, a, deposed(Leader{Name: s.Leader, Token: s.Token})
	}
	if l.Token > s.Token && s.Token > 0 {
		a.before = Handover{From: s.Leader, Left: s.Left, Ago: max(now.Sub(s.Seen), 0)} // clocks may differ
	}
	if l.Token > s.Token || !s.Left {
		s.Token, s.Leader, s.Seen, s.Left = l.Token, l.Name, now.UTC(), leaves
	}
	if job == s.Done+1 {
		s.Done, s.DoneBy = job, l.Token
	}
	a.done = s.Done
	a.accepted = job > 0 && job == s.Done && s.DoneBy == l.Token // also again: the answer got lost
	return s, a, nil
}

// ask asks the queue: it reads what is there, and writes what becomes of it, until nobody else has come in between.
func (q *etcdQueue) ask(ctx context.Context, l Leader, leaves bool, job int64) (etcdAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, errNoAnswer)
	defer cancel()
	for {
		a, ok, err := q.askOnce(ctx, l, leaves, job)
		switch {
		case errors.Is(err, ErrDeposed):
			return a, err
		case err != nil:
			return a, fmt.Errorf("etcd: queue %q: %w", q.name, sayNoAnswer(ctx, err))
		case ok:
			return a, nil
		}
	}
}

func (q *etcdQueue) askOnce(ctx context.Context, l Leader, leaves bool, job int64) (a etcdAnswer, ok bool, err error) {
	found, err := q.kv.Get(ctx, q.key())
	if err != nil {
		return a, false, err
	}
	var was etcdState
	var revision int64 // 0 is that of a key that is not there
	for _, kv := range found.Kvs {
		revision = kv.ModRevision
		if err := json.Unmarshal(kv.Value, &was); err != nil {
			return a, false, err
		}
	}
	is, a, err := was.after(l, leaves, job)
	if err != nil {
		return a, false, err
	}
	state, err := json.Marshal(is)
	if err != nil {
		return a, false, err
	}
	ops := []clientv3.Op{clientv3.OpPut(q.key(), string(state))}
	if is.Done > was.Done {
		ops = append(ops,
			clientv3.OpPut(q.result(job), strconv.FormatUint(l.Token, 10)+" "+l.Name),
			clientv3.OpDelete(q.result(job-1000)))
	}
	written, err := q.kv.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(q.key()), "=", revision)).
		Then(ops...).
		Commit()
	if err != nil {
		return a, false, err
	}
	return a, written.Succeeded, nil
}

func (q *etcdQueue) Claim(ctx context.Context, l Leader) (Handover, error) {
	a, err := q.ask(ctx, l, false, 0)
	return a.before, err
}

func (q *etcdQueue) Next(ctx context.Context, l Leader) (int64, error) {
	a, err := q.ask(ctx, l, false, 0)
	return a.done + 1, err
}

func (q *etcdQueue) Submit(ctx context.Context, l Leader, job int64) error {
	a, err := q.ask(ctx, l, false, job)
	if err == nil && !a.accepted {
		return outOfOrder(a.done + 1)
	}
	return err
}

func (q *etcdQueue) Leave(ctx context.Context, l Leader) error {
	_, err := q.ask(ctx, l, true, 0)
	return err
}
