package locktest

import (
	"testing"
	"time"
)

// Eventually waits until cond is true, for as long as a test can bear.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	EventuallyWithin(t, Patience, what, cond)
}

// EventuallyWithin waits until cond is true.
func EventuallyWithin(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	if !Within(limit, cond) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// Within waits until cond is true, and reports whether it was in time.
func Within(limit time.Duration, cond func() bool) bool {
	for start := time.Now(); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Since(start) > limit {
			return false
		}
	}
	return true
}

// Receive returns what comes from a channel.
func Receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("nothing was received within %v", Patience)
		panic("unreachable")
	}
}

// Pending is what a function is going to return. Done is closed after that, or without it if the function ended the
// test.
type Pending[T any] struct{ Done <-chan T }

// Started runs f beside the test.
func Started[T any](f func() T) Pending[T] {
	done := make(chan T, 1)
	go func() {
		defer close(done)
		done <- f()
	}()
	return Pending[T]{done}
}

// Get waits for the result, and ends the test if f has.
func (p Pending[T]) Get(t testing.TB) T {
	t.Helper()
	v, ok := <-p.Done
	if !ok {
		t.FailNow()
	}
	return v
}

// Within is Get with a limit.
func (p Pending[T]) Within(t testing.TB, limit time.Duration, what string) T {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v, ok := <-p.Done:
		if !ok {
			t.FailNow()
		}
		return v
	case <-timer.C:
		t.Fatalf("not within %v: %s", limit, what)
		panic("unreachable")
	}
}

// Tries calls what measures until it returns nil, three times at most: the machine may be busy with something else.
// If it never does, the test ends with the last error.
func Tries(t testing.TB, measure func() error) {
	t.Helper()
	var err error
	for range 3 {
		if err = measure(); err == nil {
			return
		}
	}
	t.Fatalf("%v; and so in each of two tries before", err)
}
