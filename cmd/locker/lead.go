package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
)

func (a *app) leadCommand() *cobra.Command {
	r := &runner{app: a}
	c := &cobra.Command{
		Use:   "lead [OPTIONS] KEY -- COMMAND [ARGUMENT...]",
		Short: "Run a command whenever elected, on one of several machines",
		Long: `Run COMMAND whenever this process is the leader of KEY. If that is lost, COMMAND
is ended before anybody else can lead, and this process is a candidate again.
If COMMAND exits with 0, others have their turn; else this process ends, too.
` + exitCodes + ".",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := r.take(cmd, args); err != nil {
				return err
			}
			if len(r.keys) > 1 {
				return errors.New("one key is wanted")
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error { return r.lead() },
	}
	r.bind(c)
	return c
}

// lead is the command lead.
func (r *runner) lead() error {
	opts, err := r.call()
	if err != nil {
		return err
	}
	if err := r.find(); err != nil {
		return err
	}
	signals := catchSignals()
	c, err := r.openAtLast(signals.ctx)
	if err != nil {
		return ofWait(signals.ctx, err)
	}
	defer r.closeStore(c)

	waiting, elected := context.WithCancel(signals.ctx)
	defer elected()
	go r.tellWait(waiting, c, r.keys)

	last := make(chan error, 1) // with which this process ends, when no further command is to be run
	result := make(chan error, 1)
	go func() {
		result <- locker.Lead(signals.ctx, c, r.keys[0], func(_ context.Context, lease *locker.Lease) error {
			elected()
			r.say(slog.LevelInfo, fmt.Sprintf("leads %q, with token %d", r.keys[0], lease.Token()),
				slog.String("key", r.keys[0]), slog.Uint64("token", lease.Token()))
			err := r.term(signals, lease)
			if err != nil {
				last <- err
				signals.end(err)
			}
			return err
		}, opts...)
	}()
	select {
	case err = <-result:
	case <-signals.ctx.Done(): // the store is to be told, but need not answer
		err = r.within(func() error { return <-result })
	}
	select {
	case end := <-last:
		if errors.Is(err, locker.ErrUnavailable) {
			r.tellUnlock(err)
		}
		return end
	default:
		return ofWait(signals.ctx, err)
	}
}

// term is one term of office. The error is that with which this process ends.
func (r *runner) term(signals *signals, lease *locker.Lease) error {
	status, err := r.work(signals, locker.Leases{lease})
	ending := &exit{code: status.ExitCode()}
	switch shutdown := signals.ended(); {
	case errors.Is(err, locker.ErrLost) && !shutdown:
		r.say(slog.LevelWarn, fmt.Sprintf("does not lead %q any more: %s", r.keys[0], reasonOf(err)))
		return nil
	case shutdown: // whatever else has happened
	case err != nil:
		return err
	case ending.code == 0:
		r.say(slog.LevelInfo, fmt.Sprintf("the command has ended: others may lead %q", r.keys[0]))
		return nil
	}
	return ending
}

// The pauses between attempts to reach the store at the start.
const (
	firstPause = 500 * time.Millisecond
	maxPause   = 10 * time.Second
)

// openAtLast opens the store, and waits for one that is out of reach: that of a machine that has just been started.
func (r *runner) openAtLast(ctx context.Context) (*locker.Client, error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		c, err := r.open(ctx, r.storeOptions()...)
		if !errors.Is(err, locker.ErrUnavailable) || ctx.Err() != nil {
			return c, err
		}
		level := slog.LevelDebug
		if pause == firstPause {
			level = slog.LevelWarn
		}
		r.say(level, "waiting for the store: "+hidden(err))
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}
