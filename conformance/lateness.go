package conformance

import (
	"slices"
	"sync"
	"time"
)

// A machine that is busy with something else wakes a test up late, and the store's server, too. What then takes longer
// than a rule allows is no defect. A watch measures by how much: it sleeps for short times, and looks at the clock.
type watch struct {
	end, ended chan struct{}
	mu         sync.Mutex
	lates      []time.Duration // of each sleep
}

// lateness says by how much a machine was late.
type lateness struct {
	worst time.Duration
	usual time.Duration // three of four times it was less

	// Other programs kept the processors busy when the test began. Who sleeps most of the time, as a watch does, is
	// then woken up soon, and a store that has much to do waits for a processor none the less.
	busy bool
}

// watchEvery is for how long a watch sleeps.
const watchEvery = 5 * time.Millisecond

// startWatch starts one, to be ended with stop. In fake time nothing is late, and it returns nil.
func startWatch() *watch {
	if inFakeTime() {
		return nil
	}
	w := &watch{end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for {
			start := time.Now()
			select {
			case <-w.end:
				return
			case <-time.After(watchEvery):
				w.add(time.Since(start) - watchEvery)
			}
		}
	}()
	return w
}

func (w *watch) add(late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lates = append(w.lates, late)
}

// late returns by how much the machine was late since the watch began.
func (w *watch) late() lateness {
	if w == nil {
		return lateness{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lates) == 0 {
		return lateness{}
	}
	sorted := slices.Sorted(slices.Values(w.lates))
	return lateness{worst: sorted[len(sorted)-1], usual: sorted[len(sorted)*3/4]}
}

// explains reports whether a machine that was late may be the reason for a problem.
func (l lateness) explains(p problem, ttl time.Duration) bool {
	switch {
	case p.wrong:
		return false
	case p.median: // one moment does not move it, and it has several steps
		return p.over <= 8*l.usual || l.busy && p.over <= ttl/10
	case p.over > 0:
		return p.over <= 4*l.worst || l.busy && p.over <= ttl
	default:
		return l.worst >= ttl/10 || l.busy
	}
}

func (w *watch) stop() {
	if w != nil {
		close(w.end)
		<-w.ended
	}
}

// awaitQuiet waits until the machine has been on time for a while, with processors to spare, or for at most a limit. It
// reports whether other programs keep them busy; this one does nothing meanwhile.
func awaitQuiet(tolerance, limit time.Duration) (busy bool) {
	const inARow = 40
	start := time.Now()
	over := func() bool { return time.Since(start) >= limit }
	for {
		others := startMeter()
		for quiet := 0; quiet < inARow && !over(); quiet++ {
			slept := time.Now()
			time.Sleep(watchEvery)
			if time.Since(slept)-watchEvery > tolerance {
				quiet = 0
			}
		}
		if busy = others.busy(); !busy || over() {
			return busy
		}
		limit = min(limit, busyPatience)
	}
}

// busyPatience is for how long programs may keep the processors busy until a test begins anyway: they will hardly stop.
const busyPatience = 2 * time.Second

// meter measures what other programs use of the processors.
type meter struct {
	start     time.Time
	all, here time.Duration
}

func startMeter() meter {
	m := meter{start: time.Now()}
	m.all, _, _ = machineTime()
	m.here, _ = cpuTime()
	return m
}

// busy reports whether other programs had three quarters of all processors, or more, since the meter was started. On
// some systems that is not known.
func (m meter) busy() bool {
	all, processors, known := machineTime()
	here, _ := cpuTime()
	others := (all - m.all) - (here - m.here)
	return known && 4*others >= 3*time.Duration(processors)*time.Since(m.start)
}
