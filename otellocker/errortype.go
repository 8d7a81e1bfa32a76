package otellocker

import (
	"context"
	"errors"

	"github.com/lockerkit/locker"
)

// The values of error.type that are used elsewhere, too.
const (
	typeCanceled    = "canceled"
	typeTimeout     = "timeout"
	typeLocked      = "locked"
	typeUnavailable = "unavailable"
	typeDenied      = "denied"
	typeUnfit       = "unfit"
	typeLost        = "lost"
	typeExpired     = "expired"
	typeRevoked     = "revoked"
	typeBroken      = "broken"
)

// types are the classes of errors. The first that an error matches is its type. The end of the caller's context comes
// first: its cause can be any error. ErrLost comes last: a lost lease says why it was lost.
var types = []struct {
	class error
	name  string
}{
	{context.Canceled, typeCanceled},
	{context.DeadlineExceeded, typeTimeout},
	{locker.ErrClosed, "closed"},
	{locker.ErrInvalidKey, "invalid_key"},
	{locker.ErrInvalidOption, "invalid_option"},
	{errors.ErrUnsupported, "unsupported"},
	{locker.ErrLocked, typeLocked},
	{locker.ErrDenied, typeDenied},
	{locker.ErrUnfit, typeUnfit},
	{locker.ErrUnavailable, typeUnavailable},
	{locker.ErrRevoked, typeRevoked},
	{locker.ErrBroken, typeBroken},
	{locker.ErrLost, typeLost},
}

// errorType returns the value of the attribute error.type for what Lock or TryLock returns, "" for nil.
func errorType(err error) string {
	if err == nil {
		return ""
	}
	for _, t := range types {
		if errors.Is(err, t.class) {
			return t.name
		}
	}
	return "_OTHER" // as OpenTelemetry calls it
}

// storeErrorType is errorType for what no caller's context can have ended: the context is that of a call of the store.
func storeErrorType(err error) string {
	switch name := errorType(err); name {
	case typeCanceled, typeTimeout:
		return typeUnavailable
	default:
		return name
	}
}
