package etcdlock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// step is what one caller wants of etcd: a part of a transaction. What many callers want at the same time goes into one, since
// a transaction costs the servers one entry of their log, one wait for the disk and one round trip between them, whatever is in it.
type step struct {
	ops  []clientv3.Op
	size int           // about how many bytes they take
	ttl  time.Duration // of the lock that it is about, which bounds an attempt

	// over is closed when nobody needs the answer any more, because the session has ended; nil if somebody does all the same.
	over <-chan struct{}

	// line is that of the claim which the step makes. Steps for the same line do not share a transaction: their claims would
	// have the same create revision, and nobody knew who was first.
	line string

	// sent is set once the step is part of a transaction that is under way; until then it can be withdrawn.
	sent bool // guarded by batcher.mu

	// done is closed when what follows is set.
	done     chan struct{}
	parts    []*pb.ResponseOp
	revision int64 // of the store, after the transaction
	err      error
	certain  bool        // with err: that the step was not carried out, and never will be
	repeated bool        // the transaction was sent more than once, so that what it did may have been done before
	doubtful atomic.Bool // and one of those may still arrive; it is settled in the background
}

// newStep returns a step that is part of a lock with that TTL, and has keys of so many bytes.
func newStep(ttl time.Duration, size int, ops ...clientv3.Op) *step {
	return &step{ops: ops, size: size, ttl: ttl, done: make(chan struct{})}
}

// claims reports whether the step makes a claim.
func (s *step) claims() bool { return s.line != "" }

// takeParts returns the parts of the answer, and lets go of all that takes memory, for a step that is kept.
func (s *step) takeParts() []*pb.ResponseOp {
	parts := s.parts
	s.ops, s.parts = nil, nil
	return parts
}

// conclude is the end of a step that failed.
func (s *step) conclude(err error, certain bool) {
	s.err, s.certain = err, certain
	close(s.done)
}

const (
	// maxTxnOps is etcd's default of --max-txn-ops, less one for the operation in a transaction within the transaction.
	maxTxnOps = 128 - 1

	// maxTxnBytes keeps a transaction far below what etcd accepts, which is 1.5 MiB by default (--max-request-bytes).
	maxTxnBytes = 512 << 10
)

// batcher puts steps into transactions. While its transactions are under way, further steps collect for the next.
type batcher struct {
	b     *backend
	fence *fence          // nil if the steps only read
	over  <-chan struct{} // closed when there is no more to expect

	mu       sync.Mutex
	queue    []*step
	ended    error         // what becomes of further steps; nil before end
	carriers int           // goroutines that carry out steps, except overdue ones
	idle     int           // of them
	calls    chan struct{} // has room for each of them
	overdue  int           // goroutines that wait for an answer for too long
	maxOps   int           // what the server allows is learnt if it is less than it was said to be
}

const (
	// maxCarriers is how many transactions of a batcher may be under way: one is prepared while another is carried out.
	maxCarriers = 2

	// Where there are several endpoints, a transaction that is not answered for so long no longer keeps others, which go to
	// another endpoint, from being sent; within limits.
	overdueAfter = 50 * time.Millisecond
	maxOverdue   = 16
)

func newBatcher(b *backend, f *fence, over <-chan struct{}) batcher {
	return batcher{b: b, fence: f, over: over, calls: make(chan struct{}, maxCarriers), maxOps: maxTxnOps}
}

// submit hands steps over; they are concluded sooner or later.
func (b *batcher) submit(steps ...*step) {
	b.mu.Lock()
	if b.ended != nil {
		defer b.mu.Unlock()
		b.concludeLocked(steps)
		return
	}
	b.queue = append(b.queue, steps...)
	start := b.callLocked()
	b.mu.Unlock()
	if start {
		b.start()
	}
}

// end concludes all steps that have not been sent, and those that are still to come, with an error. If the server does not answer, they
// would else be sent in vain, a few at a time.
func (b *batcher) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = err
	b.concludeLocked(b.queue)
	b.queue = nil
}

func (b *batcher) concludeLocked(steps []*step) {
	for _, s := range steps {
		s.conclude(b.ended, true)
	}
}

// callLocked has a carrier take what is in the queue, if one is idle. If one has to be started for that, it returns true, and has
// counted it.
func (b *batcher) callLocked() (start bool) {
	switch {
	case len(b.queue) == 0:
	case b.idle > 0:
		b.idle--
		b.calls <- struct{}{}
	case b.carriers < maxCarriers:
		b.carriers++
		return true
	}
	return false
}

func (b *batcher) start() {
	if !b.b.running.start(b.carry) {
		b.carry() // the Locker is closed: all steps fail
	}
}

// do submits a step and waits for its end, or that of ctx. A step that is withdrawn in time is concluded by that; what becomes of
// another one is seen when its done is closed.
func (b *batcher) do(ctx context.Context, s *step) error {
	b.submit(s)
	return b.await(ctx, s)
}

// await returns the error of a step, or ErrLeaseExpired if the step is over, or that of ctx: not its cause, which may be anything, and must
// not be taken for an answer.
func (b *batcher) await(ctx context.Context, s *step) error {
	var err error
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.over:
		err = ErrLeaseExpired
	}
	if b.withdraw(s) {
		s.conclude(err, true)
		return err
	}
	select { // an answer that is there goes before the end of ctx
	case <-s.done:
		return s.err
	default:
		return err
	}
}

// withdraw takes a step back that has not been sent.
func (b *batcher) withdraw(s *step) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.sent {
		return false
	}
	for i, queued := range b.queue {
		if queued == s {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			s.sent = true
			return true
		}
	}
	return false
}

// carry carries steps out, and waits for more until the batcher is over. The goroutine is kept because its stack is: each call of package
// grpc on a new one would have to make it larger.
func (b *batcher) carry() {
	var steps []*step
	for {
		b.mu.Lock()
		steps = b.take(steps[:0])
		if len(steps) == 0 {
			b.idle++
		}
		b.mu.Unlock()
		switch {
		case len(steps) == 0:
			if !b.awaitCall() {
				return
			}
		case b.b.endpoints() <= 1:
			b.carryOut(steps)
		case b.carryOutLate(steps):
			return // another has taken over
		}
	}
}

// awaitCall waits until there is something in the queue. It returns false if the batcher is over.
func (b *batcher) awaitCall() bool {
	select {
	case <-b.calls:
		return true
	case <-b.over:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle == 0 { // this one was called
		<-b.calls
		return true
	}
	b.idle--
	b.carriers--
	return false
}

// carryOutLate is carryOut that does not keep others from being sent if it takes long. Then it returns true, and another carrier has
// taken its place.
func (b *batcher) carryOutLate(steps []*step) (late bool) {
	done := false // guarded by b.mu, like late
	alarm := time.AfterFunc(overdueAfter, func() {
		b.mu.Lock()
		start := false
		if !done && b.overdue < maxOverdue {
			late = true
			b.overdue++
			b.carriers--
			start = b.callLocked()
		}
		b.mu.Unlock()
		if start {
			b.start()
		}
	})
	b.carryOut(steps)
	alarm.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	done = true
	if late {
		b.overdue--
	}
	return late
}

// take moves the next steps from the queue to steps: those that fit into one transaction.
func (b *batcher) take(steps []*step) []*step {
	var lines map[string]struct{}
	ops, size, kept := 0, 0, 0
	for i, s := range b.queue {
		if len(steps) > 0 && (ops+len(s.ops) > b.maxOps || size+s.size > maxTxnBytes) {
			kept += copy(b.queue[kept:], b.queue[i:])
			break
		}
		if s.claims() {
			if _, taken := lines[s.line]; taken {
				b.queue[kept] = s
				kept++
				continue
			}
			if lines == nil {
				lines = make(map[string]struct{})
			}
			lines[s.line] = struct{}{}
		}
		s.sent = true
		steps = append(steps, s)
		ops += len(s.ops)
		size += s.size
	}
	clear(b.queue[kept:])
	b.queue = b.queue[:kept]
	return steps
}

// carryOut carries steps out in one transaction, or, if that is refused for the sake of one of them or for their number, in several.
func (b *batcher) carryOut(steps []*step) {
	resp, repeated, err := b.commit(steps)
	if err != nil {
		b.fail(steps, repeated, err)
		return
	}
	if repeated && b.fence != nil {
		for _, s := range steps {
			s.doubtful.Store(true)
		}
		doubtful := slices.Clone(steps)
		b.b.running.start(func() { b.settle(doubtful) })
	}
	next := 0
	for _, s := range steps {
		s.parts = resp.Responses[next : next+len(s.ops)]
		s.revision = resp.Header.Revision
		s.repeated = s.repeated || repeated
		next += len(s.ops)
		close(s.done)
	}
}

// settle raises the fence, so that no request arrives any more that was sent before. With luck, that is done for all of the steps before it
// would have to be done for each.
func (b *batcher) settle(steps []*step) {
	_, err := attempts(b.b.life, b.b, steps[0].ttl, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return b.fence.raise(ctx, b.b.kv)
	})
	if err != nil {
		return
	}
	for _, s := range steps {
		s.doubtful.Store(false)
	}
}

// fail deals with steps whose transaction has failed.
func (b *batcher) fail(steps []*step, repeated bool, err error) {
	_, certain := explain(err)
	certain = certain && !repeated
	if errors.Is(err, rpctypes.ErrNoSpace) {
		// Claims take space. What deletes keys is refused for their sake only, if it was.
		if others := slices.DeleteFunc(slices.Clone(steps), (*step).claims); len(others) > 0 && len(others) < len(steps) {
			for _, s := range others {
				s.repeated = true
				s.doubtful.Store(repeated)
			}
			b.carryOut(others)
			steps = slices.DeleteFunc(steps, func(s *step) bool { return !s.claims() })
		}
	}
	if len(steps) > 1 && certain && blamesContent(err) {
		if errors.Is(err, rpctypes.ErrTooManyOps) {
			b.mu.Lock()
			b.maxOps = max(b.maxOps/2, 1)
			b.mu.Unlock()
		}
		half := len(steps) / 2
		b.carryOut(steps[:half])
		b.carryOut(steps[half:])
		return
	}
	explained := b.b.failure(err)
	for _, s := range steps {
		s.doubtful.Store(repeated)
		s.conclude(explained, certain)
	}
}

// blamesContent reports whether a transaction was refused for what is in it, and smaller ones may not be.
func blamesContent(err error) bool {
	for _, e := range []error{rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrPermissionDenied} {
		if errors.Is(err, e) {
			return true
		}
	}
	return neverSent(err)
}

// commit sends steps in one transaction. An attempt that gets no answer is repeated, see attempts; all steps may be, see claim.doubtful.
func (b *batcher) commit(steps []*step) (resp *clientv3.TxnResponse, repeated bool, err error) {
	ops := steps[0].ops
	if len(steps) > 1 {
		ops = make([]clientv3.Op, 0, maxTxnOps)
		for _, s := range steps {
			ops = append(ops, s.ops...)
		}
	}
	ttl := steps[0].ttl
	for _, s := range steps {
		ttl = max(ttl, s.ttl) // each caller has a ctx of its own besides
	}
	var resent atomic.Bool
	var sent atomic.Int32 // attempts that were or may be carried out
	resp, err = attempts(context.WithValue(b.b.life, resentKey{}, &resent), b.b, ttl, func(ctx context.Context) (resp *clientv3.TxnResponse, err error) {
		sent.Add(1)
		if b.fence == nil {
			resp, err = b.b.kv.Txn(ctx).Then(ops...).Commit()
		} else {
			resp, err = b.fence.commit(ctx, b.b.kv, ops)
		}
		if _, certain := explain(err); err != nil && certain {
			sent.Add(-1)
		}
		return resp, err
	})
	others := sent.Load()
	if _, certain := explain(err); err == nil || !certain {
		others--
	}
	return resp, others > 0 || resent.Load(), err
}
