package etcdlock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// step is what one caller wants of etcd: a part of a transaction. What many callers want at the same time goes into one, since
// a transaction costs the servers one entry of their log, one wait for the disk and one round trip between them, whatever is in it.
type step struct {
	ops   []clientv3.Op
	size  int           // about how many bytes they take
	bound time.Duration // of one attempt

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
	certain  bool // with err: that the step was not carried out, and never will be
	repeated bool // the transaction was sent more than once, and the first may still arrive
}

// newStep returns a step that is part of a lock with that TTL, and has keys of so many bytes.
func newStep(ttl time.Duration, size int, ops ...clientv3.Op) *step {
	return &step{ops: ops, size: size, bound: attemptBound(ttl), done: make(chan struct{})}
}

// claims reports whether the step makes a claim.
func (s *step) claims() bool { return s.line != "" }

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
	kv        clientv3.KV
	life      context.Context // of the Locker
	endpoints func() int      // how many there are to try
	fence     *fence          // nil if the steps only read
	running   *sync.WaitGroup
	flights   int // how many transactions may be under way

	mu     sync.Mutex
	queue  []*step
	flying int
	maxOps int // what the server allows is learnt if it is less than it was said to be
}

// submit hands steps over; they are concluded sooner or later.
func (b *batcher) submit(steps ...*step) {
	b.mu.Lock()
	b.queue = append(b.queue, steps...)
	start := b.flying < b.flights && len(b.queue) > 0
	if start {
		b.flying++
		b.running.Add(1)
	}
	b.mu.Unlock()
	if start {
		go b.fly()
	}
}

// do submits a step and waits for its end, or that of ctx. A step that is withdrawn in time is concluded by that; what becomes of
// another one is seen when its done is closed.
func (b *batcher) do(ctx context.Context, s *step) error {
	b.submit(s)
	return b.await(ctx, s)
}

func (b *batcher) await(ctx context.Context, s *step) error {
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
	}
	if b.withdraw(s) {
		s.conclude(context.Cause(ctx), true)
	}
	return context.Cause(ctx)
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

// fly carries steps out until there are no more.
func (b *batcher) fly() {
	defer b.running.Done()
	var steps []*step
	for {
		b.mu.Lock()
		steps = b.take(steps[:0])
		if len(steps) == 0 {
			b.flying--
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.carryOut(steps)
	}
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
		if s.line != "" {
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
		explained, certain := explain(err)
		if errors.Is(err, rpctypes.ErrNoSpace) && certain && !repeated {
			// Claims take space. What deletes keys is refused for their sake only.
			if others := slices.DeleteFunc(slices.Clone(steps), (*step).claims); len(others) > 0 && len(others) < len(steps) {
				b.carryOut(others)
				steps = slices.DeleteFunc(steps, func(s *step) bool { return !s.claims() })
			}
		}
		if len(steps) > 1 && certain && !repeated {
			if errors.Is(err, rpctypes.ErrTooManyOps) {
				b.mu.Lock()
				b.maxOps = max(b.maxOps/2, 1)
				b.mu.Unlock()
			}
			if blamesContent(err) {
				half := len(steps) / 2
				b.carryOut(steps[:half])
				b.carryOut(steps[half:])
				return
			}
		}
		if b.life.Err() != nil {
			explained = errClosed
		}
		for _, s := range steps {
			s.repeated = repeated
			s.conclude(explained, certain && !repeated)
		}
		return
	}
	next := 0
	for _, s := range steps {
		s.parts = resp.Responses[next : next+len(s.ops)]
		s.revision = resp.Header.Revision
		s.repeated = repeated
		next += len(s.ops)
		close(s.done)
	}
}

// blamesContent reports whether a transaction was refused for what is in it, and smaller ones may not be.
func blamesContent(err error) bool {
	for _, e := range []error{rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrPermissionDenied} {
		if errors.Is(err, e) {
			return true
		}
	}
	return code(err) == codes.ResourceExhausted && !errors.Is(err, rpctypes.ErrNoSpace) && !errors.Is(err, rpctypes.ErrTooManyRequests)
}

// commit sends steps in one transaction. An attempt that gets no answer is repeated, as the client sends the next one to another
// endpoint; all steps may be repeated, see claim.doubtful.
func (b *batcher) commit(steps []*step) (resp *clientv3.TxnResponse, repeated bool, err error) {
	ops := steps[0].ops
	if len(steps) > 1 {
		ops = slices.Clone(ops)
		for _, s := range steps[1:] {
			ops = append(ops, s.ops...)
		}
	}
	bound := steps[0].bound
	for _, s := range steps {
		bound = min(bound, s.bound)
	}
	tries, bound := attempts(b.endpoints(), bound)
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(b.life, bound)
		if b.fence == nil {
			resp, err = b.kv.Txn(ctx).Then(ops...).Commit()
		} else {
			resp, err = b.fence.commit(ctx, b.kv, ops)
		}
		cancel()
		if err == nil || !isOutage(err) || b.life.Err() != nil || try >= tries {
			return resp, repeated, err
		}
		_, certain := explain(err)
		repeated = repeated || !certain
	}
}
