package pglock

import "sync"

// monitor is a mutex, and what is to be done when it is free: to write to a server may take a while, and its answer may
// be dealt with at once, on the same goroutine. So whoever holds the mutex changes what it guards, and notes what
// follows from that; nobody has to let go of it in between.
type monitor struct {
	sync.Mutex
	deeds []func()
}

// afterwards has f called by who holds the mutex, as soon as he unlocks it.
func (m *monitor) afterwards(f func()) { m.deeds = append(m.deeds, f) }

// Unlock unlocks the mutex, and does what was noted, in this order.
func (m *monitor) Unlock() {
	deeds := m.deeds
	m.deeds = nil
	m.Mutex.Unlock()
	for _, f := range deeds {
		f()
	}
}
