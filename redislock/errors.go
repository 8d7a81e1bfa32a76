package redislock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// What a Redis that answers may say instead of yes or no. The error of a Lock wraps one of these, together with the
// error of go-redis; none of them is ever ErrLocked. Each is of one of the classes of package locker, which is named.
var (
	// ErrReadOnly: the server is a replica. The client is connected to the wrong one, or a failover is under way.
	// A locker.ErrUnavailable.
	ErrReadOnly = backends.Sentinel(locker.ErrUnavailable, "redis: the server is a read-only replica")

	// ErrLoading: the server has just started and is still reading its data. A locker.ErrUnavailable.
	ErrLoading = backends.Sentinel(locker.ErrUnavailable, "redis: the server is still loading its data")

	// ErrAuth: the server wants a user and a password, or other ones. A locker.ErrDenied.
	ErrAuth = backends.Sentinel(locker.ErrDenied, "redis: authentication failed: check user and password")

	// ErrPermission: the user lacks a permission. The package documentation lists what is needed. A locker.ErrDenied.
	ErrPermission = backends.Sentinel(locker.ErrDenied, "redis: the user lacks a permission")

	// ErrWrongType: there is something else than a lock under the key, such as somebody's hash. It is left alone.
	// A locker.ErrUnfit: it concerns this key alone, but to wait does not help. Choose another key or prefix, or delete
	// what is there.
	ErrWrongType = backends.Sentinel(locker.ErrUnfit, "redis: the key holds something that is not a lock")

	// ErrOutOfMemory: the server has reached its maxmemory and cannot or may not evict keys. Give it more memory; do not
	// let it evict, because then it evicts locks. A locker.ErrUnavailable.
	ErrOutOfMemory = backends.Sentinel(locker.ErrUnavailable, "redis: the server is out of memory")

	// ErrReplicas: fewer replicas have the lock than Config.Replicas, and it was given back; or fewer are connected
	// than the server's min-replicas-to-write. A locker.ErrUnavailable.
	ErrReplicas = backends.Sentinel(locker.ErrUnavailable, "redis: too few replicas have received the lock")

	// ErrClusterDown: the cluster, or the part of it that the key belongs to, has no master that works. That is so for a
	// while after a master has died. A locker.ErrUnavailable.
	ErrClusterDown = backends.Sentinel(locker.ErrUnavailable, "redis: the cluster is down, or a failover is under way")

	// ErrSlot: the key is on another node of a Redis Cluster, or on its way there for longer than a TTL. A
	// locker.ErrUnavailable if it is on its way. A client made with redis.NewClient gets a locker.ErrUnfit from a
	// cluster, for each key of another node: it needs redis.NewClusterClient.
	ErrSlot = errors.New("redis: the hash slot of the key is on another node of the cluster, or being moved there")

	// ErrNotPersisting: the server cannot save its data, and refuses to write until it can. A locker.ErrUnavailable.
	ErrNotPersisting = backends.Sentinel(locker.ErrUnavailable, "redis: the server cannot persist its data")

	// ErrBusy: the server runs somebody's script that takes too long. A locker.ErrUnavailable.
	ErrBusy = backends.Sentinel(locker.ErrUnavailable, "redis: the server is busy with a script")

	// ErrUnsupported: the server lacks a command that is needed, or an option of one. It is older than Redis 6.2, or
	// somebody has disabled EVAL or EVALSHA. A locker.ErrUnfit.
	ErrUnsupported = backends.Sentinel(locker.ErrUnfit,
		"redis: the server is older than 6.2, or lacks commands that are needed")
)

// What has a class, and needs no name.
var (
	errNoCluster = backends.Sentinel(locker.ErrUnfit, "redis: the server is not a node of a Redis Cluster: "+
		"use redis.NewClient, or a URL that begins with redis://")
	errPlainClient = backends.Sentinel(locker.ErrUnfit, "redis: the server is a node of a Redis Cluster: "+
		"use redis.NewClusterClient, or a URL that begins with redis+cluster://")
	errWrongServer  = backends.Sentinel(locker.ErrUnfit, "redis: the server is not Redis: check address and port")
	errClientClosed = backends.Sentinel(locker.ErrClosed, "redis: the client was closed by its owner")
)

// replies are the codes that errors of Redis begin with, or, from scripts on a Redis before 7, contain.
var replies = []struct {
	code    string
	meaning error
	certain bool // the script was refused as a whole, or failed before it wrote anything
}{
	{"READONLY ", ErrReadOnly, true},
	{"LOADING ", ErrLoading, true},
	{"NOAUTH ", ErrAuth, true},
	{"WRONGPASS ", ErrAuth, true},
	{"invalid password", ErrAuth, true},
	{"without any password configured", ErrAuth, true},
	{"unauthenticated", ErrAuth, true},         // said to long commands, and then the connection is closed
	{"DENIED Redis is running", ErrAuth, true}, // in protected mode: it has no password, and serves its own machine only
	{"NOPERM ", ErrPermission, false},
	{"The user executing the script can't", ErrPermission, false}, // may come from the middle of a script
	{"ACL failure in script", ErrPermission, false},               // the same, since Redis 7.2
	{"WRONGTYPE ", ErrWrongType, false},                           // it may be a companion that is of another type
	{"OOM ", ErrOutOfMemory, false},
	{"MASTERDOWN ", ErrReadOnly, true},
	{"NOREPLICAS ", ErrReplicas, false},
	{"CLUSTERDOWN ", ErrClusterDown, true},
	{"MOVED ", ErrSlot, true},
	{"ASK ", ErrSlot, true},
	{"TRYAGAIN ", ErrSlot, true},
	{"CROSSSLOT ", ErrSlot, true},
	{"cluster support disabled", errNoCluster, true},
	{"MISCONF ", ErrNotPersisting, false},
	{"BUSY ", ErrBusy, true},
	{"unknown command", ErrUnsupported, false},
	{"Unknown Redis command", ErrUnsupported, false}, // from the middle of a script, like the next one
	{"syntax error", ErrUnsupported, false},
}

// explain makes an error of go-redis one of the above, if it is one, and marks those after which nothing is locked.
func (c *client) explain(err error) error {
	err, refused := c.meaningOf(err)
	if refused {
		err = locker.NotAcquired(err)
	}
	return err
}

// meaningOf makes an error of go-redis one of the above, if it is one, and reports whether the server refused the
// command, and has done nothing.
func (c *client) meaningOf(err error) (meaning error, refused bool) {
	var reply redis.Error
	var short *shortfall
	var late *unconfirmed
	switch {
	case err == nil:
		return nil, false
	case errors.As(err, &short):
		return err, short.givenBack
	case errors.As(err, &late):
		err, _ = c.meaningOf(late.err) // the lock was granted before
		return &unconfirmed{err}, false
	case isContext(err) && errors.Is(err, ErrSlot):
		return inMotion{errNoAnswer}, false
	case isContext(err):
		return errNoAnswer, false
	case errors.Is(err, redis.ErrClosed):
		return fmt.Errorf("%w: %w", errClientClosed, err), false
	case !errors.As(err, &reply):
		return err, false
	}
	for _, r := range replies {
		if strings.Contains(reply.Error(), r.code) {
			if r.code == "MOVED " && c.single {
				return fmt.Errorf("%w: %w: %w", ErrSlot, errPlainClient, err), r.certain
			}
			return fmt.Errorf("%w: %w", r.meaning, err), r.certain
		}
	}
	return err, false
}

// passes reports whether err may pass by itself, so that a waiter who is in line goes on.
func passes(err error) bool {
	for _, end := range []error{locker.ErrDenied, locker.ErrUnfit, locker.ErrClosed, errGivenUp} {
		if errors.Is(err, end) {
			return false
		}
	}
	return true
}

// errNoAnswer is the error of a command whose ctx ended. That ctx is a bound that package locker has set: for the caller
// of Lock, whose own has not ended, context.DeadlineExceeded would mean something else.
var errNoAnswer = backends.Sentinel(locker.ErrUnavailable, "redis: the server did not answer in time")

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// isDial reports whether err means that no connection was made, so that nothing can have been sent.
func isDial(err error) bool {
	var unsent *unsentError
	return isUnconnected(err) || errors.As(err, &unsent)
}

func isUnconnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// unsentError is why no server could be chosen to send a command to.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// isUnsettled reports whether err says that the hash slot of a key is on its way from one node of a cluster to another.
func isUnsettled(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	code, _, _ := strings.Cut(reply.Error(), " ")
	return code == "MOVED" || code == "ASK" || code == "TRYAGAIN"
}

// inMotion is the error of a command without an answer, about a slot of which others were told that it is being moved. It is an
// ErrSlot, but none that says that nothing was done.
type inMotion struct{ error }

func (e inMotion) Error() string        { return fmt.Sprintf("%v: %v", ErrSlot, e.error) }
func (e inMotion) Unwrap() error        { return e.error }
func (e inMotion) Is(target error) bool { return target == ErrSlot }

// isReply reports whether err is an answer of the server, which a second attempt would only get again.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
