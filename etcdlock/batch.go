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

// step is what one caller wants of etcd: a part of a transaction. What many callers want at the same time goes into
// one, since a transaction costs the servers one entry of their log, one wait for the disk and one round trip between
// them, whatever is in it.
type step struct {
	ops  []clientv3.Op
	size int           // about how many bytes they take
	ttl  time.Duration // of the lock that it is about, which bounds an attempt

	// over is closed when nobody needs the answer any more, because the session has ended; nil if somebody does all the
	// same.
	over <-chan struct{}

	// line is that of the claim which the step makes. Steps for the same line do not share a transaction: their claims
	// would have the same create revision, and nobody knew who was first.
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
	// maxTxnOps is etcd's default of --max-txn-ops, less what is in a transaction within the transaction: four
	// conditions at most.
	maxTxnOps = 128 - 4

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
	carriers int           // goroutines that carry out steps
	idle     int           // of them
	underWay int           // steps
	peaks    [2]int        // how many steps were pending at most, lately and before that
	counted  int           // transactions since the first of them began
	calls    chan struct{} // has room for each of them
	maxOps   int           // what the server allows is learnt if it is less than it was said to be
}

const (
	// While no more steps than this are pending, each has a transaction of its own, which does not wait for another.
	// The servers bring what comes at the same time to their disks together.
	maxCarriers = 8

	// If there are more, this is how many transactions may be under way: one is prepared while another is carried out.
	carriersOfMany = 2

	// How many transactions it takes to see that there is less to do: pauses between two crowds are short.
	peakLasts = 64
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

// end concludes all steps that have not been sent, and those that are still to come, with an error. If the server does
// not answer, they would else be sent in vain, a few at a time.
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

// callLocked has a carrier take what is in the queue, if one is idle. If one has to be started for that, it returns
// true, and has counted it.
func (b *batcher) callLocked() (start bool) {
	switch {
	case len(b.queue) == 0, b.carriers-b.idle >= b.limitLocked():
	case b.idle > 0:
		b.idle--
		b.calls <- struct{}{}
	default:
		b.carriers++
		return true
	}
	return false
}

// limitLocked is how many transactions may be under way now. It takes note of how much there is to do.
func (b *batcher) limitLocked() int {
	b.peaks[0] = max(b.peaks[0], len(b.queue)+b.underWay)
	if max(b.peaks[0], b.peaks[1]) > maxCarriers {
		return carriersOfMany
	}
	return maxCarriers
}

func (b *batcher) start() {
	if !b.b.running.start(b.carry) {
		b.carry() // the Locker is closed: all steps fail
	}
}

// do submits a step and waits for its end, or that of ctx. A step that is withdrawn in time is concluded by that; what
// becomes of another one is seen when its done is closed.
func (b *batcher) do(ctx context.Context, s *step) error {
	b.submit(s)
	return b.await(ctx, s)
}

// await returns the error of a step, or ErrLeaseExpired if the step is over, or that of ctx: not its cause, which may
// be anything, and must not be taken for an answer.
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

// carry carries steps out, and waits for more until the batcher is over. The goroutine is kept because its stack is:
// each call of package grpc on a new one would have to make it larger.
func (b *batcher) carry() {
	var steps []*step
	for {
		b.mu.Lock()
		b.underWay -= len(steps)
		steps = steps[:0]
		if b.carriers-b.idle <= b.limitLocked() {
			steps = b.take(steps)
		}
		b.underWay += len(steps)
		if b.counted++; b.counted > peakLasts {
			b.counted, b.peaks = 0, [2]int{0, b.peaks[0]}
		}
		if len(steps) == 0 {
			b.idle++
		}
		b.mu.Unlock()
		if len(steps) > 0 {
			b.carryOut(steps)
		} else if !b.awaitCall() {
			return
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

// carryOut carries steps out in one transaction, or, if that is refused for the sake of one of them or for their
// number, in several.
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

// settle raises the fence, so that no request arrives any more that was sent before. With luck, that is done for all of
// the steps before it would have to be done for each.
func (b *batcher) settle(steps []*step) {
	_, err := writing(b.b.life, b.b, steps[0].ttl, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
		return b.fence.raise(ctx, l.kv)
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
		if others := slices.DeleteFunc(slices.Clone(steps), (*step).claims); len(others) > 0 &&
			len(others) < len(steps) {
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

// blamesContent reports whether a transaction was refused for what is in it, and smaller ones may not be. One with two
// steps that change the same key is, such as an Unlock while the keys are moved, see session.move.
func blamesContent(err error) bool {
	for _, e := range []error{
		rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrPermissionDenied, rpctypes.ErrDuplicateKey,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return neverSent(err)
}

// commit sends steps in one transaction. What gets no answer may be repeated, see writing; then all
// steps may be, see claim.doubtful.
func (b *batcher) commit(steps []*step) (resp *clientv3.TxnResponse, repeated bool, err error) {
	ops := steps[0].ops
	if len(steps) > 1 {
		ops = make([]clientv3.Op, 0, maxTxnOps)
		for _, s := range steps {
			ops = append(ops, s.ops...)
		}
	}
	ttl := steps[0].ttl
	for _, s := range steps { // each caller has a ctx of its own besides
		if b.fence != nil {
			ttl = max(ttl, s.ttl)
		} else {
			ttl = min(ttl, s.ttl) // it does no harm to read again
		}
	}
	var sent atomic.Int32 // calls that were or may be carried out
	resp, err = ask(b.b.life, b.b, ttl, b.fence != nil, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
		ops := ops
		if sent.Add(1) > 1 {
			ops = again(ops)
		}
		resp, err := b.send(ctx, l.kv, ops)
		if _, certain := explain(err); err != nil && certain {
			sent.Add(-1)
		}
		return resp, err
	})
	others := sent.Load()
	if _, certain := explain(err); err == nil || !certain {
		others--
	}
	return resp, others > 0, err
}

// again is operations that may have been carried out before. A claim that was made then may have been revoked since
// (see revoke.go): it is not made again. To say so at once would cost a tenth of the throughput of many who lock. What
// was sent first, and comes after what was sent again, is kept out by the fence, as soon as that is raised: see settle.
func again(ops []clientv3.Op) []clientv3.Op {
	ops = slices.Clone(ops)
	for i, op := range ops {
		if op.IsPut() {
			ops[i] = unlessMade(op)
		}
	}
	return ops
}

func (b *batcher) send(ctx context.Context, kv clientv3.KV, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	switch {
	case b.fence == nil:
		return kv.Txn(ctx).Then(ops...).Commit()
	case len(ops) == 1 && ops[0].IsDelete():
		return b.fence.delete(ctx, kv, string(ops[0].KeyBytes()))
	}
	return b.fence.commit(ctx, kv, ops)
}
