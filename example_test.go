package locker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

func Example() {
	ctx := context.Background()
	l := memlock.New() // redislock.New(rdb) in production
	defer l.Close()

	lease, err := l.Lock(ctx, "orders/42")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lease.Unlock()

	if _, err := l.TryLock(ctx, "orders/42"); errors.Is(err, locker.ErrLocked) {
		fmt.Println("somebody is at work on order 42")
	}
	// Output: somebody is at work on order 42
}

func ExampleDo() {
	l := memlock.New()
	defer l.Close()
	err := locker.Do(context.Background(), l, "nightly-report", func(ctx context.Context) error {
		// ctx ends if the lock is lost: pass it on to whatever takes time.
		fmt.Println("writing the report")
		return ctx.Err()
	}, locker.TTL(30*time.Second))
	fmt.Println(err)
	// Output:
	// writing the report
	// <nil>
}

// A transfer locks two accounts. Somebody who transfers the other way at the same time locks them in the same order.
func ExampleDoAll() {
	l := memlock.New()
	defer l.Close()
	accounts := []string{"account/7", "account/3"}
	err := locker.DoAll(context.Background(), l, accounts, func(ctx context.Context, leases locker.Leases) error {
		for _, lease := range leases { // as the keys were named; ctx ends if one of them is lost
			fmt.Println("may write", lease.Key())
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// may write account/7
	// may write account/3
	// <nil>
}

// Many read a cache, and one rebuilds it.
func ExampleShared() {
	l := memlock.New()
	defer l.Close()
	ctx := context.Background()
	one, _ := l.Lock(ctx, "cache", locker.Shared())
	two, _ := l.Lock(ctx, "cache", locker.Shared()) // beside the first
	_, err := l.TryLock(ctx, "cache")               // a writer
	fmt.Println(err)
	_, _ = one.Unlock(), two.Unlock()
	writer, err := l.TryLock(ctx, "cache")
	fmt.Println(writer.Mode() == locker.ModeExclusive, err)
	_ = writer.Unlock()
	// Output:
	// locker: trylock "cache" (memory): locked
	// true <nil>
}

// At most three crawl at the same time, each a part of its own.
func ExampleSlots() {
	l := memlock.New()
	defer l.Close()
	for range 3 {
		lease, err := l.TryLock(context.Background(), "crawler", locker.Slots(3))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer lease.Unlock()
		fmt.Println("crawls part", lease.Slot())
	}
	_, err := l.TryLock(context.Background(), "crawler", locker.Slots(3))
	fmt.Println(err)
	// Output:
	// crawls part 0
	// crawls part 1
	// crawls part 2
	// locker: trylock "crawler" (memory): locked
}

func ExampleTryLockAll() {
	l := memlock.New()
	defer l.Close()
	ctx := context.Background()
	lease, _ := l.Lock(ctx, "b")
	defer lease.Unlock()

	_, err := locker.TryLockAll(ctx, l, []string{"a", "b"})
	fmt.Println(err)
	_, err = l.TryLock(ctx, "a") // nothing is left of the attempt
	fmt.Println(err)
	// Output:
	// locker: trylock "b" (memory): locked
	// <nil>
}

// Where only the context is at hand, the lease is in it.
func ExampleFromContext() {
	l := memlock.New()
	defer l.Close()
	write := func(ctx context.Context, row string) {
		fmt.Println("UPDATE", row, "with a token:", locker.FromContext(ctx).Token() > 0)
	}
	_ = locker.Do(context.Background(), l, "orders/42", func(ctx context.Context) error {
		write(ctx, "orders/42")
		return nil
	})
	// Output: UPDATE orders/42 with a token: true
}

// Losses, failures and what is ridden out go to a logger; the rest too, at the level Debug.
func ExampleLog() {
	logger := slog.New(
		slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == "time" || a.Key == "pause" { // which are never the same
				return slog.Attr{}
			}
			return a
		}}),
	)
	ctx, stop := context.WithCancel(context.Background())
	l := memlock.New(locker.Log(logger), locker.Observe(&locker.Observer{Retry: func(locker.RetryInfo) { stop() }}))
	defer l.Close()
	l.Cut() // an outage of the store
	_ = locker.Lead(ctx, l, "queue", func(context.Context, *locker.Lease) error { return nil })
	// Output: level=WARN msg="lead rides out a failure" key=queue store=memory attempt=1 error="severed by Cut"
}

// How long do callers wait for locks, and how often do they fail?
func ExampleObserve() {
	l := memlock.New(locker.Observe(&locker.Observer{
		LockDone: func(_ context.Context, i locker.LockDoneInfo) {
			fmt.Println(i.Op, i.Key, "failed:", i.Err != nil, "waited for long:", i.Waited > time.Minute)
		},
	}))
	defer l.Close()
	_, _ = l.Lock(context.Background(), "orders/42")
	_, _ = l.TryLock(context.Background(), "orders/42")
	// Output:
	// lock orders/42 failed: false waited for long: false
	// trylock orders/42 failed: true waited for long: false
}

// A readiness probe.
func ExampleClient_Ping() {
	l := memlock.New()
	defer l.Close()
	ready := func(w http.ResponseWriter, r *http.Request) {
		if err := l.Ping(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
	probe := httptest.NewRecorder()
	ready(probe, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	fmt.Println(probe.Code)
	l.Cut() // an outage of the store
	probe = httptest.NewRecorder()
	ready(probe, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	fmt.Println(probe.Code)
	// Output:
	// 200
	// 503
}

// A fleet of workers elects one of them. When the leader leaves, the next one takes over at once.
func ExampleLead() {
	memory := memlock.New()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()

	jobs := make(chan int, 3)
	for job := range 3 {
		jobs <- job
	}
	done := make(chan struct{})
	for range 4 { // in production, each in a process of its own
		go func() {
			l := memory.Peer()
			defer l.Close()
			_ = locker.Lead(ctx, l, "queue", func(ctx context.Context, lease *locker.Lease) error {
				select {
				case job := <-jobs:
					fmt.Println("job", job)
					return nil // steps down; return only when ctx ends to stay the leader
				default:
					close(done)
				}
				<-ctx.Done()
				return ctx.Err()
			})
		}()
	}
	<-done
	// Output:
	// job 0
	// job 1
	// job 2
}

// On shutdown, the job in hand may take a moment to finish: it runs on a context that ends with the lease, and not
// at once with Lead's.
func ExampleLead_grace() {
	l := memlock.New()
	defer l.Close()
	shutdown, stop := context.WithCancel(context.Background())
	err := locker.Lead(shutdown, l, "queue", func(ctx context.Context, lease *locker.Lease) error {
		inHand, cancel := lease.Context(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(5*time.Second, cancel) })()
		for job := 1; ctx.Err() == nil; job++ { // no new job once ctx has ended
			if job == 3 {
				stop()
			}
			fmt.Println("job", job, "done:", inHand.Err() == nil)
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// job 1 done: true
	// job 2 done: true
	// job 3 done: true
	// context canceled
}

// Who is refused can be told who holds the key.
func ExampleError() {
	memory := memlock.New(locker.Holder("worker-7"))
	lease, _ := memory.TryLock(context.Background(), "orders/42")
	defer lease.Unlock()

	_, err := memory.Peer().TryLock(context.Background(), "orders/42")
	var refused *locker.Error
	if errors.As(err, &refused) && errors.Is(err, locker.ErrLocked) {
		fmt.Println(refused.Key, "is being handled by", refused.Holder)
	}
	// Output: orders/42 is being handled by worker-7
}

// A lease that nobody renews and nobody unlocks: of all processes that try within a minute, one sends the mail.
func ExampleNoRenew() {
	memory := memlock.New()
	for range 3 { // in production, each in a process of its own
		_, err := memory.Peer().TryLock(context.Background(), "reminder", locker.TTL(time.Minute), locker.NoRenew())
		fmt.Println(err == nil)
	}
	// Output:
	// true
	// false
	// false
}

// account is a resource that defends itself: it remembers the greatest token it has seen.
type account struct {
	balance int
	fence   uint64
}

var errStale = errors.New("stale token: another holder has been here")

func (a *account) set(balance int, token uint64) error {
	if token < a.fence {
		return errStale
	}
	a.balance, a.fence = balance, token
	return nil
}

// A holder that was paused for longer than its TTL does not know that it has lost the lock. Its token gives it away.
func ExampleLease_Token() {
	ctx := context.Background()
	memory := memlock.New()
	var acct account

	paused, _ := memory.Lock(ctx, "account")
	_ = memory.Break(context.Background(), "account") // its lease runs out while it is paused
	next, _ := memory.Peer().Lock(ctx, "account")

	fmt.Println(acct.set(200, next.Token()))
	fmt.Println(acct.set(100, paused.Token()))
	fmt.Println(acct.balance)
	// Output:
	// <nil>
	// stale token: another holder has been here
	// 200
}

func ExampleLease_Done() {
	l := memlock.New()
	defer l.Close()
	lease, _ := l.Lock(context.Background(), "k")
	_ = l.Break(context.Background(), "k") // what an operator, or a lost connection, does
	select {
	case <-lease.Done():
		fmt.Println(errors.Is(lease.Err(), locker.ErrLost))
	case <-time.After(time.Second): // the work
	}
	// Output: true
}

func ExampleLease_Context() {
	l := memlock.New()
	defer l.Close()
	lease, _ := l.Lock(context.Background(), "k")
	ctx, cancel := lease.Context(context.Background())
	defer cancel()
	_ = lease.Unlock()
	<-ctx.Done()
	fmt.Println(errors.Is(context.Cause(ctx), locker.ErrUnlocked))
	// Output: true
}
