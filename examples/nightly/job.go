package main

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"strconv"

	"github.com/lockerkit/locker"
)

// addUp returns the total of a day, which it adds up and stores unless that has been done. It returns ErrLocked if
// another instance is at it. It returns ErrLost if the lock was lost; nothing is stored then, or, if that happened at
// the last moment, what has a smaller token than the total of the instance that got the lock.
func addUp(ctx context.Context, l locker.Locker, orders fs.FS, done totals, day string) (total int, err error) {
	lease, err := l.TryLock(ctx, "nightly/"+day)
	if err != nil {
		return 0, err
	}
	defer func() {
		if failed := lease.Unlock(); !errors.Is(err, locker.ErrLost) { // else that has been said
			err = errors.Join(err, failed)
		}
	}()
	ctx, cancel := lease.Context(ctx) // ends when the lock is lost
	defer cancel()

	// Only who has the lock can tell: another instance may just have been at it.
	if total, err := done.read(day); !errors.Is(err, fs.ErrNotExist) {
		return total, err
	}
	if total, err = sum(ctx, orders, day); err != nil {
		return 0, err
	}
	return total, done.write(day, lease.Token(), total)
}

// sum adds up the orders of a day until ctx ends.
func sum(ctx context.Context, orders fs.FS, day string) (total int, err error) {
	f, err := orders.Open(day)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	lines := bufio.NewScanner(f)
	for ctx.Err() == nil && lines.Scan() {
		cents, err := strconv.Atoi(lines.Text())
		if err != nil {
			return 0, err
		}
		total += cents
	}
	return total, errors.Join(context.Cause(ctx), lines.Err())
}
