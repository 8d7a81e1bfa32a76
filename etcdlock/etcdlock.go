package etcdlock

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker/"

// New returns a Locker that keeps its locks in the etcd that client is connected to. The options are the defaults for its
// leases, see locker.New.
//
// The Locker uses the client's connection and never closes it: Close the Locker first, then the client. It makes the lease to which its
// locks are attached when the first is asked for.
func New(client *clientv3.Client, opts ...locker.Option) locker.Locker {
	return newLocker(newBackend(client, nil), opts)
}

func newLocker(b *backend, opts []locker.Option) locker.Locker {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}
