package etcdtest

import (
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Clusters of several members keep the processors busy: with many of them at the same time, none gets the heartbeats of
// its leader in time, and what is tested is an overloaded machine. So tests that have such clusters take turns. A test
// and its subtests have a turn together, as a test may have two clusters.
var (
	turns   = make(chan struct{}, max(1, runtime.NumCPU()/2))
	inTurn  = make(map[string]int) // how many clusters each test has, or waits for
	turning sync.Mutex
)

// takeTurn waits for the turn of a test, which lasts until the test is over.
func takeTurn(tb testing.TB) {
	name, _, _ := strings.Cut(tb.Name(), "/")
	if enter(name, 1) == 1 {
		turns <- struct{}{}
	}
	tb.Cleanup(func() {
		if enter(name, -1) == 0 {
			<-turns
		}
	})
}

// enter counts the clusters of a test.
func enter(name string, more int) int {
	turning.Lock()
	defer turning.Unlock()
	inTurn[name] += more
	return inTurn[name]
}
