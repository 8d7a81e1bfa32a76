// Package wires puts proxies between each Locker of a test and its servers, so that one can be cut off while others are
// not: the hooks of a conformance.Harness for stores that are reached over TCP.
package wires

import (
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// Wires are the proxies of some tests.
type Wires struct {
	servers []string
	mu      sync.Mutex
	last    map[*testing.T][]*faultproxy.Proxy // those that the test got last
}

// New returns Wires to the server at the given address (host:port), or to the servers of a cluster.
func New(servers ...string) *Wires {
	return &Wires{servers: servers, last: make(map[*testing.T][]*faultproxy.Proxy)}
}

// Proxy starts a proxy of the only server, which ends with the test if it has not been closed before.
func (w *Wires) Proxy(t *testing.T) *faultproxy.Proxy {
	t.Helper()
	return w.Proxies(t)[0]
}

// Proxies starts a proxy for each server. They end with the test if they have not been closed before.
func (w *Wires) Proxies(t *testing.T) []*faultproxy.Proxy {
	t.Helper()
	proxies := make([]*faultproxy.Proxy, len(w.servers))
	for i, server := range w.servers {
		proxies[i] = faultproxy.New(t, server)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[t] = proxies
	return proxies
}

// Late is a fifth of the TTL that a conformance.Harness has unless it says otherwise: see conformance.DelayReplies.
const Late = time.Second / 5

// Cut is Harness.Cut, for what the test got last.
func (w *Wires) Cut(t *testing.T, f conformance.Fault) (heal func()) {
	w.mu.Lock()
	proxies := w.last[t]
	w.mu.Unlock()
	for _, proxy := range proxies {
		proxy.Set(map[conformance.Fault]faultproxy.Fault{
			conformance.Refuse:      faultproxy.Refuse(),
			conformance.BlackHole:   faultproxy.BlackHole(),
			conformance.Hang:        faultproxy.Hang(),
			conformance.DropReplies: faultproxy.DropReplies(),

			conformance.DelayReplies: {ToClient: faultproxy.Flow{Delay: Late}},
			conformance.LateRequests: {ToServer: faultproxy.Flow{Jitter: Late}},
		}[f])
	}
	return func() {
		for _, proxy := range proxies {
			proxy.Heal()
		}
	}
}

// Closing returns l with a Close that then also closes what it was made with.
func Closing(l *locker.Client, also func()) locker.Locker { return closing{l, also} }

type closing struct {
	*locker.Client
	also func()
}

func (c closing) Close() error {
	defer c.also()
	return c.Client.Close()
}

// Long skips a test that takes a minute or more, but in scripts/test -all.
func Long(t *testing.T) {
	t.Helper()
	if os.Getenv("LOCKER_TEST_ALL") == "" && os.Getenv("LOCKER_TRIALS") == "" {
		t.Skip("takes long: scripts/test -all runs it, and LOCKER_TEST_ALL=1 go test")
	}
}

// Thorough skips a test that takes very long and seldom finds what the others do not, unless LOCKER_TRIALS is set.
func Thorough(t *testing.T) {
	t.Helper()
	if os.Getenv("LOCKER_TRIALS") == "" {
		t.Skip("takes very long: set LOCKER_TRIALS, to 5 for example, to run it")
	}
}

// Trials is how often a test with a random outcome is repeated: n times, unless LOCKER_TRIALS says otherwise.
func Trials(t *testing.T, n int) int {
	t.Helper()
	if s := os.Getenv("LOCKER_TRIALS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			t.Fatalf("LOCKER_TRIALS=%q: want a number from 1 on", s)
		}
	}
	return n
}
