//go:build !unix

package conformance

import "time"

// cpuTime would have to ask the system in its own way.
func cpuTime() (t time.Duration, known bool) { return 0, false }
