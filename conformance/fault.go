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
)

var faults = []Fault{Refuse, BlackHole, Hang, DropReplies}

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
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}
