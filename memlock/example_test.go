package memlock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

func Example() {
	ctx := context.Background()
	l := memlock.New()
	defer l.Close()

	lease, err := l.Lock(ctx, "orders/42")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = l.TryLock(ctx, "orders/42")
	fmt.Println(errors.Is(err, locker.ErrLocked))

	if err := lease.Unlock(); err != nil {
		fmt.Println(err)
	}
	next, _ := l.TryLock(ctx, "orders/42")
	defer next.Unlock()
	fmt.Println(next.Token() > lease.Token())
	// Output:
	// true
	// true
}

// What does the program do when it loses the lock half-way? Break takes it away.
func ExampleLocker_Break() {
	l := memlock.New()
	defer l.Close()
	err := locker.Do(context.Background(), l, "job", func(ctx context.Context) error {
		fmt.Println("half of the job is done")
		_ = l.Break(context.Background(), "job")
		<-ctx.Done()
		return fmt.Errorf("stopped half-way: %w", ctx.Err())
	})
	fmt.Println(errors.Is(err, locker.ErrLost))
	// Output:
	// half of the job is done
	// true
}

// Two Lockers over the same memory stand for two processes.
func ExampleLocker_Peer() {
	ctx := context.Background()
	a := memlock.New(locker.Holder("a"))
	b := a.Peer(locker.Holder("b"))
	lease, _ := a.Lock(ctx, "k")
	_, err := b.TryLock(ctx, "k")
	fmt.Println(err)
	_ = lease.Unlock()
	_, err = b.TryLock(ctx, "k")
	fmt.Println(err)
	// Output:
	// locker: trylock "k" (memory): locked [held by a]
	// <nil>
}
