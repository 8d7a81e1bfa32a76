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
	l := with(t, connectWith(t, clientv3.Config{Endpoints: []string{addr}, MaxCallRecvMsgSize: 512}),
		locker.TTL(30*time.Second)) // so that nothing is given up for the time that it takes on a busy machine
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
	const ttl = 30 * time.Second // a tenth is far from what waiting in vain takes, and a busy machine
	client := connect(t, etcdtest.Address(t))
	l := with(t, client, locker.TTL(ttl))
	lease, other := mustLock(t, l, unique("key")), unique("key")
	_ = client.Close()
	for op, call := range map[string]func() error{
		"lock":    func() error { _, err := lock(l, other); return err },
		"trylock": func() error { _, err := l.TryLock(t.Context(), other); return err },
		"unlock":  lease.Unlock,
	} {
		start := time.Now()
		err := call()
		if took := time.Since(start); took > ttl/10 {
			t.Errorf("%s takes %v", op, took)
		}
		if !errors.Is(err, locker.ErrClosed) || !strings.Contains(err.Error(), "the client is closed") {
			t.Errorf("%s: %v; want ErrClosed", op, err)
		}
	}
	start := time.Now()
	if _ = l.Close(); time.Since(start) > ttl/10 {
		t.Errorf("close takes %v", time.Since(start))
	}
}
