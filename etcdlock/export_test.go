package etcdlock

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// NewBackend returns the backend alone.
func NewBackend(client *clientv3.Client) locker.Backend { return newBackend(client, nil) }

// TooOld reports whether a server with that version is refused.
func TooOld(version string) bool { return tooOld(version) }

// ClaimOf returns the key in etcd of a lease that is held.
func ClaimOf(lease *locker.Lease) string { return locker.GrantOf(lease).Private.(*claim).key }
