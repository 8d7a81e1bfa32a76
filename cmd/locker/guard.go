package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/cmd/locker/internal/child"
)

// guardOptions say what becomes of a command that loses its lock.
type guardOptions struct {
	onLoss string
	grace  time.Duration
}

func (o *guardOptions) bind(c *cobra.Command) {
	c.Flags().StringVar(&o.onLoss, "on-loss", "kill", "`WHAT` to do with COMMAND on loss: kill, term or warn")
	c.Flags().DurationVar(&o.grace, "grace", 0, "`TIME` from SIGTERM to SIGKILL on loss (default TTL/3, 5s at most)")
}

const maxGrace = 5 * time.Second

// check sets what has no value, and refuses what makes no sense.
func (o *guardOptions) check(ttl time.Duration) error {
	switch o.onLoss {
	case "kill", "term", "warn":
	default:
		return usage("-on-loss %s: must be kill, term or warn", o.onLoss)
	}
	switch {
	case o.grace == 0:
		o.grace = min(maxGrace, ttl/3)
	case o.grace < 0 || o.grace > ttl/2: // a lease that is renewed in time has always more left than that
		return usage("-grace %v: must be at most %v, half of the TTL", o.grace, ttl/2)
	}
	return nil
}

// killMargin is how long before the end of the lease SIGKILL is sent: a process takes a moment to die, and this one may
// be late. (The lease itself ends 1 % and 2 ms before its TTL has passed.)
func killMargin(ttl time.Duration) time.Duration { return min(500*time.Millisecond, ttl/10) }

// guard watches over a command and the leases that it works under. It ends the command before anybody else can get one
// of them:
//
//   - A lease that is not renewed has SIGTERM sent when only the grace is left before its end, and SIGKILL shortly
//     before its end.
//   - One that is revoked is kept by the store until it is unlocked, or ends: SIGTERM at once, SIGKILL after the grace.
//   - One that was taken away otherwise has SIGKILL sent at once.
type guard struct {
	app    *app
	opts   guardOptions
	ttl    time.Duration
	leases locker.Leases
	child  *child.Child

	asked  bool      // the command was sent SIGTERM, or would have been
	killed bool      // and SIGKILL
	killAt time.Time // if not zero, when to do that
	lost   error     // why
}

// deadline is when the first of the leases ends.
func (g *guard) deadline() (first time.Time) {
	for i, l := range g.leases {
		if d := l.Deadline(); i == 0 || d.Before(first) {
			first = d
		}
	}
	return first
}

// next is when there may be something to do.
func (g *guard) next() time.Time {
	end := g.deadline().Add(-killMargin(g.ttl))
	switch {
	case g.killed:
		return time.Now().Add(time.Hour)
	case !g.killAt.IsZero():
		return g.killAt
	case g.asked:
		return end
	}
	return end.Add(-g.opts.grace)
}

// wait returns when nothing of the command is left. What it returns says why the command was ended, if it was.
func (g *guard) wait() error {
	held, cancel := g.leases.Context(context.Background())
	defer cancel()
	timer := time.NewTimer(time.Until(g.next()))
	defer timer.Stop()
	ended, lost := g.child.Ended(), held.Done()
	var left <-chan time.Time
	for {
		select {
		case <-g.child.Gone():
			return g.lost
		case <-ended:
			ended, left = nil, time.After(tellWaitAfter)
		case <-left:
			left = nil
			n := g.child.Count()
			g.app.say(slog.LevelInfo, fmt.Sprintf("the command has ended, but left %d processes, "+
				"which keep the lock until they end", n), slog.Int("processes", n))
		case <-lost:
			lost = nil
			g.taken(context.Cause(held))
		case <-timer.C:
			g.overdue()
		}
		timer.Reset(time.Until(g.next()))
	}
}

// overdue is called when a lease was not renewed in time, or it is time to end the command.
func (g *guard) overdue() {
	if time.Now().Before(g.next()) {
		return // it was renewed in the meantime
	}
	if !g.asked {
		g.end(tooLate(time.Until(g.deadline())))
		if time.Now().Before(g.next()) {
			return
		}
	}
	g.kill()
}

// tooLate is why a lease is as good as lost that has so much time left.
func tooLate(left time.Duration) error {
	if left <= 0 {
		return fmt.Errorf("%w %v ago: this process stood still", locker.ErrLost, -left.Round(time.Millisecond))
	}
	return fmt.Errorf("%w in %v: it could not be renewed", locker.ErrLost, left.Round(time.Millisecond))
}

// taken is called when a lease is lost.
func (g *guard) taken(reason error) {
	asked := g.asked
	g.end(reason)
	if asked || !errors.Is(reason, locker.ErrRevoked) {
		g.kill()
		return
	}
	g.killAt = time.Now().Add(g.opts.grace)
	if end := g.deadline().Add(-killMargin(g.ttl)); end.Before(g.killAt) {
		g.killAt = end
	}
}

// end asks the command to end.
func (g *guard) end(why error) {
	if g.asked {
		return
	}
	g.asked = true
	reason := slog.String("error", reasonOf(why))
	if g.opts.onLoss == "warn" {
		g.app.say(slog.LevelWarn, "the command works on without its lock: "+reasonOf(why), reason)
		return
	}
	g.lost = why
	g.app.say(slog.LevelWarn, "the command has to end: "+reasonOf(why), reason)
	g.child.Terminate()
}

// kill ends the command.
func (g *guard) kill() {
	if g.killed {
		return
	}
	g.killed = true
	if g.opts.onLoss == "kill" {
		g.child.Kill()
	}
}
