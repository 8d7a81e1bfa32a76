package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// process is this program as one worker of a fleet.
type process struct {
	*worker
	store   store
	ttl     time.Duration
	status  *status
	console *console
}

func newProcess(cfg config, s store, c *console) *process {
	p := &process{store: s, ttl: cfg.ttl, status: newStatus(cfg), console: c}
	p.worker = &worker{
		name: cfg.name, key: cfg.key, locks: s.locks, queue: s.queue,
		do:    func(ctx context.Context, _ int64) error { return sleep(ctx, cfg.job) },
		grace: cfg.grace, jobs: cfg.jobs, insist: cfg.insist, tell: p.tell,
	}
	p.observe(s.watch)
	return p
}

func (p *process) tell(e event) {
	p.console.say(e.worker, "%v", e)
	p.status.tell(e)
}

func (p *process) say(format string, args ...any) { p.console.say(p.name, format, args...) }

// run implements program. The web server is the last to end: nobody who is connected to it can delay the unlock.
func (p *process) run(ctx context.Context) error {
	addr, hangUp, err := p.status.serve()
	if err != nil {
		return fmt.Errorf("-http: %w", err)
	}
	defer hangUp()
	if addr != "" {
		p.say("serves its state at http://%s/", addr)
	}
	p.say("is one worker of a fleet: start more with the same -backend and -key, and stop any of them")
	p.say("has its locks and its queue on %s; the TTL of leases is %v", p.store.where, p.ttl)
	err = p.worker.run(ctx)
	return errors.Join(err, p.store.locks.Close(), p.store.close())
}
