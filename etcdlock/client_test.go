package etcdlock_test

import (
	"errors"
	"strings"
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
	key := unique("key") + strings.Repeat("x", 512)
	if lease, err := lock(l, key); err == nil {
		t.Errorf("the answer was no larger than allowed: %v", lease.Unlock())
	} else {
		t.Log(err)
	}
	root.awaitLine(key, 0)
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
	for op, call := range map[string]func() error{
		"lock":    func() error { _, err := lock(l, other); return err },
		"trylock": func() error { _, err := l.TryLock(t.Context(), other); return err },
		"unlock":  lease.Unlock,
		"close":   l.Close,
	} {
		start := time.Now()
		err := call()
		if took := time.Since(start); took > ttl/10 {
			t.Errorf("%s takes %v", op, took)
		}
		if op != "close" && (err == nil || !strings.Contains(err.Error(), "the client is closed") || errors.Is(err, locker.ErrClosed)) {
			t.Errorf("%s: %v", op, err)
		}
	}
}
