// Package protocol says which request an owner makes of a node of a Redlock: by what he is about, and by what the node
// is known to have of him. It does nothing else. The backend sends what it says, and the model of the protocol explores
// what may come of that.
package protocol

// Phase is what an owner is about.
type Phase uint8

// The phases. Owners ask, and go on from there; Over is the end.
const (
	Asking     Phase = iota // the nodes have been asked for the lock
	Confirming              // a quorum has granted it, and is told which token that means
	Holding                 // granted
	Waiting                 // in line
	Over                    // given back, or given up
	phases
)

// Status is what a node is known to have of an owner.
type Status uint8

// The statuses of a node.
const (
	Nothing   Status = iota // nothing, and nothing is on its way
	Late                    // nothing, but a request that was given up may yet arrive
	Held                    // the lock, with the owner's token
	Behind                  // the lock, with a lesser token that this node has minted
	InLine                  // his place in line: it has refused the lock
	Elsewhere               // another place in line: the one that it gave him when it refused
	Freed                   // nothing: it had the lock, and has freed it
	Unknown                 // any of these: it has not answered
	statuses
)

// Request is what a node is asked.
type Request uint8

// The requests, but for the one for the lock, which opens a try, and for renewals.
const (
	None    Request = iota
	Confirm         // that the owner's token is the last one
	LineUp          // that the owner gives up what is granted here, and has this place in line
	Leave           // that the owner gives up what is granted here, and his place in line
)

// next has a row for each status, and a column for each phase.
var next = [statuses][phases]Request{
	//           Asking Confirming Holding Waiting Over
	Nothing:   {None, None, None, LineUp, None},
	Late:      {None, None, None, LineUp, Leave}, // which leaves a tombstone
	Held:      {None, None, None, LineUp, Leave},
	Behind:    {None, Confirm, Confirm, LineUp, Leave},
	InLine:    {None, None, Leave, None, Leave}, // from holding, there is no way back into the line
	Elsewhere: {None, None, Leave, LineUp, Leave},
	Freed:     {None, None, None, None, None},
	Unknown:   {None, None, None, LineUp, Leave},
}

// Next returns what a node with a status is asked next.
func Next(p Phase, s Status) Request { return next[s][p] }
