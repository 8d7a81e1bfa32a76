package etcdtest

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// put writes a value. It fails while there is no leader, and the client does
// not write again by itself.
func put(t *testing.T, client *clientv3.Client, value string) {
	t.Helper()
	locktest.Eventually(t, "a write", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Put(ctx, "key", value)
		return err == nil
	})
}

// expect reads the value.
func expect(t *testing.T, client *clientv3.Client, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), locktest.Patience)
	defer cancel()
	resp, err := client.Get(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
		t.Fatalf("got %v, want %q", resp.Kvs, want)
	}
}

// expectNoAnswer reads in vain.
func expectNoAnswer(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if resp, err := client.Get(ctx, "key"); err == nil {
		t.Fatalf("got %v", resp.Kvs)
	}
}

// A member that was killed is gone, and comes back with its data; one that is paused does not answer.
func TestMember(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	client := c.Client(t)
	put(t, client, "1")
	m := c.Member(0)
	conn := selftest.Connect(t, m.Addr())
	m.Kill()
	selftest.ExpectEnd(t, conn)
	selftest.ExpectRefused(t, m.Addr())
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "1")
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	expectNoAnswer(t, client)
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "1")
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	selftest.ExpectRefused(t, m.Addr())
}

// A cluster gets another leader when the old one is away, and gets nothing done without a majority.
func TestLeaderAndMajority(t *testing.T) {
	t.Parallel()
	c := New(t, Options{Members: 3})
	for name, end := range map[string]func(m *Member) (back func() error, err error){
		"kill":  func(m *Member) (func() error, error) { m.Kill(); return m.Restart, nil },
		"pause": func(m *Member) (func() error, error) { return m.Resume, m.Pause() },
	} {
		leader := c.Leader(t)
		back, err := end(c.Member(leader))
		if err != nil {
			t.Fatal(err)
		}
		next := c.Leader(t)
		if next == leader {
			t.Fatalf("%s: member %d still leads", name, leader)
		}
		put(t, c.Client(t, c.Member(next).Addr()), name)
		if err := back(); err != nil {
			t.Fatal(err)
		}
		c.AwaitHealthy(t)
		expect(t, c.Client(t, c.Member(leader).Addr()), name)
	}
	survivor := c.Client(t, c.Member(0).Addr())
	put(t, survivor, "1")
	c.Member(1).Kill()
	c.Member(2).Kill()
	expectNoAnswer(t, survivor)
	for _, wait := range []func(tb testing.TB){c.AwaitHealthy, func(tb testing.TB) { c.Leader(tb) }} {
		f := selftest.RunFake(wait)
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, "only 1 of 3 members run") {
			t.Errorf("outcome %q", f.Outcome)
		}
	}
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, survivor, "1")
}

// Who has no certificate is not served.
func TestTLS(t *testing.T) {
	t.Parallel()
	c := New(t, Options{TLS: true})
	put(t, c.Client(t), "1")
	conf := c.TLS()
	conf.Certificates = nil
	stranger, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), TLS: conf, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	expectNoAnswer(t, stranger)
}
