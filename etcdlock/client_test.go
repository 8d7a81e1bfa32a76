package etcdlock_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// TestAnswerTooLarge has a client that refuses answers larger than some. The request was carried out all the same.
func TestAnswerTooLarge(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	l := with(t, connectWith(t, clientv3.Config{Endpoints: []string{addr}, MaxCallRecvMsgSize: 512}), locker.TTL(3*time.Second))
	keeper := mustLock(t, l, unique("key")) // the etcd lease must not end with the claim
	name := unique("key")
	var refused atomic.Int32
	var all sync.WaitGroup
	for i := range 200 { // which share transactions, and so their answers
		all.Go(func() {
			if lease, err := lock(l, fmt.Sprint(name, "/", i)); err != nil {
				refused.Add(1)
			} else if err := lease.Unlock(); err != nil && !strings.Contains(err.Error(), "received message larger than max") {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if refused.Load() == 0 {
		t.Error("no answer was larger than allowed")
	}
	root.awaitLine(name, 0)
	mustUnlock(t, keeper)
}

// TestClientClosed has a program close its client before the Locker.
func TestClientClosed(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	client := connect(t, etcdtest.Address(t))
	l := with(t, client, locker.TTL(ttl))
	lease, other := mustLock(t, l, unique("key")), unique("key")
	_ = client.Close()
	for op, c := range map[string]struct {
		call  func() error
		bound time.Duration
	}{
		"lock":    {func() error { _, err := lock(l, other); return err }, ttl / 10},
		"trylock": {func() error { _, err := l.TryLock(t.Context(), other); return err }, ttl / 10},
		"unlock":  {lease.Unlock, ttl}, // as it is tried again as long as the lease is valid
	} {
		start := time.Now()
		err := c.call()
		if took := time.Since(start); took > c.bound {
			t.Errorf("%s takes %v", op, took)
		}
		if err == nil || !strings.Contains(err.Error(), "the client is closed") || errors.Is(err, locker.ErrClosed) {
			t.Errorf("%s: %v", op, err)
		}
	}
	start := time.Now()
	if _ = l.Close(); time.Since(start) > ttl/10 {
		t.Errorf("close takes %v", time.Since(start))
	}
}
