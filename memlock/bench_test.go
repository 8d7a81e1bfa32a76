package memlock_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/lockerkit/locker/memlock"
)

func BenchmarkLock(b *testing.B) {
	l := memlock.New()
	defer l.Close()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		lease, err := l.Lock(ctx, "k")
		if err != nil {
			b.Fatal(err)
		}
		if err := lease.Unlock(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLockParallel(b *testing.B) {
	l := memlock.New()
	defer l.Close()
	ctx := context.Background()
	var goroutines atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		key := strconv.FormatInt(goroutines.Add(1), 10)
		for pb.Next() {
			lease, err := l.Lock(ctx, key)
			if err != nil {
				b.Error(err)
				return
			}
			_ = lease.Unlock()
		}
	})
}
