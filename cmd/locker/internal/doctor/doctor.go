// Package doctor checks a store for what docs/operating.md tells people to check: what was found, why it matters, and
// what to do. Nothing is changed on the server, but that a key of its own is locked for a moment.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// Status says how a check went.
type Status string

// What a check can say.
const (
	OK      Status = "ok"
	Warn    Status = "warn"    // locks work; somebody should know about this
	Fail    Status = "fail"    // locks cannot be had, or cannot be relied upon
	Unknown Status = "unknown" // it could not be found out
)

// Result is what one check has found.
type Result struct {
	Check  string `json:"check"`
	Server string `json:"server,omitempty"` // which of several
	Status Status `json:"status"`
	Found  string `json:"found"`
	Why    string `json:"why"`          // it matters
	Do     string `json:"do,omitempty"` // the remedy, if there is something to mend
}

// Options say what to check.
type Options struct {
	URL    string
	Prefix string        // of the keys; "" is the default of the store
	TTL    time.Duration // of the locks
	Within time.Duration // bounds all checks together; 0 means DefaultWithin
}

// DefaultWithin is how long people wait for an answer about a server that hangs.
const DefaultWithin = 10 * time.Second

// withDefaults returns options in which nothing is left out that all stores have.
func (o Options) withDefaults() Options {
	o.Within = cmp.Or(o.Within, DefaultWithin)
	return o
}

// What a server that hangs gets of the time: an attempt to lock a key, a connection, and then one check after the
// other, until there is no time left.
func (o Options) lockWithin() time.Duration    { return o.Within * 2 / 5 }
func (o Options) connectWithin() time.Duration { return o.Within / 5 }
func (o Options) lookWithin() time.Duration    { return o.Within / 5 }

// check is one thing to look at, on a server of type S.
type check[S any] struct {
	name string
	why  string
	look func(ctx context.Context, s S) finding
}

// finding is what a check has found.
type finding struct {
	status Status
	found  string
	do     string
}

func ok(format string, args ...any) finding {
	return finding{status: OK, found: fmt.Sprintf(format, args...)}
}

func warn(format string, args ...any) finding {
	return finding{status: Warn, found: fmt.Sprintf(format, args...)}
}

func fail(format string, args ...any) finding {
	return finding{status: Fail, found: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) finding {
	return finding{status: Unknown, found: fmt.Sprintf(format, args...)}
}

// remedy says what to do about it.
func (f finding) remedy(format string, args ...any) finding {
	f.do = fmt.Sprintf(format, args...)
	return f
}

// failure is the finding that an error is.
func failure(err error) finding {
	var e *locker.Error // which says more than is of interest: that a key was to be locked
	if errors.As(err, &e) {
		err = e.Err
	}
	return fail("%v", err).remedy("%s", remedyOf(err))
}

// result returns what was found about something. It is one line, whatever a server has said.
func (f finding) result(name, server, why string) Result {
	found := strings.Join(strings.Fields(f.found), " ")
	return Result{Check: name, Server: server, Status: f.status, Found: found, Why: why, Do: f.do}
}

// look makes checks one after the other. The server has a name if it is one of several.
func look[S any](ctx context.Context, o Options, server string, s S, checks []check[S]) (results []Result) {
	for _, c := range checks {
		ctx, cancel := context.WithTimeout(ctx, o.lookWithin())
		results = append(results, c.look(ctx, s).result(c.name, server, c.why))
		cancel()
	}
	return results
}

// worst returns the worst status of some results.
func worst(results []Result) Status {
	status := OK
	for _, r := range results {
		switch {
		case r.Status == Fail:
			return Fail
		case r.Status == Warn, r.Status == Unknown && status == OK:
			status = r.Status
		}
	}
	return status
}

// attempt is an attempt to lock a key, by the means that programs have.
type attempt struct {
	err  error
	took time.Duration
}

// open is the function Open of a store.
type open func(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error)

// tryLock opens the store, which locks a key for a moment. The error is one for options that cannot be used.
func tryLock(ctx context.Context, o Options, open open) (attempt, error) {
	opts := []locker.Option{locker.TTL(o.TTL)}
	if o.Prefix != "" {
		opts = append(opts, locker.Prefix(o.Prefix))
	}
	ctx, cancel := context.WithTimeout(ctx, o.lockWithin())
	defer cancel()
	start := time.Now()
	c, err := open(ctx, o.URL, opts...)
	a := attempt{err, time.Since(start)}
	switch {
	case err == nil:
		finish(ctx, c.Close)
	case ctx.Err() != nil:
		a.err = fmt.Errorf("%w: no answer within %v", locker.ErrUnavailable, o.lockWithin())
	}
	if errors.Is(err, locker.ErrInvalidOption) {
		return a, err
	}
	return a, nil
}

// ending adds how the attempt to lock went, unless nothing was reached: that was said, then.
func ending(results []Result, lock attempt) []Result {
	reached := slices.ContainsFunc(results, func(r Result) bool { return r.Check == "connect" && r.Status == OK })
	if !reached && lock.err != nil {
		return results
	}
	return append(results, lock.result(results))
}

// finish ends something. A server that hangs is not waited for after the end of ctx.
func finish(ctx context.Context, end func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = end() // there is nothing to be done about it
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

const (
	whyConnect = "Without a connection, nothing can be locked, renewed or unlocked."
	whyLock    = "This is what programs do. While it fails, no program gets a lock."
)

// result returns how the attempt went, after the other checks.
func (a attempt) result(others []Result) Result {
	f := ok("locked and unlocked %q, %s with the connection", locker.PingKey, short(a.took))
	if a.err != nil {
		f = failure(a.err)
		if worst(others) == Fail {
			f = f.remedy("First mend what else has failed.")
		}
	}
	return f.result("lock", "", whyLock)
}

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// size is a number of bytes for people.
func size(bytes int64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
}

// plural is a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
