package etcdlock

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
)

// NewBackend returns the backend alone.
func NewBackend(client *clientv3.Client) locker.Backend { return newBackend(Config{}, client, nil) }

// TooOld reports whether a server with that version is refused.
func TooOld(version string) bool { return tooOld(version) }

// ClaimOf returns the key in etcd of a lease that is held.
func ClaimOf(lease *locker.Lease) string { return locker.GrantOf(lease).Private.(*claim).key }

// FenceOf returns the key in etcd of the fence before a lease that is held.
func FenceOf(lease *locker.Lease) string {
	return locker.GrantOf(lease).Private.(*claim).session.fence.key
}

// MoveAndUnlock carries out in one transaction, or as it can, what moves the key of a lease and what deletes it, and
// makes another key beside that. It returns what has become of the three.
func MoveAndUnlock(lease *locker.Lease, beside string) (errs []error) {
	c := locker.GrantOf(lease).Private.(*claim)
	s := c.session
	to := s.currentLease()
	var steps []*step
	for _, op := range []clientv3.Op{
		c.moveOp(to), clientv3.OpDelete(c.key), clientv3.OpPut(beside, "", clientv3.WithLease(to)),
	} {
		steps = append(steps, newStep(s.ttl, len(c.key), op))
	}
	s.steps.carryOut(steps)
	for _, step := range steps {
		errs = append(errs, step.err)
	}
	return errs
}

// NewOn is New with transactions carried out by what kv makes of the client's.
func NewOn(client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, opts ...locker.Option) *locker.Client {
	return NewOnWith(Config{}, client, kv, opts...)
}

// NewSilent is NewOn with servers that do not say how they are: what they do not answer may be sent to another.
func NewSilent(client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, opts ...locker.Option) *locker.Client {
	b := newBackendOn(Config{}, client, kv, nil)
	b.endpoints.stubs.alive = func(*grpc.ClientConn) pb.ClusterClient { return silent{} }
	return newLocker(b, opts)
}

type silent struct{ pb.ClusterClient }

func (silent) MemberList(context.Context, *pb.MemberListRequest, ...grpc.CallOption) (*pb.MemberListResponse, error) {
	return nil, status.Error(codes.Unimplemented, "it does not say")
}

// NewOnWith is NewOn with a Config.
func NewOnWith(
	c Config, client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, opts ...locker.Option,
) *locker.Client {
	return newLocker(newBackendOn(c, client, kv, nil), opts)
}

// NewByKV is New with requests for keys made by what kv makes of the client's, which know where they are sent.
func NewByKV(client *clientv3.Client, kv func(pb.KVClient) pb.KVClient, opts ...locker.Option) *locker.Client {
	b := newBackend(Config{}, client, nil)
	b.endpoints.stubs.kv = func(conn *grpc.ClientConn) clientv3.KV {
		return clientv3.NewKVFromKVClient(onceKV{kv(pb.NewKVClient(conn)), b.endpoints.logins}, client)
	}
	return newLocker(b, opts)
}

// NewWith is New with leases kept alive by what leases makes of the client's.
func NewWith(
	client *clientv3.Client, leases func(pb.LeaseClient) pb.LeaseClient, opts ...locker.Option,
) *locker.Client {
	return newLocker(newBackendOn(Config{}, client, nil, leases), opts)
}

// NewBackendOn is NewBackend with what kv and leases, unless nil, make of the client's.
func NewBackendOn(
	client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, leases func(pb.LeaseClient) pb.LeaseClient,
) locker.Backend {
	return newBackendOn(Config{}, client, kv, leases)
}

func newBackendOn(
	c Config, client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, leases func(pb.LeaseClient) pb.LeaseClient,
) *backend {
	b := newBackend(c, client, nil)
	stubs := b.endpoints.stubs
	if kv != nil {
		b.endpoints.stubs.kv = func(conn *grpc.ClientConn) clientv3.KV { return kv(stubs.kv(conn)) }
	}
	if leases != nil {
		b.endpoints.stubs.leases = func(conn *grpc.ClientConn) pb.LeaseClient { return leases(stubs.leases(conn)) }
	}
	return b
}

// LeaseOf returns the etcd lease of a grant.
func LeaseOf(g locker.Grant) clientv3.LeaseID { return g.Private.(*claim).session.lease }

// ClaimKeyOf returns the key in etcd of a grant.
func ClaimKeyOf(g locker.Grant) string { return g.Private.(*claim).key }

// IsWatched reports whether what is done with the key of a grant is told.
func IsWatched(g locker.Grant) bool {
	c := g.Private.(*claim)
	c.session.b.mu.Lock()
	defer c.session.b.mu.Unlock()
	return c.watched
}

// WatchNoneSoon has a backend that has granted nothing yet watch only what it renews.
func WatchNoneSoon(b locker.Backend) {
	n := &b.(*backend).newcomers
	n.timer, n.late = time.NewTimer(time.Hour), make([]unwatched, 1)
}

// Move has all keys of the Locker with the TTL of a lease put under another etcd lease, as after a change of the
// leader.
func Move(ctx context.Context, lease *locker.Lease) error {
	s := locker.GrantOf(lease).Private.(*claim).session
	s.saw(s.seen.Load() + 1)
	_, err := s.settledPulse(ctx)
	return err
}
