// Command nightly adds up the orders of a day, once, whichever of its instances cron starts first. The file orders/DAY
// has an amount in cents on each line; the total goes to a file in the directory totals, which all instances share.
// Which store has the lock is decided by one URL in the environment, memory:// without it, which is for a machine by
// itself and for tests:
//
//	LOCKER_URL=redis://localhost:6379/0 go run ./examples/nightly 2026-11-21
//
// When it loses the lock half-way it stops, writes nothing, and fails: another instance may be at work by then. If it
// does not notice in time, because it is paused just before it writes, its total is that of a smaller fencing token,
// and who reads totals takes the one with the greatest.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/lockerkit/locker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Getenv("LOCKER_URL"), os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nightly:", err)
		os.Exit(1)
	}
}

// run is the program, in the current directory.
func run(ctx context.Context, url string, args []string, out io.Writer) (err error) {
	if len(args) != 1 {
		return errors.New("usage: nightly DAY")
	}
	host, _ := os.Hostname()
	l, err := open(ctx, cmp.Or(url, "memory://"), locker.Holder(host), locker.Log(slog.Default()))
	if err != nil {
		return fmt.Errorf("LOCKER_URL: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	day := args[0]
	total, err := addUp(ctx, l, os.DirFS("orders"), totals("totals"), day)
	if errors.Is(err, locker.ErrLocked) {
		fmt.Fprintf(out, "%v: another instance is at it\n", err)
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d cents\n", day, total)
	return nil
}
