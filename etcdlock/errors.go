package etcdlock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// What an etcd that answers may say instead of yes or no. The error of a Lock wraps one of these, together with what
// the server said; none of them is ever ErrLocked. ErrPermission and ErrAuth are of the class locker.ErrDenied,
// ErrVersion is a locker.ErrUnfit, and the others are locker.ErrUnavailable.
var (
	// ErrNoLeader means that the cluster has no leader, or the member that was asked does not know it: an election is
	// under way, or the majority of the members is down or out of reach.
	ErrNoLeader = backends.Sentinel(locker.ErrUnavailable, "etcd: the cluster has no leader")

	// ErrNoSpace means that the database has reached its quota (--quota-backend-bytes), and etcd has raised the alarm
	// NOSPACE: compact, defragment, and disarm the alarm. Locks that are held stay held and can be unlocked.
	ErrNoSpace = backends.Sentinel(locker.ErrUnavailable, "etcd: the database has reached its quota")

	// ErrPermission means that the user lacks a permission. The package documentation lists what is needed.
	ErrPermission = backends.Sentinel(locker.ErrDenied,
		"etcd: the user lacks a permission: locks need readwrite for all keys that begin with their prefix")

	// ErrAuth means that the server wants a user and a password, or others.
	ErrAuth = backends.Sentinel(locker.ErrDenied, "etcd: authentication failed: check user and password")

	// ErrVersion means that the server is too old for leases to be relied upon.
	ErrVersion = backends.Sentinel(locker.ErrUnfit, "etcd: the server is too old; locks need etcd 3.5.13 or later")

	// ErrLeaseExpired means that the etcd lease to which this Locker's locks are attached has ended: it could not be
	// kept alive, or somebody has revoked it. Who waited for a lock has lost the place in the line.
	ErrLeaseExpired = backends.Sentinel(locker.ErrUnavailable, "etcd: the lease has expired")

	// ErrNoAnswer means that the server, or what is between, did not answer in time.
	ErrNoAnswer = backends.Sentinel(locker.ErrUnavailable, "etcd: the server did not answer in time")

	// ErrUnreachable means that there is no connection to a member that is in service. None could be made, or it broke,
	// or the member starts, stops, or is a learner.
	ErrUnreachable = backends.Sentinel(locker.ErrUnavailable, "etcd: no connection to a member that is in service")
)

var (
	errDeleted    = errors.New("etcd: the key was deleted")
	errGivenUp    = errors.New("etcd: the lease was given up, as a key attached to it could not be deleted")
	errDeposed    = errors.New("etcd: a keep-alive was answered by a member that may have been deposed")
	errNotRenewed = errors.New(
		"etcd: a keep-alive was answered with less than the TTL, as by a proxy that has not asked the leader",
	)
	errNoRenew      = errors.New("its TTL has passed, and it is not renewed") // as package locker says it
	errOverdue      = errors.New("not renewed in time")
	errFence        = fmt.Errorf("%w, as the data is older than it was", ErrLeaseExpired)
	errClientClosed = backends.Sentinel(locker.ErrClosed, "etcd: the client is closed")
	errClosed       = fmt.Errorf("etcd: %w", locker.ErrClosed)
)

var notForLearner = rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner)

// What a member says when its raft has not taken a proposal, and when it has stopped: without a code.
const (
	proposalDropped = "raft proposal dropped"
	raftStopped     = "raft: stopped"
)

// meanings of the errors of etcd (https://pkg.go.dev/go.etcd.io/etcd/api/v3/v3rpc/rpctypes). After those that are
// certain, the request was not and will not be carried out.
var meanings = []struct {
	err     error
	meaning error
	certain bool
}{
	{rpctypes.ErrNoLeader, ErrNoLeader, true},
	{rpctypes.ErrLeaderChanged, ErrNoLeader, false},
	{rpctypes.ErrTimeoutDueToLeaderFail, ErrNoLeader, false},
	{rpctypes.ErrTimeoutDueToConnectionLost, ErrNoLeader, false},
	{rpctypes.ErrTimeout, ErrNoAnswer, false},
	{rpctypes.ErrTimeoutWaitAppliedIndex, ErrNoAnswer, false},
	{
		rpctypes.ErrNoSpace, ErrNoSpace, false,
	}, // the transaction that reaches the quota is carried out, and answered so all the same
	{rpctypes.ErrPermissionDenied, ErrPermission, true},
	{rpctypes.ErrPermissionNotGranted, ErrPermission, true},
	{rpctypes.ErrAuthFailed, ErrAuth, true},
	{rpctypes.ErrUserEmpty, ErrAuth, true},
	{rpctypes.ErrInvalidAuthToken, nil, true}, // the client logs in again, and hears ErrAuthFailed if that is no use
	{rpctypes.ErrAuthOldRevision, nil, true},  // users or roles were changed in the same moment
	{rpctypes.ErrLeaseNotFound, ErrLeaseExpired, true},
	{rpctypes.ErrStopped, ErrUnreachable, false},
	{notForLearner, ErrUnreachable, true},
	{rpctypes.ErrTooManyRequests, nil, true},
	{rpctypes.ErrRequestTooLarge, nil, true},
	{rpctypes.ErrTooManyOps, nil, true},
	{rpctypes.ErrDuplicateKey, nil, true},
	{rpctypes.ErrCompacted, nil, true},
	{rpctypes.ErrFutureRev, nil, true},
}

// explain makes an error of the client one of the above, if it is one, and reports whether it says with certainty that
// the request was not carried out, and will not be.
func explain(err error) (explained error, certain bool) {
	err = rpctypes.Error(err)
	for _, m := range meanings {
		if !errors.Is(err, m.err) {
			continue
		}
		if m.meaning != nil && !errors.Is(err, m.meaning) {
			err = fmt.Errorf("%w: %w", m.meaning, err)
		}
		return err, m.certain
	}
	switch {
	case errors.Is(err, errFence), errors.Is(err, errClientClosed):
		return err, true
	case timedOut(err):
		// Of a bound that is ours: for the caller of Lock, whose own ctx has not ended, a wrapped one would mean
		// something else.
		return fmt.Errorf("%w: %s", ErrNoAnswer, err.Error()), false
	case neverSent(err):
		return err, true
	case isOutage(err) && !errors.Is(err, ErrUnreachable):
		return fmt.Errorf("%w: %w", ErrUnreachable, err), says(err, proposalDropped)
	}
	return err, false
}

// says reports whether an error without a code says that.
func says(err error, what string) bool {
	return code(err) == codes.Unknown && strings.HasSuffix(err.Error(), what)
}

// neverSent reports whether a request was larger than what the client may send. (The same code says that an answer was
// larger than what it may receive.)
func neverSent(err error) bool {
	return code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "trying to send message larger than max")
}

// timedOut reports whether err is the end of a context.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		code(err) == codes.DeadlineExceeded || code(err) == codes.Canceled
}

// isOutage reports whether err may be the fault of one endpoint alone, so that another is worth a try.
func isOutage(err error) bool {
	return err != nil && (timedOut(err) || code(err) == codes.Unavailable || errors.Is(err, io.EOF) ||
		errors.Is(rpctypes.Error(err), notForLearner) || says(err, proposalDropped) || says(err, raftStopped))
}

func code(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return codes.Unknown
}

// errOvertaken: others have made claims to slots since there was one free. There may still be.
var errOvertaken = locker.NotAcquired(errors.New("etcd: others were faster"))

// errOver: the session is over, and there was no request, or it was refused for that. Another session can be asked.
var errOver = errors.New("etcd: the session is over")
