package etcdlock

import "sync"

// group counts goroutines, as a sync.WaitGroup does, but can be waited for while somebody wants to start another: that
// is refused then.
type group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// start calls f on a goroutine of its own, and reports whether it does.
func (g *group) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Go(f)
	}
	return !g.closed
}

// wait waits until all have ended.
func (g *group) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
