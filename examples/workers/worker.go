package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
)

// worker is one member of a fleet: it waits until it is elected, and processes the queue while it leads.
type worker struct {
	name  string
	key   string
	locks locker.Locker
	queue Queue
	do    func(ctx context.Context, job int64) error // does one job
	grace time.Duration                              // for the job in hand, when told to stop
	jobs  int64                                      // stop when so many are done; 0 for never

	// insist makes the worker careless: it neither stops a job nor withholds its result when the lease is lost. It
	// is there to show that the queue refuses such results. Real ones set no such thing.
	insist bool

	tell func(event) // is told what happens
}

var (
	errAllDone = errors.New("all jobs are done")
	errGrace   = errors.New("it took longer than the grace after being told to stop")
)

// run works until ctx ends, until all jobs are done, or until a job fails, and returns what went wrong. When it
// returns, the job in hand has ended and the key is unlocked.
func (w *worker) run(ctx context.Context) error {
	w.tell(event{worker: w.name, what: joins})
	err := locker.Lead(ctx, w.locks, w.key, func(ctx context.Context, lease *locker.Lease) error {
		t := term{worker: w, lease: lease, leader: Leader{Name: w.name, Token: lease.Token()}}
		return t.run(ctx)
	}, locker.Holder(w.name))
	var e *locker.Error
	switch {
	case err == errAllDone: //nolint:errorlint // just that, and nothing else: the key is unlocked
		return nil
	case ctx.Err() != nil && (!errors.As(err, &e) || e.Op != "unlock"):
		return nil // told to stop, maybe during an outage: the job is in, and the key unlocked
	}
	return fmt.Errorf("%s: %w", w.name, err)
}

func (w *worker) outage(err error) { w.tell(event{worker: w.name, what: outage, err: err}) }

// observe has o, which observes w.locks, tell of the failures that are ridden out.
func (w *worker) observe(o *locker.Observer) {
	o.Retry = func(i locker.RetryInfo) { w.outage(i.Err) }
}

// term is the time for which a worker leads.
type term struct {
	*worker
	lease  *locker.Lease
	leader Leader
	gone   bool // the loss of the lease has been reported
}

func (t *term) report(what kind, job int64, err error) {
	t.tell(event{worker: t.name, what: what, token: t.leader.Token, job: job, err: err})
}

// lostLease returns why the lease is lost, if it is, and sees to it that this is reported once.
func (t *term) lostLease() error {
	err := t.lease.Err() // looks at the clock: it is right even if this process was stopped until just now
	if err != nil && !t.gone {
		t.gone = true
		t.report(lost, 0, err)
	}
	return err
}

// run leads until ctx ends, which it does when the worker is told to stop or the lease is lost. It returns an error if
// there is no point in leading on.
func (t *term) run(ctx context.Context) error {
	err := t.work(ctx)
	switch {
	case t.lostLease() != nil:
		return nil // Lead campaigns again
	case errors.Is(err, ErrDeposed):
		// The queue knows of a newer leader: the store of the locks has forgotten us, or a person has deleted the lock.
		t.report(refused, 0, err)
		err = nil
	case errors.Is(err, errAllDone):
		t.report(finished, 0, nil)
	case ctx.Err() != nil:
		err = nil
	}
	t.leave(ctx)
	return err
}

// work claims the queue, and does one job after the other.
func (t *term) work(ctx context.Context) error {
	var before Handover
	if err := t.ask(ctx, func(ctx context.Context) (err error) {
		before, err = t.queue.Claim(ctx, t.leader)
		return err
	}); err != nil {
		return err
	}
	t.tell(event{worker: t.name, what: leads, token: t.leader.Token, before: before})

	for ctx.Err() == nil {
		var job int64
		if err := t.ask(ctx, func(ctx context.Context) (err error) {
			job, err = t.queue.Next(ctx, t.leader)
			return err
		}); err != nil {
			return err
		}
		if t.jobs > 0 && job > t.jobs {
			return errAllDone
		}
		if err := t.handle(ctx, job); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// handle does one job and hands in its result.
func (t *term) handle(ctx context.Context, job int64) error {
	t.report(starts, job, nil)
	hand, release := t.inHand(ctx)
	defer release()
	err := t.do(hand, job)

	// This process may have been stopped for hours in the middle of the job, without having noticed anything so far.
	if gone := t.lostLease(); gone != nil {
		if t.insist && err == nil {
			t.handInLate(ctx, job)
		} else {
			t.report(drops, job, locker.ErrLost)
		}
		return gone
	}
	if err == nil {
		err = t.ask(hand, func(ctx context.Context) error { return t.queue.Submit(ctx, t.leader, job) })
	}
	switch {
	case err == nil:
		t.report(done, job, nil)
		return nil
	case t.lostLease() != nil: // at the last moment; the queue may have taken the result, or not
		t.report(drops, job, locker.ErrLost)
		return err
	case hand.Err() != nil:
		// The next leader does the job again, unless the result arrived and only the answer got lost.
		t.report(drops, job, context.Cause(hand))
		return context.Cause(hand)
	case errors.Is(err, ErrOutOfOrder):
		t.report(drops, job, err) // the queue has forgotten something: go by what it says
		return nil
	}
	return fmt.Errorf("job %d: %w", job, err)
}

// inHand returns the context of the job in hand. It ends when the lease is lost. When ctx ends because the worker is
// told to stop, the job has the grace to finish.
func (t *term) inHand(ctx context.Context) (hand context.Context, release func()) {
	hand, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	forget := func() {}
	if !t.insist {
		hand, forget = t.lease.Context(hand)
	}
	unhook := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(t.grace):
			cancel(errGrace)
		case <-hand.Done():
		}
	})
	return hand, func() {
		unhook()
		forget()
		cancel(nil)
	}
}

// handInLate does what one should not: the token is all that protects the queue now.
func (t *term) handInLate(ctx context.Context, job int64) {
	t.report(insists, job, nil)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	switch err := t.queue.Submit(ctx, t.leader, job); {
	case err == nil:
		t.report(done, job, nil) // nobody has claimed the queue yet, so no harm was done
	case errors.Is(err, ErrDeposed), errors.Is(err, ErrOutOfOrder):
		t.report(refused, job, err)
	default:
		t.outage(err)
	}
}

// ask calls f, which asks the queue, and rides out an outage of it for as long as ctx lasts.
func (t *term) ask(ctx context.Context, f func(context.Context) error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f(ctx)
		switch {
		case err == nil, errors.Is(err, ErrDeposed), errors.Is(err, ErrOutOfOrder):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		t.outage(err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// leave says goodbye to the queue. Lead unlocks as soon as the work has returned.
func (t *term) leave(ctx context.Context) {
	t.report(leaves, 0, nil)
	// It only serves to tell how long the handover took: not worth waiting for.
	const most = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
	defer cancel()
	if err := t.queue.Leave(ctx, t.leader); err != nil && !errors.Is(err, ErrDeposed) {
		t.outage(err)
	}
}

// sleep waits, and returns the cause of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
