package etcdlock

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

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

// NewOn is New with transactions carried out by what kv makes of the client's.
func NewOn(client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, opts ...locker.Option) *locker.Client {
	return NewOnWith(Config{}, client, kv, opts...)
}

// NewOnWith is NewOn with a Config.
func NewOnWith(c Config, client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, opts ...locker.Option) *locker.Client {
	b := newBackend(c, client, nil)
	b.kv = kv(b.kv)
	return newLocker(b, opts)
}

// NewWith is New with leases kept alive by what leases makes of the client's.
func NewWith(client *clientv3.Client, leases func(pb.LeaseClient) pb.LeaseClient, opts ...locker.Option) *locker.Client {
	b := newBackend(Config{}, client, nil)
	b.leases = leases(b.leases)
	return newLocker(b, opts)
}

// NewBackendOn is NewBackend with what kv and leases, unless nil, make of the client's.
func NewBackendOn(
	client *clientv3.Client, kv func(clientv3.KV) clientv3.KV, leases func(pb.LeaseClient) pb.LeaseClient,
) locker.Backend {
	b := newBackend(Config{}, client, nil)
	if kv != nil {
		b.kv = kv(b.kv)
	}
	if leases != nil {
		b.leases = leases(b.leases)
	}
	return b
}

// LeaseOf returns the etcd lease of a grant.
func LeaseOf(g locker.Grant) clientv3.LeaseID { return g.Private.(*claim).session.lease }

// ClaimKeyOf returns the key in etcd of a grant.
func ClaimKeyOf(g locker.Grant) string { return g.Private.(*claim).key }
