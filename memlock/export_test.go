package memlock

import "github.com/lockerkit/locker"

// Backend returns the Backend behind l, for the conformance suite.
func (l *Locker) Backend() locker.Backend { return backend{l.store, l.link} }
