package conformance

import (
	"runtime"
	"strings"
	"sync"
	"time"
)

// inFakeTime reports whether the clock is that of testing/synctest, which has no monotonic reading.
func inFakeTime() bool { return !strings.Contains(time.Now().String(), " m=") }

// processors counts the rules in fake time that run under the race detector. As long as there are any, Go code runs
// on one processor. On several, the timers of a bubble that fire on two at once share one state of the race detector,
// and that ends the process with "ThreadSanitizer: CHECK failed" or a SIGSEGV (https://go.dev/issue/78156, Go 1.25
// and 1.26).
var processors struct {
	sync.Mutex
	rules, before int
}

// onOneProcessor has Go code run on one processor until the function that it returns has been called.
func onOneProcessor() (done func()) {
	processors.Lock()
	defer processors.Unlock()
	if processors.rules++; processors.rules == 1 {
		processors.before = runtime.GOMAXPROCS(1)
	}
	return func() {
		processors.Lock()
		defer processors.Unlock()
		if processors.rules--; processors.rules == 0 {
			runtime.GOMAXPROCS(processors.before)
		}
	}
}
