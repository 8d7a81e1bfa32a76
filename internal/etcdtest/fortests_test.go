package etcdtest

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestAddressFromEnvironment(t *testing.T) {
	for value, want := range map[string]string{
		"etcd.example:1234":         "etcd.example:1234",
		"[::1]:1234":                "[::1]:1234",
		"http://etcd.example:1234":  "etcd.example:1234",
		"http://etcd.example:1234/": "etcd.example:1234",
		"http://etcd.example":       "etcd.example:2379",
		"http://[::1]":              "[::1]:2379",
	} {
		t.Setenv(EnvAddress, value)
		if got := Address(t); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
	for _, value := range []string{
		"etcd.example", "https://etcd.example", "http://etcd.example/3", "http://",
		"http://user:secret@etcd.example", "http://etcd.example?a=b", "http://a b",
	} {
		t.Setenv(EnvAddress, value)
		f := selftest.RunFake(func(tb testing.TB) { Address(tb) })
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, EnvAddress) {
			t.Errorf("%s: outcome %q", value, f.Outcome)
		}
		if strings.Contains(f.Outcome, "secret") {
			t.Errorf("the password is in the log: %s", f.Outcome)
		}
	}
}

func TestAddressIsShared(t *testing.T) {
	t.Setenv(EnvAddress, "")
	addr := Address(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := Address(t); got != addr {
				t.Errorf("Address() = %s and %s", addr, got)
			}
		})
	}
	wg.Wait()
	cluster, err := shared.Get()
	if err != nil {
		t.Fatal(err)
	}
	cluster.AwaitHealthy(t)
}

func TestNewClosesTheCluster(t *testing.T) {
	t.Parallel()
	need(t)
	for _, failed := range []bool{false, true} {
		var c *Cluster
		f := selftest.RunFake(func(tb testing.TB) {
			c = New(tb, Options{})
			if failed {
				tb.Errorf("failed")
			}
		})
		put(t, c.Client(t), "value")
		f.Cleanups()
		if (f.Outcome == "error: failed") != failed || strings.Contains(f.Logged, c.Endpoints()[0]) != failed {
			t.Errorf("outcome %q, log %q", f.Outcome, f.Logged)
		}
		selftest.ExpectRefused(t, c.Endpoints()[0])
	}
}

func TestNewWithoutProgram(t *testing.T) {
	t.Setenv(EnvProgram, filepath.Join(t.TempDir(), "missing"))
	f := selftest.RunFake(func(tb testing.TB) { New(tb, Options{}) })
	if !strings.HasPrefix(f.Outcome, "fatal: ") {
		t.Errorf("outcome %q", f.Outcome)
	}
}

// The rules are tested in testserver; here, that they are about etcd.
func TestWithoutProgram(t *testing.T) {
	t.Setenv(EnvProgram, "")
	for list, want := range map[string]string{"postgres": "skip: NOT TESTED", "postgres, etcd": "fatal: "} {
		t.Setenv(EnvRequire, list)
		f := selftest.RunFake(func(tb testing.TB) { product.Unavailable(tb, ErrNotFound) })
		if !strings.HasPrefix(f.Outcome, want) {
			t.Errorf("%q: outcome %q", list, f.Outcome)
		}
	}
}
