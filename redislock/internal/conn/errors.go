package conn

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

// What a Redis that answers may say instead of yes or no: package redislock documents them, and exports them.
var (
	ErrReadOnly    = backends.Sentinel(locker.ErrUnavailable, "redis: the server is a read-only replica")
	ErrLoading     = backends.Sentinel(locker.ErrUnavailable, "redis: the server is still loading its data")
	ErrAuth        = backends.Sentinel(locker.ErrDenied, "redis: authentication failed: check user and password")
	ErrPermission  = backends.Sentinel(locker.ErrDenied, "redis: the user lacks a permission")
	ErrWrongType   = backends.Sentinel(locker.ErrUnfit, "redis: the key holds something that is not a lock")
	ErrOutOfMemory = backends.Sentinel(locker.ErrUnavailable, "redis: the server is out of memory")
	ErrReplicas    = backends.Sentinel(locker.ErrUnavailable, "redis: too few replicas have received the lock")
	ErrClusterDown = backends.Sentinel(locker.ErrUnavailable,
		"redis: the cluster is down, or a failover is under way")
	ErrSlot = errors.New(
		"redis: the hash slot of the key is on another node of the cluster, or being moved there")
	ErrNotPersisting      = backends.Sentinel(locker.ErrUnavailable, "redis: the server cannot persist its data")
	ErrTooManyConnections = backends.Sentinel(locker.ErrUnavailable, "redis: the server accepts no more connections")
	ErrBusy               = backends.Sentinel(locker.ErrUnavailable, "redis: the server is busy with a script")
	ErrUnsupported        = backends.Sentinel(locker.ErrUnfit,
		"redis: the server is older than 6.2, or lacks commands that are needed")
)

// What has a class, and needs no name.
var (
	errNoCluster = backends.Sentinel(locker.ErrUnfit, "redis: the server is not a node of a Redis Cluster: "+
		"use redis.NewClient, or a URL that begins with redis://")
	errPlainClient = backends.Sentinel(locker.ErrUnfit, "redis: the server is a node of a Redis Cluster: "+
		"use redis.NewClusterClient, or a URL that begins with redis+cluster://")
	errNoDatabase   = backends.Sentinel(locker.ErrUnfit, "redis: the server has no database of that number")
	ErrWrongServer  = backends.Sentinel(locker.ErrUnfit, "redis: the server is not Redis: check address and port")
	ErrClientClosed = backends.Sentinel(locker.ErrClosed, "redis: the client was closed by its owner")
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
	{"unauthenticated", ErrAuth, true}, // said to long commands, and then the connection is closed
	{protectedMode, ErrAuth, true},     // it has no password, and serves its own machine only
	{tooManyClients, ErrTooManyConnections, true},
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
	{"SELECT is not allowed in cluster mode", errPlainClient, true},
	{"DB index is out of range", errNoDatabase, true},
	{"MISCONF ", ErrNotPersisting, false},
	{"BUSY ", ErrBusy, true},
	{"unknown command", ErrUnsupported, false},
	{"Unknown Redis command", ErrUnsupported, false}, // from the middle of a script, like the next one
	{"syntax error", ErrUnsupported, false},
}

// Explain makes an error of go-redis one of the above, if it is one, and marks those after which nothing is locked.
func (c *Client) Explain(err error) error {
	err, refused := c.MeaningOf(err)
	if refused {
		err = locker.NotAcquired(err)
	}
	return err
}

// MeaningOf makes an error of go-redis one of the above, if it is one, and reports whether the server refused the
// command, and has done nothing.
func (c *Client) MeaningOf(err error) (meaning error, refused bool) {
	switch {
	case err == nil:
		return nil, false
	case IsContext(err) && errors.Is(err, ErrSlot):
		return inMotion{ErrNoAnswer}, false
	case IsContext(err):
		return ErrNoAnswer, false
	case errors.Is(err, redis.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClientClosed, err), false
	}
	reply := replyIn(err)
	for _, r := range replies {
		if strings.Contains(reply, r.code) {
			if r.code == "MOVED " && c.Single {
				return fmt.Errorf("%w: %w: %w", ErrSlot, errPlainClient, err), r.certain
			}
			return fmt.Errorf("%w: %w", r.meaning, err), r.certain
		}
	}
	return err, false
}

// Passes reports whether err may pass by itself, so that a waiter who is in line goes on.
func Passes(err error) bool {
	for _, end := range []error{locker.ErrDenied, locker.ErrUnfit, locker.ErrClosed, ErrGivenUp} {
		if errors.Is(err, end) {
			return false
		}
	}
	return true
}

// ErrNoAnswer is the error of a command whose ctx ended. That ctx is a bound that package locker has set: for the
// caller of Lock, whose own has not ended, context.DeadlineExceeded would mean something else.
var ErrNoAnswer = backends.Sentinel(locker.ErrUnavailable, "redis: the server did not answer in time")

// IsContext reports whether err is the end of a ctx.
func IsContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// IsSilence reports whether err means that there was no answer in time.
func IsSilence(err error) bool {
	var netErr net.Error
	return IsContext(err) || errors.Is(err, ErrNoAnswer) || errors.As(err, &netErr) && netErr.Timeout()
}

// IsDial reports whether err means that no connection was made, so that nothing can have been sent.
func IsDial(err error) bool {
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

// IsUnsettled reports whether err says that the hash slot of a key is on its way from one node of a cluster to another.
func IsUnsettled(err error) bool {
	code, _, _ := strings.Cut(replyIn(err), " ")
	return code == "MOVED" || code == "ASK" || code == "TRYAGAIN"
}

// inMotion is the error of a command without an answer, about a slot of which others were told that it is being moved.
// It is an ErrSlot, but none that says that nothing was done.
type inMotion struct{ error }

func (e inMotion) Error() string        { return fmt.Sprintf("%v: %v", ErrSlot, e.error) }
func (e inMotion) Unwrap() error        { return e.error }
func (e inMotion) Is(target error) bool { return target == ErrSlot }

// IsReply reports whether err is an answer of the server, which a second attempt would only get again.
func IsReply(err error) bool { return replyIn(err) != "" }

// replyIn returns the answer of the server that is in err, or "".
func replyIn(err error) string {
	var reply redis.Error
	var last hungUp
	switch {
	case errors.As(err, &reply):
		return reply.Error()
	case errors.As(err, &last):
		return last.Error()
	}
	return ""
}

// ScriptError is an error of Redis that a script has passed on.
type ScriptError string

func (e ScriptError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (e ScriptError) RedisError() {}

// ErrGivenUp is what a node says to a request that it takes for a late one of an owner who has given up.
var ErrGivenUp = errors.New("redis: the request came after its owner had given up")
