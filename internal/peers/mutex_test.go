package peers

import (
	"context"
	"errors"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

func newEtcd(t *testing.T) *clientv3.Client {
	client := must(clientv3.New(clientv3.Config{Endpoints: []string{etcdtest.Address(t)}, DialTimeout: patience}))(t)
	t.Cleanup(func() { client.Close() })
	return client
}

// onEtcd opens one of ours.
func onEtcd(t *testing.T, client *clientv3.Client, opts ...locker.Option) locker.Locker {
	l := etcdlock.New(client, opts...)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func newSession(t *testing.T, client *clientv3.Client) *concurrency.Session {
	session := must(concurrency.NewSession(client))(t)
	t.Cleanup(func() { session.Close() })
	return session
}

// TestMutexAndOurs: they do not exclude one another, with our prefix or without any, as the page says.
func TestMutexAndOurs(t *testing.T) {
	t.Parallel()
	client := newEtcd(t)
	for _, prefix := range []string{etcdlock.DefaultPrefix, ""} {
		mutex := concurrency.NewMutex(newSession(t, client), prefix+t.Name())
		if err := mutex.TryLock(t.Context()); err != nil {
			t.Fatal(err)
		}
		lease := must(onEtcd(t, client, locker.Prefix(prefix)).TryLock(t.Context(), t.Name()))(t)
		if err := errors.Join(lease.Unlock(), mutex.Unlock(t.Context())); err != nil {
			t.Error(err)
		}
		// The other way round
		lease = must(onEtcd(t, client, locker.Prefix(prefix)).TryLock(t.Context(), t.Name()))(t)
		if err := errors.Join(mutex.TryLock(t.Context()), mutex.Unlock(t.Context()), lease.Unlock()); err != nil {
			t.Error(err)
		}
	}
}

// TestMutexOfPrefix: a Mutex is locked by every key below its name, so one whose name is the beginning of ours waits
// for them.
func TestMutexOfPrefix(t *testing.T) {
	t.Parallel()
	client := newEtcd(t)
	lease := must(onEtcd(t, client, locker.Prefix(t.Name()+"/")).TryLock(t.Context(), "orders/42"))(t)
	for _, name := range []string{t.Name(), t.Name() + "/orders"} {
		err := concurrency.NewMutex(newSession(t, client), name).TryLock(t.Context())
		if !errors.Is(err, concurrency.ErrLocked) {
			t.Errorf("%s: if this is so no longer, the page has to be changed: %v", name, err)
		}
	}
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// TestMutexOfOneSession: two of one session do not exclude one another, and one unlocks the other.
func TestMutexOfOneSession(t *testing.T) {
	t.Parallel()
	client := newEtcd(t)
	session, other := newSession(t, client), newSession(t, client)
	mutexes := []*concurrency.Mutex{concurrency.NewMutex(session, t.Name()), concurrency.NewMutex(session, t.Name())}
	for _, mutex := range mutexes {
		if err := mutex.TryLock(t.Context()); err != nil {
			t.Fatalf("if this is so no longer, the page has to be changed: %v", err)
		}
	}
	if err := mutexes[1].Unlock(t.Context()); err != nil {
		t.Error(err)
	}
	if err := concurrency.NewMutex(other, t.Name()).TryLock(t.Context()); err != nil {
		t.Errorf("if this is so no longer, the page has to be changed: %v", err)
	}
}

// TestMutexPage: the way over takes both locks for a time.
func TestMutexPage(t *testing.T) {
	t.Parallel()
	client := newEtcd(t) // where no other test has the keys of the page
	ours := openAfterMutex(client)
	session := newSession(t, client)
	old := func(ctx context.Context, w work) error { return beforeMutex(ctx, client, w) }
	both := func(ctx context.Context, w work) error { return bothMutex(ctx, session, ours, w) }
	testTogether(t, map[string]func(context.Context, work) error{"old": old, "another old": old, "both": both})
	testTogether(t, map[string]func(context.Context, work) error{
		"both":        both,
		"new":         func(ctx context.Context, w work) error { return after(ctx, ours, w) },
		"another new": func(ctx context.Context, w work) error { return after(ctx, ours, w) },
	})
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
}
