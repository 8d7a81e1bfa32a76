package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/cmd/locker/internal/child"
)

// runner is the command run.
type runner struct {
	*app
	lockOptions
	wait       time.Duration
	try        bool
	lockedCode int
	once       bool // there will be no other command

	keys    []string
	path    string // of the program
	command []string
}

func (a *app) runCommand() *cobra.Command {
	r := &runner{app: a}
	c := &cobra.Command{
		Use:   "run [OPTIONS] KEY [KEY...] -- COMMAND [ARGUMENT...]",
		Short: "Run a command while holding a lock",
		Long: `Run COMMAND while holding the lock of KEY. If the lock is lost, COMMAND is ended
before anybody else can get it. COMMAND finds $LOCKER_KEY and $LOCKER_TOKEN.
` + exitCodes + `,
69 store unavailable, 70 lock lost, 75 somebody else has it (see -E).`,
		Args: func(cmd *cobra.Command, args []string) error { return r.take(cmd, args) },
		RunE: func(*cobra.Command, []string) error { return r.run() },
	}
	c.Flags().DurationVar(&r.wait, "wait", 0, "wait for the lock for `TIME` at most")
	c.Flags().BoolVarP(&r.try, "no-wait", "n", false, "do not wait: exit at once if somebody else has it")
	c.Flags().IntVarP(&r.lockedCode, "locked-code", "E", exitLocked, "exit `CODE` if somebody else has it")
	r.bind(c)
	return c
}

// take takes the keys and the command from the arguments.
func (r *runner) take(cmd *cobra.Command, args []string) (err error) {
	dash := cmd.ArgsLenAtDash()
	switch {
	case dash < 0:
		return errors.New(`"--" is missing before the command`)
	case dash == 0:
		return errors.New("a key is missing")
	case dash == len(args):
		return errors.New("the command is missing")
	}
	r.keys, r.command = args[:dash], args[dash:]
	return nil
}

// find looks for the program before anything is locked for it.
func (r *runner) find() (err error) {
	if r.path, err = child.Find(r.command[0]); err != nil {
		return &exit{code: child.CodeOf(err), err: err}
	}
	return nil
}

func (r *runner) run() error {
	opts, err := r.call()
	if err != nil {
		return err
	}
	if r.wait < 0 || r.lockedCode < 0 || r.lockedCode > 255 {
		return usage("-wait must not be negative, and -E is from 0 to 255")
	}
	if r.try && r.wait > 0 {
		return usage("-wait and -n exclude each other")
	}
	if err := r.find(); err != nil {
		return err
	}
	signals := catchSignals()
	c, err := r.open(signals.ctx, r.storeOptions()...)
	if err != nil {
		return ofWait(signals.ctx, err)
	}
	defer r.closeStore(c)
	leases, err := r.lock(signals.ctx, c, r.keys, r.wait, r.try, opts)
	switch err = ofWait(signals.ctx, err); {
	case err == nil:
	case codeOf(err) == exitLocked:
		r.tellLocked(err)
		return &exit{code: r.lockedCode}
	default:
		return err
	}
	r.once = true
	status, ended := r.work(signals, leases)
	if err := r.unlock(leases); err != nil && ended == nil && r.onLoss != "warn" {
		message := "the lock was lost before the command had ended: " + reasonOf(err)
		r.say(slog.LevelError, message, slog.Int("exit", exitLost))
		return &exit{code: exitLost}
	}
	if ended != nil {
		return ended
	}
	return &exit{code: status.ExitCode()}
}

// tellLocked tells that somebody else has the lock. That is no error for who has said so.
func (r *runner) tellLocked(err error) {
	level, message := slog.LevelError, hidden(err)
	if r.lockedCode == 0 {
		level = slog.LevelDebug // cron mails all that is said
	}
	var e *locker.Error
	if errors.As(err, &e) {
		holder := cmp.Or(e.Holder, "somebody else")
		message = fmt.Sprintf("%q is locked, by %s", e.Key, holder)
		if r.wait > 0 {
			message = fmt.Sprintf("%q is still locked after %v, by %s", e.Key, r.wait, holder)
		}
	}
	r.say(level, message, slog.Int("exit", r.lockedCode))
}

// ofWait returns the signal that has ended a wait rather than what the library says of that.
func ofWait(ctx context.Context, err error) error {
	var s *caught
	if err != nil && errors.As(context.Cause(ctx), &s) {
		return s
	}
	return err
}

// lostError says that a command was ended because its lock was lost, which people have been told.
type lostError struct{ error }

func (e *lostError) Unwrap() []error { return []error{&exit{code: exitLost}, e.error} }

// work runs the command under leases, until nothing of it is left. The error says that it was not run, or was ended
// because the lock was lost.
func (r *runner) work(signals *signals, leases locker.Leases) (child.Status, error) {
	c, err := signals.start(func() (*child.Child, error) {
		if err := leases.Err(); err != nil { // this process was stopped in the meantime
			return nil, &lostError{err}
		}
		return child.Start(r.path, r.command, environment(r.keys, leases, r.holder))
	})
	var s *caught
	var lost *lostError
	switch {
	case errors.As(err, &s): // just when the lock was granted
		return child.Status{}, s
	case errors.As(err, &lost):
		r.say(slog.LevelError, "the command was not started: "+reasonOf(lost), slog.Int("exit", exitLost))
		return child.Status{}, lost
	case err != nil:
		return child.Status{}, &exit{code: child.CodeOf(err), err: err}
	}
	if r.once {
		child.LetGo()
	}
	for i, l := range leases {
		r.say(slog.LevelDebug, "has the lock", slog.String("key", r.keys[i]), slog.Uint64("token", l.Token()))
	}
	g := &guard{app: r.app, opts: r.guardOptions, ttl: r.ttl, leases: leases, child: c}
	if err := g.wait(); err != nil {
		r.say(slog.LevelError, "the command was ended", slog.Int("exit", exitLost), slog.String("error", reasonOf(err)))
		return c.Status(), &lostError{err}
	}
	return c.Status(), nil
}
