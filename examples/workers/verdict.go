package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// verdict sums the story up, and returns what did not go as it should.
func (f *fleet) verdict() error {
	if err := f.check(); err != nil {
		return fmt.Errorf("it did NOT go as it should:\n%w", err)
	}
	f.say("handover after the crash: %s, with a TTL of %v", short(f.downtime), f.cfg.ttl)
	f.say("handover after leaving politely: %s", short(f.handover))
	f.say("jobs 1 to %d processed in order, none lost, none twice; the late result was refused by its token", lastJob)
	return nil
}

// slack is how much later than its TTL a dead leader may be replaced.
const slack = 500 * time.Millisecond

func (f *fleet) check() error {
	var errs []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}

	// What the queue has accepted, and what the workers believe.
	terms, err := f.stage.terms()
	expect(err == nil, "the queue cannot be asked: %v", err)
	expect(len(terms) == lastJob, "the queue has %d results instead of %d", len(terms), lastJob)
	expect(slices.IsSorted(terms), "a former leader's result was accepted after a later one's: tokens %v", terms)
	var jobs []int64
	for _, e := range f.events {
		if e.what == done {
			jobs = append(jobs, e.job)
		}
	}
	for i, job := range jobs {
		expect(job == int64(i+1), "job %d was done when it was the turn of job %d", job, i+1)
	}
	expect(len(jobs) == lastJob, "%d jobs were done instead of %d", len(jobs), lastJob)

	// Each term began with a greater token than the one before.
	last := uint64(0)
	for _, e := range f.events {
		if e.what == leads {
			expect(e.token > last, "%s led with token %d after token %d", e.worker, e.token, last)
			last = e.token
		}
	}

	// The leader that came back saw that it had lost the lease, insisted, and was refused.
	var fate []kind
	for _, e := range f.events {
		if e.worker == f.crashed.name && slices.Contains([]kind{lost, insists, refused}, e.what) {
			fate = append(fate, e.what)
			expect(e.what != refused || errors.Is(e.err, ErrDeposed), "%s was refused for another reason: %v", e.worker, e.err)
		}
	}
	expect(slices.Equal(fate, []kind{lost, insists, refused}), "%s did not see the loss first and get refused then",
		f.crashed.name)

	expect(f.downtime > 0 && f.downtime <= f.cfg.ttl+slack, "the handover after the crash took %v", f.downtime)
	expect(f.passedOn, "nobody took over from the leader that left politely")
	return errors.Join(errs...)
}
