package conformance

import (
	"context"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
)

// TestWatchdog proves that the suite comes to an end whatever a backend does. In fake time patience costs nothing.
func TestWatchdog(t *testing.T) {
	for _, test := range []struct {
		name    string
		backend func(hangs) locker.Backend
		want    string
	}{
		{"Lock hangs", func(b hangs) locker.Backend { return hangsInWait{b} }, "something hangs"},
		{"Unlock hangs", func(b hangs) locker.Backend { return hangsInRelease{b} }, "something hangs"},
		{"Close hangs", func(b hangs) locker.Backend { return hangsInClose{b} }, "Close did not return"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := defect{backend: func(t *testing.T, c *client) locker.Backend {
				end := make(chan struct{})
				t.Cleanup(func() { close(end) })
				return test.backend(hangs{queued{c}, end})
			}}
			for _, p := range d.problems(t, "unlock/AfterContextEnded") {
				if strings.Contains(p.saw, test.want) {
					return
				}
			}
			t.Errorf("the suite did not say %q", test.want)
		})
	}
}

// hangs is for backends that hang until the test is over. It pretends to heed contexts: others are not waited for.
type hangs struct {
	queued
	end chan struct{}
}

func (hangs) Features() locker.Features { return locker.Features{HeedsContext: true, Queue: true} }

type hangsInWait struct{ hangs }

func (b hangsInWait) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	<-b.end
	return b.queued.Wait(ctx, r)
}

type hangsInRelease struct{ hangs }

func (b hangsInRelease) Release(ctx context.Context, g locker.Grant) error {
	<-b.end
	return b.queued.Release(ctx, g)
}

type hangsInClose struct{ hangs }

func (b hangsInClose) Close() error {
	<-b.end
	return b.queued.Close()
}
