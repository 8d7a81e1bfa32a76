package redislock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// What a Redis that answers may say instead of yes or no. The error of a Lock wraps one of these, together with the
// error of go-redis; none of them is ever ErrLocked.
var (
	// ErrReadOnly: the server is a replica. The client is connected to the wrong one, or a failover is under way.
	ErrReadOnly = errors.New("redis: the server is a read-only replica")

	// ErrLoading: the server has just started and is still reading its data.
	ErrLoading = errors.New("redis: the server is still loading its data")

	// ErrAuth: the server wants a password, or another one.
	ErrAuth = errors.New("redis: authentication failed")

	// ErrPermission: the user lacks a permission. The package documentation lists what is needed.
	ErrPermission = errors.New("redis: the user lacks a permission")

	// ErrWrongType: there is something else than a lock under the key, such as somebody's hash. It is left alone.
	ErrWrongType = errors.New("redis: the key holds something that is not a lock")

	// ErrOutOfMemory: the server has reached its maxmemory and cannot or may not evict keys. Give it more memory; do not
	// let it evict, because then it evicts locks.
	ErrOutOfMemory = errors.New("redis: the server is out of memory")
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
	{"NOPERM ", ErrPermission, false},
	{"The user executing the script can't", ErrPermission, false}, // may come from the middle of a script
	{"WRONGTYPE ", ErrWrongType, true},
	{"OOM ", ErrOutOfMemory, false},
}

// explain makes an error of go-redis one of the above, if it is one, and marks those after which nothing is locked.
func explain(err error) error {
	var reply redis.Error
	switch {
	case err == nil:
		return nil
	case isContext(err):
		return errNoAnswer
	case !errors.As(err, &reply):
		return err
	}
	for _, r := range replies {
		if strings.Contains(reply.Error(), r.code) {
			err = fmt.Errorf("%w: %w", r.meaning, err)
			if r.certain {
				err = locker.NotAcquired(err)
			}
			return err
		}
	}
	return err
}

// errNoAnswer is the error of a command whose ctx ended. That ctx is a bound that package locker has set: for the caller
// of Lock, whose own has not ended, context.DeadlineExceeded would mean something else.
var errNoAnswer = errors.New("redis: the server did not answer in time")

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// isDial reports whether err means that no connection was made, so that nothing can have been sent.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// isReply reports whether err is an answer of the server, which a second attempt would only get again.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
