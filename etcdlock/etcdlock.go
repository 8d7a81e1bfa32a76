package etcdlock

import (
	"fmt"

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

// Open is New with a client of its own for the given URL:
//
//	etcd://host:2379                                   plain text
//	etcd://user:password@host1:2379,host2,host3        the members of a cluster; the port is 2379 unless given
//	etcds://host?cacert=ca.pem&cert=me.pem&key=me.key  TLS; names of files as of the options of etcdctl
//
// The parameters are cacert (of the authority that the server's certificate must come from; the system's if absent), cert and key (of
// the client, in files), and timeout (of making a connection, such as 2s; 5s if absent). A user needs a password. An unusable URL is
// ErrInvalidOption.
//
// Open connects only if there is a user, to log in; otherwise a server that cannot be reached is reported by the first Lock. Close closes
// the client.
func Open(rawURL string, opts ...locker.Option) (locker.Locker, error) {
	config, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(config)
	if err != nil {
		err, _ = explain(err)
		return nil, fmt.Errorf("etcdlock: %w", err)
	}
	return newLocker(newBackend(client, client.Close), opts), nil
}

func newLocker(b *backend, opts []locker.Option) locker.Locker {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}
