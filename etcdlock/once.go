package etcdlock

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// once makes a request that the client does not repeat by itself. It would repeat some, of the same endpoint and
// without saying so: if a balancer says that the deadline has passed, say. The first may then be carried out, too, at
// any time. What was refused for a token that is too old is made again after a login.
func once[Q, A any](
	ctx context.Context, l logins, request func(context.Context, Q, ...grpc.CallOption) (A, error), q Q,
	opts ...grpc.CallOption,
) (A, error) {
	for first := true; ; first = false {
		before := l.done.Load()
		a, err := tryOnce(ctx, request, q, opts)
		if !l.isStale(err) {
			return a, err
		}
		if !first { // users or roles are being changed
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return a, err
			}
		}
		if err := l.renew(ctx, before); err != nil {
			return a, err
		}
	}
}

func tryOnce[Q, A any](
	ctx context.Context, request func(context.Context, Q, ...grpc.CallOption) (A, error), q Q, opts []grpc.CallOption,
) (A, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failure error
	finished := func(err error) { // is called after each try of the client
		if err != nil && failure == nil {
			failure = err
			cancel()
		}
	}
	a, err := request(untold{ctx}, q, append(opts[:len(opts):len(opts)], grpc.OnFinish(finished))...)
	if err != nil && failure != nil {
		err = failure
	}
	return a, err
}

// untold is a context whose deadline the server is not told: both sides would keep the time, for some 4 % of the
// throughput. That it has ended is told.
type untold struct{ context.Context }

func (untold) Deadline() (deadline time.Time, ok bool) { return deadline, ok }

// pause waits for d less up to half of it, or returns the error of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(jittered(d)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logins has one request at a time have the client log in again. The server takes long to check a password, on purpose,
// and a third of a second each for all that are under way when a token has expired would end leases. One login for all
// is soon enough when the token is refused: leases have two thirds of a TTL left when they are renewed. To log in ahead
// of that, one would have to know when: the token is the client's, which does not tell.
type logins struct {
	client *clientv3.Client
	turn   chan struct{}  // has room for one, which is whose turn it is
	done   *atomic.Uint64 // how many there were
}

func newLogins(client *clientv3.Client) logins {
	return logins{client, make(chan struct{}, 1), new(atomic.Uint64)}
}

// isStale reports whether a request was refused for a token that is too old, or for none though there is a user.
func (l logins) isStale(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) ||
		l.client.Username != "" && errors.Is(err, rpctypes.ErrUserEmpty)
}

// renew has the client log in, unless it has since there were so many logins.
func (l logins) renew(ctx context.Context, before uint64) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case l.turn <- struct{}{}:
	}
	defer func() { <-l.turn }()
	if l.done.Load() != before {
		return nil
	}
	// The client logs in before it opens a stream, at one of its endpoints after the other: also at one that is dead.
	for patience := 500 * time.Millisecond; ; patience *= 2 {
		try, cancel := context.WithTimeout(ctx, patience)
		_, err := pb.NewWatchClient(l.client.ActiveConnection()).Watch(try)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			l.done.Add(1)
			return nil
		case !isOutage(err):
			return err
		case !timedOut(err):
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
}

// onceKV makes requests once.
type onceKV struct {
	pb.KVClient
	logins logins
}

func (k onceKV) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return once(ctx, k.logins, k.KVClient.Txn, r, opts...)
}

func (k onceKV) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	return once(ctx, k.logins, k.KVClient.Range, r, opts...)
}

func (k onceKV) DeleteRange(
	ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption,
) (*pb.DeleteRangeResponse, error) {
	return once(ctx, k.logins, k.KVClient.DeleteRange, r, opts...)
}
