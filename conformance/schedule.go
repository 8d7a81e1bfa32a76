package conformance

import (
	"runtime"
	"sync"
	"testing"
)

// beside returns how many rules are judged at the same time: nearly always they wait for leases to end. That is why it
// is not -parallel that counts, whose default is for tests that compute.
func beside() int { return 4 * runtime.GOMAXPROCS(0) }

// judge runs the tests of some groups: first the serial rules of each group, one after the other, and then the others
// of all groups beside each other. If wrapped is set, all are serial.
func judge(t *testing.T, groups []group, wrapped bool, test func(t *testing.T, g group, r rule)) {
	room := make(chan struct{}, beside())
	turn := make([]chan struct{}, len(groups)+1) // closed when the serial rules of the groups before have been judged
	for i := range turn {
		turn[i] = make(chan struct{})
	}
	close(turn[0])
	var all sync.WaitGroup
	for i, g := range groups {
		pass := sync.OnceFunc(func() { <-turn[i]; close(turn[i+1]) })
		all.Go(func() {
			defer pass() // also if -run leaves the group out
			t.Run(g.name, func(t *testing.T) {
				run := func(r rule) { t.Run(r.name, func(t *testing.T) { test(t, g, r) }) }
				var others []rule
				<-turn[i]
				for _, r := range g.rules {
					if r.serial || wrapped {
						run(r)
					} else {
						others = append(others, r)
					}
				}
				pass()
				<-turn[len(groups)]
				var running sync.WaitGroup
				for _, r := range others {
					running.Go(func() {
						room <- struct{}{}
						defer func() { <-room }()
						run(r)
					})
				}
				running.Wait()
			})
		})
	}
	all.Wait()
}
