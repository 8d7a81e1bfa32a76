package pglock

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// The lookout is a session without locks, for all that is not locking: to inspect, to take locks away, to read what was
// taken away here, and to write down who holds what. What is done there may take a while, where there are many locks,
// or may have to wait for somebody who has locked a table. It is there while somebody needs it, or leases have been
// renewed.

// lookout returns the session for those who look, which it begins to make if there is none. b.mu is held.
func (b *backend) lookout() *leaseSession {
	if l := b.looking; l != nil {
		if l.session != nil {
			l.session.used = time.Now()
		}
		return l
	}
	l := &leaseSession{timeout: connectWithin, ready: make(chan struct{})}
	b.waits.connecting()
	if !b.begin(func() {
		s, err := b.open(connectWithin, toLook)
		if err == nil {
			s.boundLocks(silence / 2) // or it would be given up, and with it what others have asked
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.waits.connected(err)
		l.session, l.err = s, err
		if err != nil || s.dead {
			b.looking = nil
		}
		close(l.ready)
	}) {
		l.err = locker.ErrClosed
		close(l.ready)
		return l
	}
	b.looking = l
	return l
}

// looksOn reports whether a session is that for those who look. b.mu is held.
func (b *backend) looksOn(s *session) bool { return b.looking != nil && b.looking.session == s }

// lookoutNow returns the session for those who look when it has been made.
func (b *backend) lookoutNow(ctx context.Context) (*session, error) {
	b.mu.Lock()
	l := b.lookout()
	b.mu.Unlock()
	if err := l.await(ctx); err != nil {
		return nil, err
	}
	return l.session, nil
}

// consult has the lookout execute some messages, one after the other, and returns the rows of each, or its error.
func (b *backend) consult(ctx context.Context, messages ...string) (rows [][][]string, errs []error) {
	s, err := b.lookoutNow(ctx)
	if err != nil {
		return make([][][]string, len(messages)), slices.Repeat([]error{err}, len(messages))
	}
	return b.consultOn(ctx, s, messages...)
}

// consultOn is consult on a session.
func (b *backend) consultOn(ctx context.Context, s *session, messages ...string) (rows [][][]string, errs []error) {
	rows, errs = make([][][]string, len(messages)), slices.Repeat([]error{locker.ErrClosed}, len(messages))
	answers := make(chan answer, len(messages))
	b.mu.Lock()
	begun := b.begin(func() { // as to write may take a while
		for _, m := range messages {
			s.execute(m, func(a answer) { answers <- a })
		}
	})
	b.mu.Unlock()
	for i := 0; i < len(messages) && begun; i++ {
		select {
		case a := <-answers: // they come in order
			if errs[i] = a.err; a.err == nil {
				rows[i] = a.rows[1:]
			}
		case <-ctx.Done():
			for ; i < len(messages); i++ {
				errs[i] = context.Cause(ctx)
			}
		}
	}
	return rows, errs
}

// consultOnce is consult for one message.
func (b *backend) consultOnce(ctx context.Context, message string) ([][]string, error) {
	rows, errs := b.consult(ctx, message)
	return rows[0], explainUnlessEnded(ctx, errs[0])
}

// explainUnlessEnded is explain for an error of consult, which may be why ctx has ended.
func explainUnlessEnded(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return explain(err)
}

// execute sends statements, whose rows come behind a first one.
func (w *wire) execute(statements string, answered func(answer)) {
	w.ask(&message{answered: answered},
		func(sql []byte, seq int64) []byte { return fmt.Appendf(sql, "SELECT %d;%s", seq, statements) })
}

// pause keeps something from being tried again that failed since the role lacks a permission, or a table is missing:
// each attempt would be an error in the log of the server.
type pause struct {
	until  time.Time
	reason error
}

// heed begins a pause if an error is one of these, and reports whether it is.
func (p *pause) heed(err error) bool {
	const long = 10 * time.Minute
	if !isCode(err, "42501", "42P01", "3F000") { // insufficient privilege, undefined table, undefined schema
		return false
	}
	p.until, p.reason = time.Now().Add(long), err
	return true
}

// isOn returns the error that has begun a pause, nil if there is none.
func (p *pause) isOn() error {
	if time.Now().After(p.until) {
		p.reason = nil
	}
	return p.reason
}
