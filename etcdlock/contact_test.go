package etcdlock_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/strangers"
)

// TestContactFails has servers with which no lock can be had. Open, Lock and TryLock say why, and Lead gives up where
// that will not pass.
func TestContactFails(t *testing.T) {
	t.Parallel()
	cluster, root := withPasswords(t)
	root.addRole("other", "other/")
	root.addUser("other", "other")
	etcd := cluster.Member(0).Addr()
	for name, c := range map[string]struct {
		addr, user, password string
		class, want          error
		says                 string
	}{
		"refused":             {strangers.Nobody(t), "", "", locker.ErrUnavailable, etcdlock.ErrUnreachable, "refused"},
		"refused, with login": {strangers.Nobody(t), "other", secret, locker.ErrUnavailable, etcdlock.ErrUnreachable, "refused"},
		"Redis":               {strangers.Redis(t), "", "", locker.ErrUnfit, locker.ErrUnfit, "Redis"},
		"Redis, with login":   {strangers.Redis(t), "other", secret, locker.ErrUnfit, locker.ErrUnfit, "Redis"},
		"wrong password":      {etcd, "other", "not-" + secret, locker.ErrDenied, etcdlock.ErrAuth, "password"},
		"no password":         {etcd, "", "", locker.ErrDenied, etcdlock.ErrAuth, "password"},
		"no permission":       {etcd, "other", secret, locker.ErrDenied, etcdlock.ErrPermission, "readwrite"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := "etcd://"
			if c.user != "" {
				url += c.user + ":" + c.password + "@"
			}
			start := time.Now()
			l, err := etcdlock.Open(t.Context(), url+c.addr)
			t.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), err)
			// It takes a millisecond. The bound is what the machine may need when it is busy, and less than a request
			// may take.
			if took := time.Since(start); errors.Is(c.want, etcdlock.ErrUnreachable) && took > 5*time.Second/2 {
				t.Errorf("a refusal took %v", took)
			}
			if err == nil {
				_ = l.Close()
			}
			if !errors.Is(err, c.class) {
				t.Errorf("%v; want %v", err, c.class)
			}
			checkError(t, err, "open", "", c.want, c.says)

			client, err := clientv3.New(clientv3.Config{
				Endpoints: []string{c.addr}, Username: c.user, Password: c.password, DialTimeout: time.Second,
				Logger: zap.NewNop(),
			})
			if err != nil {
				return // it has tried to log in
			}
			t.Cleanup(func() { _ = client.Close() })
			failures.CheckAcquires(t, with(t, client), unique("key"), c.want, c.says)
			if errors.Is(c.class, locker.ErrUnavailable) {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = locker.Lead(ctx, with(t, client), unique("key"), func(context.Context, *locker.Lease) error {
				t.Error("elected")
				return nil
			})
			if !errors.Is(err, c.class) || ctx.Err() != nil {
				t.Errorf("Lead: %v; want %v, and at once", err, c.class)
			}
		})
	}
}

// TestOpenEnds has a ctx end while Open waits for a server that says nothing.
func TestOpenEnds(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, user := range []string{"", "user:" + secret + "@"} {
		cause := errors.New("no more patience")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
		defer cancel()
		l, err := etcdlock.Open(ctx, "etcd://"+user+listener.Addr().String())
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cause) {
			t.Errorf("Open with user %q: %v; want the end of ctx and its cause", user, err)
		}
	}
}

// TestUnusable has what a constructor is given keep it from working.
func TestUnusable(t *testing.T) {
	t.Parallel()
	unconnected := clientv3.NewCtxClient(t.Context()) // as that of an embedded etcd
	slow := etcdlock.Config{RequestTimeout: -time.Second}
	for name, l := range map[string]*locker.Client{
		"nil":                etcdlock.New(nil),
		"without connection": etcdlock.New(unconnected),
		"negative timeout":   slow.New(connect(t, strangers.Nobody(t))),
	} {
		failures.CheckAcquires(t, l, "key", locker.ErrInvalidOption)
		if err := l.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
	if _, err := slow.Open(t.Context(), "etcd://"+strangers.Nobody(t)); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("Open with a negative timeout: %v", err)
	}
	if _, err := etcdlock.Open(t.Context(), "etcd://"+strangers.Nobody(t), locker.TTL(-1)); !errors.Is(err,
		locker.ErrInvalidOption) {
		t.Errorf("Open with a negative TTL: %v", err)
	}
}

// TestRequestTimeout has members take longer to answer than a request may take without the setting.
func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	const ttl, delay = 2 * time.Second, time.Second
	slow := func(kv clientv3.KV) clientv3.KV {
		return hookedKV{KV: kv, hook: func(r request) (*clientv3.TxnResponse, error) {
			select {
			case <-time.After(delay):
				return pass(r)
			case <-r.ctx.Done():
				return nil, r.ctx.Err()
			}
		}}
	}
	client := connect(t, etcdtest.Address(t))
	_, err := lock(etcdlock.NewOn(client, slow, locker.TTL(ttl)), unique("key"))
	if !errors.Is(err, etcdlock.ErrNoAnswer) {
		t.Errorf("Lock: %v; want ErrNoAnswer", err)
	}
	patient := etcdlock.NewOnWith(etcdlock.Config{RequestTimeout: patience}, client, slow, locker.TTL(ttl))
	mustUnlock(t, mustLock(t, patient, unique("key"), locker.TTL(time.Minute)))
}
