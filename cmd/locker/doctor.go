package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/cmd/locker/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Check the store: what is wrong, why it matters, what to do",
		Long: `Check the store for what makes locks impossible or unreliable: what was found,
why it matters, and what to do. It changes nothing; it locks a key for a moment.
Exit codes: 1 if a check has failed, 0 if there are no more than warnings.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.doctor(ttl) },
	}
	c.Flags().DurationVar(&ttl, "ttl", locker.DefaultTTL, "the `TIME` that locks are to last, to compare with")
	return c
}

func (a *app) doctor(ttl time.Duration) error {
	rawURL, k, err := a.target()
	if err != nil {
		return err
	}
	logging.Disable() // what go-redis would say is in the results
	ctx := catchSignals().ctx
	results, err := examine(ctx, k, doctor.Options{URL: rawURL, Prefix: a.prefix, TTL: ttl})
	if ctx.Err() != nil { // a signal has ended it
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	counts := make(map[doctor.Status]int)
	for _, r := range results {
		r.Found = hidden(errors.New(r.Found)) // what servers and clients say is in it
		counts[r.Status]++
		if err := a.printResult(r); err != nil {
			return err
		}
	}
	if !a.json && !a.quiet {
		_, err = fmt.Fprintf(a.stdout, "\n%d checks: ok %d, warn %d, FAIL %d, unknown %d\n", len(results),
			counts[doctor.OK], counts[doctor.Warn], counts[doctor.Fail], counts[doctor.Unknown])
	}
	if err == nil && counts[doctor.Fail] > 0 {
		err = &exit{code: exitProblem}
	}
	return err
}

func examine(ctx context.Context, k kind, o doctor.Options) ([]doctor.Result, error) {
	switch k {
	case redisServer:
		return doctor.Redis(ctx, o)
	case redlocks:
		return doctor.Redlock(ctx, o)
	case postgres:
		return doctor.Postgres(ctx, o)
	case etcd:
		return doctor.Etcd(ctx, o)
	}
	return []doctor.Result{{
		Check: "lock", Status: doctor.Warn, Found: "the store is the memory of this process",
		Why: "Its locks exclude nobody else.", Do: "Use a server, unless this is a test.",
	}}, nil
}

// printResult prints what a check has found. What people need not know, they are told if they want it.
func (a *app) printResult(r doctor.Result) error {
	if a.json {
		return a.print(r)
	}
	if a.quiet && r.Status != doctor.Fail {
		return nil
	}
	status, name := string(r.Status), r.Check
	if r.Status == doctor.Fail {
		status = strings.ToUpper(status)
	}
	if r.Server != "" {
		name += " (" + r.Server + ")"
	}
	text := paragraph(fmt.Sprintf("%-8s", status), name+": "+r.Found)
	if r.Status != doctor.OK || a.verbose {
		text += paragraph("        why: ", r.Why)
		if r.Do != "" {
			text += paragraph("        do:  ", r.Do)
		}
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// paragraph is a text that fits a screen, with something before it. No word is broken, as people copy commands.
func paragraph(before, text string) string {
	const width = 80
	indent := strings.Repeat(" ", len(before))
	var all strings.Builder
	line := before
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
			line += word
		case len(line)+1+len(word) > width:
			all.WriteString(line + "\n")
			line = indent + word
		default:
			line += " " + word
		}
	}
	return all.String() + line + "\n"
}
