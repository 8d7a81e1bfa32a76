package etcdtest

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// need ends the test if there is no server program.
func need(t *testing.T) {
	t.Helper()
	if _, err := Find(); err != nil {
		product.Unavailable(t, err)
	}
}

// newTimed returns a new cluster, and logs how long it took.
func newTimed(t *testing.T, opts Options) *Cluster {
	t.Helper()
	need(t)
	begin := time.Now()
	c := New(t, opts)
	t.Logf("%d members in %v", c.Size(), time.Since(begin))
	return c
}

// put writes a value. It fails while there is no leader, and the client does
// not write again by itself.
func put(t *testing.T, client *clientv3.Client, value string) {
	t.Helper()
	selftest.Await(t, "a write", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Put(ctx, "key", value)
		return err == nil
	})
}

// expect reads the value.
func expect(t *testing.T, client *clientv3.Client, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), selftest.Patience)
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

func TestCluster(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{Members: 3})
	client := c.Client(t)
	put(t, client, "1")
	endpoints := c.Endpoints()
	if c.Size() != 3 || len(endpoints) != 3 {
		t.Fatalf("size %d, endpoints %q", c.Size(), endpoints)
	}
	for i, endpoint := range endpoints {
		if host, _, err := net.SplitHostPort(endpoint); err != nil || host != "127.0.0.1" {
			t.Errorf("Endpoints()[%d] = %q", i, endpoint)
		}
		if m := c.Member(i); m.Addr() != endpoint || m.URL() != "http://"+endpoint {
			t.Errorf("member %d: Addr() = %q, URL() = %q", i, m.Addr(), m.URL())
		}
		expect(t, c.Client(t, endpoint), "1")
	}
	list, err := client.MemberList(t.Context())
	if err != nil || len(list.Members) != 3 {
		t.Errorf("the members are %v, %v", list, err)
	}
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{})
	client := c.Client(t)
	put(t, client, "1")
	m := c.Member(0)
	if leader := c.Leader(t); leader != 0 {
		t.Errorf("the leader of one is %d", leader)
	}
	for range 3 {
		conn := selftest.Connect(t, m.Addr())
		m.Kill()
		selftest.ExpectEnd(t, conn)
		selftest.ExpectRefused(t, m.Addr())
		m.Kill() // does nothing
		if err := m.Restart(); err != nil {
			t.Fatal(err)
		}
		expect(t, client, "1")
	}

	// Without Kill before.
	conn := selftest.Connect(t, m.Addr())
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn)
	expect(t, client, "1")
	c.AwaitHealthy(t)
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{})
	client := c.Client(t)
	put(t, client, "1")
	m := c.Member(0)
	for range 3 {
		for range 2 { // the second time does nothing
			if err := m.Pause(); err != nil {
				t.Fatal(err)
			}
		}
		expectNoAnswer(t, client)
		for range 2 {
			if err := m.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, client, "1")
	}
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	selftest.ExpectRefused(t, m.Addr())
	if err := m.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Pause after Kill = %v", err)
	}
	if err := m.Resume(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Resume after Kill = %v", err)
	}
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "1") // it is not paused any more
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	selftest.ExpectRefused(t, m.Addr())
}

// A cluster gets another leader, whatever becomes of the old one.
func TestNewLeader(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{Members: 3})
	for name, end := range map[string]func(m *Member) (back func() error){
		"kill": func(m *Member) func() error {
			m.Kill()
			return m.Restart
		},
		"stop": func(m *Member) func() error {
			if err := m.Stop(); err != nil {
				t.Error(err)
			}
			return m.Restart
		},
		"pause": func(m *Member) func() error {
			if err := m.Pause(); err != nil {
				t.Error(err)
			}
			return m.Resume
		},
	} {
		leader := c.Leader(t)
		begin := time.Now()
		back := end(c.Member(leader))
		next := c.Leader(t)
		t.Logf("%s: another leader after %v", name, time.Since(begin))
		if next == leader {
			t.Fatalf("%s: member %d still leads", name, leader)
		}
		client := c.Client(t, c.Member(next).Addr())
		put(t, client, name)
		begin = time.Now()
		if err := back(); err != nil {
			t.Fatal(err)
		}
		c.AwaitHealthy(t)
		t.Logf("%s: it is back after %v", name, time.Since(begin))
		expect(t, c.Client(t, c.Member(leader).Addr()), name)
	}
}

func TestLoseMajority(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{Members: 3})
	put(t, c.Client(t), "1")
	survivor := c.Client(t, c.Member(0).Addr())
	expect(t, survivor, "1")
	c.Member(1).Kill()
	c.Member(2).Kill()
	expectNoAnswer(t, survivor)
	for _, wait := range []func(tb testing.TB){c.AwaitHealthy, func(tb testing.TB) { c.Leader(tb) }} {
		f := selftest.RunFake(wait)
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, "only 1 of 3 members run") {
			t.Errorf("outcome %q", f.Outcome)
		}
	}
	if err := c.Member(2).Restart(); err != nil {
		t.Fatal(err)
	}
	c.AwaitHealthy(t)
	expect(t, survivor, "1")
	put(t, survivor, "2")

	// From nothing, one after the other: the first one has nobody to wait for.
	c.Member(0).Kill()
	c.Member(2).Kill()
	for i := range c.Size() {
		if err := c.Member(i).Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.AwaitHealthy(t)
	expect(t, survivor, "2")

	begin := time.Now()
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	t.Logf("all members restarted in %v", time.Since(begin))
	expect(t, survivor, "2")
}

// The defaults let a lease be as short as a second.
func TestShortLease(t *testing.T) {
	t.Parallel()
	lease, err := newTimed(t, Options{}).Client(t).Grant(t.Context(), 1)
	if err != nil || lease.TTL != 1 {
		t.Errorf("Grant = %v, %v", lease, err)
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{Flags: []string{"--max-txn-ops=2", "--log-level=info"}})
	put := clientv3.OpPut("key", "value")
	_, err := c.Client(t).Txn(t.Context()).Then(put, put, put).Commit()
	if err == nil || !strings.Contains(err.Error(), "too many operations") {
		t.Errorf("a transaction of 3 operations: %v", err)
	}
	selftest.AwaitLog(t, c, `"level":"info"`)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	c := newTimed(t, Options{Members: 3, TLS: true})
	c.Leader(t)
	client := c.Client(t)
	put(t, client, "1")
	m := c.Member(0)
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "1")
	if m.URL() != "https://"+m.Addr() {
		t.Errorf("URL() = %q", m.URL())
	}
	conf := c.TLS()
	conf.Certificates = nil
	stranger, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Addr()}, TLS: conf, Logger: client.GetLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	expectNoAnswer(t, stranger)
}

func TestClose(t *testing.T) {
	t.Parallel()
	need(t)
	c, err := Start(Options{Members: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Member(1).Pause(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, m := range c.members {
		selftest.ExpectRefused(t, m.Addr())
		if _, err := os.Stat(m.server.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the temporary directory is still there: %v", err)
		}
		if err := m.Restart(); !errors.Is(err, ErrClosed) {
			t.Errorf("Restart after Close = %v", err)
		}
	}
}

func TestStartFailureHasTheLog(t *testing.T) {
	t.Parallel()
	need(t)
	_, err := Start(Options{Members: 3, Flags: []string{"--no-such-option"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Fatalf("Start = %v, want an error with the log in it", err)
	}
}
