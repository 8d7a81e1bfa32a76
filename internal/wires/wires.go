// Package wires puts a proxy between each Locker of a test and its server, so that one can be cut off while others are not: the
// hooks of a conformance.Harness for stores that are reached over TCP.
package wires

import (
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// Wires are the proxies of some tests.
type Wires struct {
	server string
	mu     sync.Mutex
	last   map[*testing.T]*faultproxy.Proxy // the one that the test got last
}

// New returns Wires to the server at the given address (host:port).
func New(server string) *Wires {
	return &Wires{server: server, last: make(map[*testing.T]*faultproxy.Proxy)}
}

// Proxy starts a proxy, which ends with the test if it has not been closed before.
func (w *Wires) Proxy(t *testing.T) *faultproxy.Proxy {
	t.Helper()
	proxy, err := faultproxy.Start(w.server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[t] = proxy
	return proxy
}

// Cut is Harness.Cut, for the proxy that the test got last.
func (w *Wires) Cut(t *testing.T, f conformance.Fault) (heal func()) {
	w.mu.Lock()
	proxy := w.last[t]
	w.mu.Unlock()
	proxy.Set(map[conformance.Fault]faultproxy.Fault{
		conformance.Refuse:      faultproxy.Refuse(),
		conformance.BlackHole:   faultproxy.BlackHole(),
		conformance.Hang:        faultproxy.Hang(),
		conformance.DropReplies: faultproxy.DropReplies(),
	}[f])
	return proxy.Heal
}

// Closing returns l with a Close that then also closes what it was made with.
func Closing(l locker.Locker, also func()) locker.Locker { return closing{l, also} }

type closing struct {
	locker.Locker
	also func()
}

func (c closing) Close() error {
	defer c.also()
	return c.Locker.Close()
}

// Trials is how often a test with a random outcome is repeated: n times, unless LOCKER_TRIALS says otherwise.
func Trials(t *testing.T, n int) int {
	t.Helper()
	if s := os.Getenv("LOCKER_TRIALS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("LOCKER_TRIALS: %v", err)
		}
	}
	return n
}
