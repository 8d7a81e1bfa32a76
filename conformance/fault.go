package conformance

import "fmt"

// Fault is a way in which the connection between a Locker and its store fails.
type Fault int

// The faults that Cut has to be able to produce.
const (
	Refuse      Fault = iota // connections are reset, and new ones are refused
	BlackHole                // whatever either side sends is lost without a trace
	Hang                     // nothing is carried any more; after heal everything is
	DropReplies              // requests reach the store, answers are lost

	// Everything arrives, but late: by a fifth of the TTL, or by a random part of that. What was sent on one connection
	// stays in order; what was sent on several need not.
	DelayReplies // requests reach the store at once, answers come late
	LateRequests // each request comes late, by a time of its own; answers come at once
)

// partitions are the faults in which nothing is answered.
var partitions = []Fault{Refuse, BlackHole, Hang, DropReplies}

// delays are those in which all is answered.
var delays = []Fault{DelayReplies, LateRequests}

// String returns the name of the fault.
func (f Fault) String() string {
	switch f {
	case Refuse:
		return "refuse"
	case BlackHole:
		return "black-hole"
	case Hang:
		return "hang"
	case DropReplies:
		return "drop-replies"
	case DelayReplies:
		return "delay-replies"
	case LateRequests:
		return "late-requests"
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}
