package conformance

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// newConnected returns a backend whose locks end with the connection of their client, as advisory locks do. The
// holder is told a while later.
func newConnected(c *client, late time.Duration) locker.Backend {
	return newTended(c, func(g locker.Grant) func(context.Context) {
		c.link.mu.Lock()
		broken := c.link.reset
		c.link.mu.Unlock()
		return func(ctx context.Context) {
			select {
			case <-ctx.Done():
				return
			case <-broken:
			}
			if late == 0 {
				g.ReportLost(errReset)
			}
			c.store.mu.Lock()
			_ = c.store.release(g)
			c.store.mu.Unlock()
			select {
			case <-time.After(late):
				g.ReportLost(errReset)
			case <-ctx.Done():
			}
		}
	})
}

// TestConnectionBound: where a lock ends with its connection, its holder has to be told as soon as that breaks.
func TestConnectionBound(t *testing.T) {
	for _, test := range []struct {
		late   time.Duration
		caught bool
	}{{0, false}, {100 * time.Millisecond, true}, {time.Hour, true}} {
		for _, name := range []string{"lease/DoneBeforeRival", "waiting/KilledWhenServed"} {
			t.Run(fmt.Sprintf("%s/%v", name, test.late), func(t *testing.T) {
				t.Parallel()
				backend := func(_ *testing.T, c *client) locker.Backend { return newConnected(c, test.late) }
				h := (&defect{backend: backend}).harness().withDefaults()
				h.Features.ConnectionBound = "a lock ends with its connection"
				v, leak := ruleNamed(t, name).wrapped(t, h, new(result))
				if caught := len(v.problems) > 0; caught != test.caught || leak != "" {
					t.Errorf("caught: %v; want %v: %v %s", caught, test.caught, v.problems, leak)
				}
			})
		}
	}
}
