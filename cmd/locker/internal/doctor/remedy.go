package doctor

import (
	"errors"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// remedies are what docs/operating.md says of the errors, the more special ones first.
var remedies = []struct {
	err error
	do  string
}{
	{redislock.ErrReadOnly, "Connect to the master: with a URL of the sentinels (redis+sentinel://) or of a cluster " +
		"(redis+cluster://), it is found."},
	{redislock.ErrLoading, "Wait until the server has read its data."},
	{redislock.ErrOutOfMemory, "Give the server more memory (maxmemory). Do not let it evict keys."},
	{redislock.ErrReplicas, "Bring the replicas back, or lower min-replicas-to-write."},
	{redislock.ErrClusterDown, "Bring the missing nodes back. CLUSTER NODES says which."},
	{redislock.ErrNotPersisting, "See the log of the server: the disk may be full."},
	{redislock.ErrTooManyConnections, "Raise maxclients. CLIENT LIST says whose the connections are."},
	{redislock.ErrBusy, "End the script that runs there with SCRIPT KILL, and mend it."},
	{redislock.ErrAuth, "Correct user and password of the URL."},
	{redislock.ErrPermission, "Grant what docs/redis.md lists. ACL LOG on the server says what was missing."},
	{redislock.ErrWrongType, "Choose another prefix: there is something else under the key."},
	{redislock.ErrSlot, "Use a URL that begins with redis+cluster://, or finish the migration of the slot."},
	{redislock.ErrUnsupported, "Use Redis 6.2 or later, on which EVAL is allowed."},
	{redlock.ErrNoQuorum, "Bring servers back, an empty one not before the longest TTL has passed."},
	{pglock.ErrPooler, "Connect to the server itself."},
	{pglock.ErrVersion, "Use Postgres 14 or later."},
	{pglock.ErrSettings, "Find out what forbids or drops SET: the error says which."},
	{pglock.ErrNoTables, "Apply pglock.SchemaSQL as a role that may create a schema."},
	{pglock.ErrNoDatabase, "Create the database, or correct the URL."},
	{pglock.ErrPermission, "Grant what docs/operating.md lists."},
	{pglock.ErrAuth, "Correct role and password of the URL, or pg_hba.conf."},
	{pglock.ErrStandby, "Connect to the primary: name all hosts in the URL, with target_session_attrs=read-write."},
	{pglock.ErrTooManyConnections, "Raise max_connections, or the limit of the role or the database."},
	{pglock.ErrLockTableFull, "Raise max_locks_per_transaction, and restart the server; or hold fewer locks."},
	{pglock.ErrShutdown, "Wait until the server has started."},
	{etcdlock.ErrNoLeader, "Bring members back, until a majority of them runs."},
	{etcdlock.ErrNoSpace, "Compact, defragment, and then: etcdctl alarm disarm."},
	{etcdlock.ErrPermission, "Grant the role readwrite for the prefix of the keys."},
	{etcdlock.ErrAuth, "Correct user and password of the URL."},
	{etcdlock.ErrVersion, "Use etcd 3.5.13 or later."},
	{etcdlock.ErrNoAnswer, "Look at the network, and at the disks of the members."},
	{locker.ErrDenied, "Correct the credentials, or grant what is missing."},
	{locker.ErrUnfit, "Is it the right address? Another server or another setting is needed: the error says which."},
	{locker.ErrUnavailable, "Is the server running? Check host and port of the URL, and firewalls between."},
}

// remedyOf returns what to do about an error.
func remedyOf(err error) string {
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return r.do
		}
	}
	return "Check that the server answers, and host and port of the URL."
}
