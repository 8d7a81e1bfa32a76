package redislock

import "github.com/lockerkit/locker/redislock/internal/conn"

// What a Redis that answers may say instead of yes or no. The error of a Lock wraps one of these, together with the
// error of go-redis; none of them is ever ErrLocked. Each is of one of the classes of package locker, which is named.
var (
	// ErrReadOnly means that the server is a replica. The client is connected to the wrong one, or a failover is under
	// way. A locker.ErrUnavailable.
	ErrReadOnly = conn.ErrReadOnly

	// ErrLoading means that the server has just started and is still reading its data. A locker.ErrUnavailable.
	ErrLoading = conn.ErrLoading

	// ErrAuth means that the server wants a user and a password, or other ones. A locker.ErrDenied.
	ErrAuth = conn.ErrAuth

	// ErrPermission means that the user lacks a permission. docs/redis.md lists what is needed. A locker.ErrDenied.
	ErrPermission = conn.ErrPermission

	// ErrWrongType means that there is something else than a lock under the key, such as somebody's hash. It is left
	// alone. A locker.ErrUnfit: it concerns this key alone, but to wait does not help. Choose another key or prefix, or
	// delete what is there.
	ErrWrongType = conn.ErrWrongType

	// ErrOutOfMemory means that the server has reached its maxmemory and cannot or may not evict keys. Give it more
	// memory; do not let it evict, because then it evicts locks. A locker.ErrUnavailable.
	ErrOutOfMemory = conn.ErrOutOfMemory

	// ErrReplicas means that fewer replicas have the lock than Config.Replicas, and it was given back; or fewer are
	// connected than the server's min-replicas-to-write. A locker.ErrUnavailable.
	ErrReplicas = conn.ErrReplicas

	// ErrClusterDown means that the cluster, or the part of it that the key belongs to, has no master that works. That
	// is so for a while after a master has died. A locker.ErrUnavailable.
	ErrClusterDown = conn.ErrClusterDown

	// ErrSlot means that the key is on another node of a Redis Cluster, or on its way there for longer than a TTL. A
	// locker.ErrUnavailable if it is on its way. A client made with redis.NewClient gets a locker.ErrUnfit from a
	// cluster, for each key of another node: it needs redis.NewClusterClient.
	ErrSlot = conn.ErrSlot

	// ErrNotPersisting means that the server cannot save its data, and refuses to write until it can. A
	// locker.ErrUnavailable.
	ErrNotPersisting = conn.ErrNotPersisting

	// ErrTooManyConnections means that the server has as many clients as its maxclients allows, and hangs up on further
	// ones. A locker.ErrUnavailable.
	ErrTooManyConnections = conn.ErrTooManyConnections

	// ErrBusy means that the server runs somebody's script that takes too long. A locker.ErrUnavailable.
	ErrBusy = conn.ErrBusy

	// ErrUnsupported means that the server lacks a command that is needed, or an option of one. It is older than Redis
	// 6.2, or somebody has disabled EVAL or EVALSHA. A locker.ErrUnfit.
	ErrUnsupported = conn.ErrUnsupported
)
