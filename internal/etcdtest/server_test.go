package etcdtest

import (
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

// put writes a value.
func put(t *testing.T, client *clientv3.Client, value string) {
	t.Helper()
	// Not with a timeout alone: a leader that is just being elected makes for
	// an error, too, and a write is not tried again by the client.
	selftest.Await(t, "a write", func() bool {
		_, err := client.Put(t.Context(), "key", value)
		return err == nil
	})
}

// expect reads the value.
func expect(t *testing.T, client *clientv3.Client, want string) {
	t.Helper()
	resp, err := client.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
		t.Fatalf("got %v, want %q", resp.Kvs, want)
	}
}

func TestOneMember(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := New(t, Options{})
	t.Logf("started in %v", time.Since(begin))
	client := c.Client(t)
	put(t, client, "1")
	m := c.Member(0)
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
}
