package locker

import (
	"fmt"
	"time"
)

// Healthy reports whether the work of each Do, DoAll and Lead stops when it should: it returns an error if work goes on
// though its lease ended a grace ago. Somebody else may be at the same work then, and only the end of this
// process helps: Healthy is for the handler of a liveness probe, such as /healthz. It asks no store. A work that takes
// its time to stop needs some grace: as long as that may take.
//
// The error matches ErrLost, and says which key it is about. (The idea comes from leaderelection.HealthzAdaptor in
// Kubernetes' client-go.)
func (c *Client) Healthy(grace time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.working {
		ended, reason := l.next, l.reason
		if reason == nil { // its timer may be late
			ended, reason = l.deadline, errPaused
		}
		if late := time.Since(ended); late >= grace {
			return c.fail(opHealthy, l.Key(), fmt.Errorf("the work goes on, %v after the end of its lease: %w",
				late.Round(time.Millisecond), lost(reason)))
		}
	}
	return nil
}

// begins notes that work under the lease begins; the function that it returns, that it has ended.
func (l *Lease) begins() (ends func()) {
	c := l.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.working == nil {
		c.working = make(map[*Lease]struct{})
	}
	c.working[l] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.working, l)
	}
}

// begins is that of each of the leases.
func (ls Leases) begins() (ends func()) {
	all := make([]func(), len(ls))
	for i, l := range ls {
		all[i] = l.begins()
	}
	return func() {
		for _, end := range all {
			end()
		}
	}
}
