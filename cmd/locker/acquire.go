package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
)

// lockOptions are those of a lock, for run and lead.
type lockOptions struct {
	ttl     time.Duration
	shared  bool
	slots   int
	minHold time.Duration
	holder  string
	guardOptions
}

// bind makes them options of a command.
func (o *lockOptions) bind(c *cobra.Command) {
	f := c.Flags()
	f.DurationVar(&o.ttl, "ttl", locker.DefaultTTL, "the lock is free after `TIME` if this process dies")
	f.BoolVar(&o.shared, "shared", false, "share the lock with others who share it")
	f.IntVar(&o.slots, "slots", 0, "be one of at most `N` holders")
	f.DurationVar(&o.minHold, "min-hold", 0, "keep the lock for `TIME` at least")
	f.StringVar(&o.holder, "name", "", "`NAME` by which others see this holder (default: host and pid)")
	o.guardOptions.bind(c)
}

// holderName is by what name others see this process unless told otherwise.
func holderName() string {
	host := hostName()
	host = host[:min(len(host), locker.MaxHolderLen-32)]
	return fmt.Sprintf("%s, pid %d", strings.ToValidUTF8(host, "?"), os.Getpid())
}

func hostName() string {
	host, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return host
}

// call returns the options for a lock, or why they cannot be used.
func (o *lockOptions) call() ([]locker.CallOption, error) {
	o.holder = cmp.Or(o.holder, holderName())
	opts := []locker.CallOption{locker.TTL(o.ttl), locker.Holder(o.holder)}
	switch {
	case o.shared && o.slots != 0:
		return nil, usage("-shared and -slots exclude each other")
	case o.shared:
		opts = append(opts, locker.Shared())
	case o.slots != 0:
		opts = append(opts, locker.Slots(o.slots))
	}
	if o.minHold != 0 {
		opts = append(opts, locker.MinHold(o.minHold))
	}
	return opts, o.check(o.ttl)
}

// storeOptions are the options that a Client is made with: what it asks of the store by itself is bounded by the TTL.
func (o *lockOptions) storeOptions() []locker.Option {
	return []locker.Option{locker.TTL(o.ttl), locker.Holder(o.holder)}
}

// tellWaitAfter is when people begin to wonder what a command waits for.
const tellWaitAfter = time.Second

// lock locks keys, and tells who has what it waits for.
func (a *app) lock(
	ctx context.Context, c *locker.Client, keys []string, wait time.Duration, try bool, opts []locker.CallOption,
) (locker.Leases, error) {
	if try {
		return locker.TryLockAll(ctx, c, keys, opts...)
	}
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, wait, locker.ErrLocked)
		defer cancel()
	}
	told := make(chan struct{})
	waiting, stop := context.WithCancel(ctx)
	go func() {
		defer close(told)
		a.tellWait(waiting, c, keys)
	}()
	leases, err := locker.LockAll(ctx, c, keys, opts...)
	stop()
	<-told
	return leases, err
}

// tellWait tells, after a second, who has the keys that are waited for.
func (a *app) tellWait(ctx context.Context, c *locker.Client, keys []string) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(tellWaitAfter):
	}
	for _, key := range keys {
		info, err := c.Inspect(ctx, key)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.say(slog.LevelInfo, fmt.Sprintf("waiting for %q", key), slog.String("key", key))
		case len(info.Holders) > 0:
			a.say(slog.LevelInfo, fmt.Sprintf("waiting for %q, which is held by %s", key, holders(info)),
				slog.String("key", key), slog.Int("waiting", info.Waiting))
		}
	}
}

// holders tells who holds a lock, in a few words.
func holders(info locker.LockInfo) string {
	var texts []string
	for i, h := range info.Holders {
		if i == 3 {
			texts = append(texts, fmt.Sprintf("%d others", len(info.Holders)-i))
			break
		}
		text := cmp.Or(h.Name, h.Session, "somebody")
		if !h.Since.IsZero() {
			text += " since " + h.Since.Local().Format(time.TimeOnly)
		}
		texts = append(texts, text)
	}
	text := strings.Join(texts, "; ")
	if info.Waiting > 1 {
		text += fmt.Sprintf("; %d wait", info.Waiting)
	}
	return text
}

// environment is that of the command: what it may want to know of its lock, but not the password of the store, and
// nothing of the lock that this process itself runs under: of two variables of one name, many programs see the first.
func environment(keys []string, leases locker.Leases, holder string) (env []string) {
	for _, v := range os.Environ() {
		switch name, value, _ := strings.Cut(v, "="); name {
		case "LOCKER_KEY", "LOCKER_TOKEN", "LOCKER_HOLDER", "LOCKER_SLOT":
			continue
		case storeVariable:
			if passwordOf(value) != "" {
				continue
			}
		}
		env = append(env, v)
	}
	env = append(env, "LOCKER_KEY="+strings.Join(keys, "\n"), "LOCKER_TOKEN="+lines(leases, (*locker.Lease).Token),
		"LOCKER_HOLDER="+holder)
	if leases[0].Mode() == locker.ModeSlots {
		env = append(env, "LOCKER_SLOT="+lines(leases, (*locker.Lease).Slot))
	}
	return env
}

// lines tells something of each lease, in a line.
func lines[T any](leases locker.Leases, of func(*locker.Lease) T) string {
	texts := make([]string, len(leases))
	for i, l := range leases {
		texts[i] = fmt.Sprint(of(l))
	}
	return strings.Join(texts, "\n")
}

// unlockWithin bounds how long the end of this process waits for the store.
const unlockWithin = 2 * time.Second

// within runs something that asks the store at the end, and returns its error, or that it did not end in time: in all,
// that is no longer than unlockWithin.
func (a *app) within(f func() error) error {
	if a.endBy.IsZero() {
		a.endBy = time.Now().Add(unlockWithin)
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Until(a.endBy)):
		return fmt.Errorf("%w: no answer within %v", locker.ErrUnavailable, unlockWithin)
	}
}

// unlock unlocks what the command has worked under. A store that cannot be told is no failure of the command. It
// returns an error if the lock was lost while the command was at work.
func (r *runner) unlock(leases locker.Leases) error {
	err := r.within(leases.Unlock)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, locker.ErrLost):
		return err
	}
	r.tellUnlock(err)
	return nil
}

func (r *runner) tellUnlock(err error) {
	r.say(slog.LevelWarn, fmt.Sprintf("the store could not be told of the end, the lock is free after %v: %s", r.ttl,
		reasonOf(err)))
}

// closeStore ends the connections. What is still locked then is unlocked, if the store answers.
func (a *app) closeStore(c *locker.Client) {
	if err := a.within(c.Close); err != nil {
		a.say(slog.LevelDebug, "closing the store: "+hidden(err))
	}
}
