package locker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// Who has the lock, and who waits?
func ExampleClient_Inspect() {
	ctx := context.Background()
	l := memlock.New(locker.Holder("host-1"))
	defer l.Close()
	lease, _ := l.Lock(ctx, "report")
	defer lease.Unlock()

	info, err := l.Inspect(ctx, "report")
	if err != nil {
		fmt.Println(err)
	}
	for _, h := range info.Holders {
		fmt.Println(h.Name, h.Mode, h.Token == lease.Token())
	}
	fmt.Println(info.Waiting, "wait")
	// Output:
	// host-1 exclusive true
	// 0 wait
}

func ExampleClient_List() {
	ctx := context.Background()
	l := memlock.New()
	defer l.Close()
	order, _ := l.Lock(ctx, "orders/42")
	defer order.Unlock()
	other, _ := l.Lock(ctx, "reports/1")
	defer other.Unlock()

	for info, err := range l.List(ctx, "orders/") {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(info.Key)
	}
	// Output: orders/42
}

// The leader is asked to let go. Its work is told by its context, and the lock is free when it has returned.
func ExampleClient_Revoke() {
	ctx := context.Background()
	l := memlock.New()
	operator := l.Peer(locker.Holder("ops"))
	at := make(chan struct{})
	go func() {
		<-at
		if err := operator.Revoke(ctx, "queue", "maintenance"); err != nil {
			fmt.Println(err)
		}
	}()
	err := locker.Do(ctx, l, "queue", func(ctx context.Context) error {
		close(at)
		<-ctx.Done()
		var r *locker.Revocation
		fmt.Println(errors.As(context.Cause(ctx), &r), r.By, r.Reason)
		return nil
	})
	fmt.Println(errors.Is(err, locker.ErrRevoked))
	// Output:
	// true ops maintenance
	// true
}

// A job of a second is started by two machines whose clocks differ by a few: the slower one finds it locked.
func ExampleMinHold() {
	ctx := context.Background()
	l := memlock.New()
	defer l.Close()
	slower := l.Peer()
	defer slower.Close()
	job := func(context.Context) error { fmt.Println("the job"); return nil }

	lease, err := l.TryLock(ctx, "nightly", locker.MinHold(time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = job(ctx)
	_ = lease.Unlock()

	_, err = slower.TryLock(ctx, "nightly", locker.MinHold(time.Minute))
	fmt.Println(errors.Is(err, locker.ErrLocked))
	// Output:
	// the job
	// true
}

// One process locks, and another one goes on with the work, under the same fencing token.
func ExampleLease_Detach() {
	ctx := context.Background()
	front := memlock.New()
	defer front.Close()
	worker := front.Peer()
	defer worker.Close()

	lease, _ := front.Lock(ctx, "orders/42")
	ticket, err := lease.Detach() // to be sent with the job
	if err != nil {
		fmt.Println(err)
		return
	}

	adopted, err := locker.Adopt(ctx, worker, ticket)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer adopted.Unlock()
	fmt.Println(adopted.Key(), adopted.Token() == lease.Token())
	_, err = locker.Adopt(ctx, worker, ticket)
	fmt.Println(errors.Is(err, locker.ErrNotHeld))
	// Output:
	// orders/42 true
	// true
}

// The handler of a liveness probe: only the end of the process helps if work goes on without its lock.
func ExampleClient_Healthy() {
	l := memlock.New()
	defer l.Close()
	err := locker.Do(context.Background(), l, "k", func(ctx context.Context) error {
		_ = l.Break(ctx, "k") // what an operator does
		fmt.Println(l.Healthy(time.Minute))
		fmt.Println(errors.Is(l.Healthy(0), locker.ErrLost)) // without any grace
		return nil
	})
	fmt.Println(errors.Is(err, locker.ErrBroken), l.Healthy(0))
	// Output:
	// <nil>
	// true
	// true <nil>
}
