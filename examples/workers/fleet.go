package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// What happens in the story, in the middle of which job.
const (
	crashAt  = 4
	returnAt = 7
	leaveAt  = 10
	lastJob  = 13
)

// fleet is this program as a whole fleet. It tells a story of two handovers, and checks that it went well.
type fleet struct {
	cfg     config
	stage   stage
	console *console
	begin   time.Time
	frozen  chan struct{} // closed when the leader that has crashed may go on
	thaw    func()        // closes it

	mu        sync.Mutex
	scenes    map[int64]func(*member) // by job; each is played once
	events    []event
	crashed   *member
	crashTime time.Time
	downtime  time.Duration // from the crash until the next leader
	handover  time.Duration // from the polite leave until the next leader
	passedOn  bool          // there was one; on a coarse clock, that took no time
	curtain   context.CancelCauseFunc
	failures  []error // of members
}

// member is a worker of the fleet, with a store of its own as each process would have.
type member struct {
	*worker
	own  store
	cut  func() (heal func())
	stop context.CancelFunc
}

func newFleet(cfg config, s stage, out io.Writer) *fleet {
	begin := time.Now()
	clock := func() string { return fmt.Sprintf("%7.3fs", time.Since(begin).Seconds()) }
	f := &fleet{
		cfg:     cfg,
		stage:   s,
		console: &console{out: out, clock: clock, width: len("fleet")},
		begin:   begin,
		frozen:  make(chan struct{}),
	}
	f.thaw = sync.OnceFunc(func() { close(f.frozen) })
	f.scenes = map[int64]func(*member){crashAt: f.crash, returnAt: f.comeBack, leaveAt: f.leave}
	return f
}

func (f *fleet) say(format string, args ...any) { f.console.say("fleet", format, args...) }

var (
	errTheEnd = errors.New("the story is over")
	errStuck  = errors.New("the story does not go on")
	errFailed = errors.New("a worker failed")
)

// run implements program.
func (f *fleet) run(ctx context.Context) error {
	f.say("%d workers, one queue, %s: one of them leads, and does jobs 1 to %d in order; the TTL of leases is %v",
		f.cfg.workers, f.stage.where, lastJob, f.cfg.ttl)
	f.say("the first leader crashes in job %d, and is back in job %d; the second is told to stop in job %d; "+
		"this takes about %v",
		crashAt, returnAt, leaveAt, (lastJob*f.cfg.job + f.cfg.ttl).Round(100*time.Millisecond))
	// Generous: what it really takes is 2 TTLs and lastJob jobs.
	patience := 30*time.Second + 5*f.cfg.ttl + 5*lastJob*f.cfg.job
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errStuck)
	defer cancel()
	ctx, f.curtain = context.WithCancelCause(ctx)
	defer f.curtain(nil)
	defer context.AfterFunc(ctx, f.thaw)() // whatever happens, nobody stays frozen

	var members sync.WaitGroup
	for i := range f.cfg.workers {
		m := f.newMember(i + 1)
		ctx, stop := context.WithCancel(ctx)
		m.stop = stop
		members.Go(func() {
			defer stop()
			if err := errors.Join(m.run(ctx), m.own.locks.Close(), m.own.close()); err != nil {
				f.fail(err)
			}
		})
	}
	members.Wait()
	return errors.Join(f.outcome(ctx), f.draw())
}

// outcome returns what did not go as it should.
func (f *fleet) outcome(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errStop):
		return errors.New("stopped before the end of the story") // what failed thereby is of no interest
	case errors.Is(cause, errTheEnd) && len(f.failures) == 0:
		return f.verdict()
	default:
		return errors.Join(append(f.failures, cause)...)
	}
}

// fail ends the story if it has not ended yet.
func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, err)
	f.curtain(errFailed)
}

func (f *fleet) newMember(number int) *member {
	m := new(member)
	name := fmt.Sprintf("w%d", number)
	m.own, m.cut = f.stage.join(f.console.logger(name))
	m.worker = &worker{
		name: name, key: f.cfg.key, locks: m.own.locks, queue: m.own.queue,
		do:    func(ctx context.Context, job int64) error { return f.do(ctx, m, job) },
		grace: f.cfg.grace, insist: true, tell: f.tell,
	}
	m.observe(m.own.watch)
	return m
}

// do is the work of a member, with a scene in the middle of some jobs.
func (f *fleet) do(ctx context.Context, m *member, job int64) error {
	half := f.cfg.job / 2
	if err := sleep(ctx, half); err != nil {
		return err
	}
	f.mu.Lock()
	scene := f.scenes[job]
	delete(f.scenes, job)
	f.mu.Unlock()
	if scene != nil {
		scene(m)
	}
	return sleep(ctx, f.cfg.job-half)
}

// crash makes m vanish: it is cut off from the store, so that nothing is renewed and nothing unlocked, and its work
// stands still, as that of a process that was stopped does.
func (f *fleet) crash(m *member) {
	f.tell(event{worker: m.name, what: crashes, job: crashAt})
	heal := m.cut()
	f.mu.Lock()
	f.crashed, f.crashTime = m, time.Now()
	f.mu.Unlock()
	<-f.frozen // heeding no context
	heal()
}

// comeBack lets the leader that has crashed go on where it was, in the belief that it leads.
func (f *fleet) comeBack(*member) {
	f.tell(event{worker: f.crashed.name, what: comesTo, job: crashAt})
	f.thaw()
}

// leave stops the leader as a signal does.
func (f *fleet) leave(m *member) {
	f.tell(event{worker: m.name, what: isToStop, job: leaveAt})
	m.stop()
}

// tell prints and remembers what happens to the members, and ends the story after the last job.
func (f *fleet) tell(e event) {
	if e.what != starts { // the leader's next line is about the same job
		f.console.say(e.worker, "%v", e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e.at = time.Since(f.begin)
	f.events = append(f.events, e)
	switch {
	case e.what == leads && e.before.Left:
		f.handover, f.passedOn = e.before.Ago, true
	case e.what == leads && f.crashed != nil:
		f.downtime = time.Since(f.crashTime)
	case e.what == done && e.job == lastJob:
		f.curtain(errTheEnd)
	}
}
