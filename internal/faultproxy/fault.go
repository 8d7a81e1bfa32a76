package faultproxy

import "time"

// Fault says how connections misbehave. The zero Fault is no fault at all.
type Fault struct {
	// Refuse resets connections. Set for a whole Proxy, it also makes the
	// proxy refuse new ones. The other fields have no meaning then.
	Refuse bool

	ToServer Flow // what becomes of that which the client sends
	ToClient Flow // what becomes of that which the server sends
}

// Flow says what becomes of the bytes that travel in one direction. The zero
// Flow passes them on at once.
type Flow struct {
	Mode  Mode
	Delay time.Duration // how much later each piece is passed on; see Delay

	// Jitter is the longest random time by which each piece is delayed in addition. A piece never overtakes another
	// one of its connection.
	Jitter time.Duration
}

// Mode is the way a Flow treats bytes.
type Mode int

// The modes of a Flow.
const (
	Pass Mode = iota // pass bytes on
	Hold             // do not read any, so that the sender finally blocks
	Drop             // read bytes and throw them away
)

// Refuse resets the existing connections and lets new ones fail with
// "connection refused", like a host on which the server's process has died.
func Refuse() Fault { return Fault{Refuse: true} }

// BlackHole accepts connections and everything sent on them, and passes on
// nothing, like a network that has lost the route.
func BlackHole() Fault {
	return Fault{ToServer: Flow{Mode: Drop}, ToClient: Flow{Mode: Drop}}
}

// Hang stops reading in both directions, like a process that was stopped:
// senders block once the buffers are full. Nothing is lost, and everything
// goes on after healing.
func Hang() Fault {
	return Fault{ToServer: Flow{Mode: Hold}, ToClient: Flow{Mode: Hold}}
}

// Delay passes everything on d later in each direction, so a round trip takes
// 2d longer. Like a long cable it costs latency, not throughput.
// After healing, what is still on its way arrives at once.
func Delay(d time.Duration) Fault {
	return Fault{ToServer: Flow{Delay: d}, ToClient: Flow{Delay: d}}
}

// DropReplies passes on what the client sends and throws away what the server
// sends: requests are carried out, but the client never learns of it.
func DropReplies() Fault {
	return Fault{ToClient: Flow{Mode: Drop}}
}

// DropRequests throws away what the client sends and passes on what the
// server sends of its own accord.
func DropRequests() Fault {
	return Fault{ToServer: Flow{Mode: Drop}}
}
