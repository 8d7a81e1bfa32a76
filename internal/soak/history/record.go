// Package history checks what several processes have recorded of their use of locks while things went wrong: whether
// two of them ever believed in the same lock, whether tokens increase in the order of the grants, whether each call was
// answered, and whether a holder was told of a loss before a rival got in.
package history

import (
	"fmt"
	"iter"
	"strings"
	"time"
)

// Kind is what a record tells of a call of Lock or TryLock, or of its lease.
type Kind string

// The kinds, in the order in which a call has them.
const (
	Asked    Kind = "asked"    // is about to be called: Op, Key, TTL, Mode, Slots
	Failed   Kind = "failed"   // has returned an error: Class, Text, and Until, when its ctx has ended, or would have
	Granted  Kind = "granted"  // has returned a lease: Token, Slot
	Valid    Kind = "valid"    // At is a moment before Err of the lease has returned nil
	Released Kind = "released" // Unlock or Close is about to be called; At as with Valid, if Valid is not 0
	Lost     Kind = "lost"     // Done was closed, or Err has returned an error: Valid, Until (the deadline), Text
	Unlocked Kind = "unlocked" // Unlock has returned: Class, Text
	Finished Kind = "finished" // the process has ended in order: Text if Close has failed
)

// Mode is whom a lease lets have the same key.
type Mode string

// The modes.
const (
	Exclusive Mode = ""       // nobody
	Shared    Mode = "shared" // others of this mode
	Slots     Mode = "slots"  // others of this mode with other numbers, but never more than so many
)

// Record is what a process writes down. Times are nanoseconds of CLOCK_MONOTONIC, which all processes share.
type Record struct {
	Kind    Kind          `json:"k"`
	Process string        `json:"p"` // number of the worker, ".", number of its life: "3.2"
	ID      int           `json:"i"` // of the call, unique within the process
	At      int64         `json:"t"`
	Op      string        `json:"o,omitempty"`
	Key     string        `json:"y,omitempty"`
	TTL     time.Duration `json:"l,omitempty"`
	Mode    Mode          `json:"m,omitempty"`
	Slots   int           `json:"n,omitempty"` // with the mode Slots, how many there are
	Slot    int           `json:"s,omitempty"` // the number of the one that was granted
	Until   int64         `json:"u,omitempty"`
	Token   uint64        `json:"f,omitempty"`
	Valid   int64         `json:"v,omitempty"` // the last moment before Err has returned nil; 0 for never
	Queued  bool          `json:"q,omitempty"` // the call has waited in line
	Class   string        `json:"c,omitempty"`
	Text    string        `json:"x,omitempty"`

	// Late is by how much timers of the process were overdue at most while it should have acted: from Until to At.
	Late time.Duration `json:"d,omitempty"`
}

// Event is what the supervisor has done to the processes and the servers, or has seen of them.
type Event struct {
	What    string `json:"what"`
	From    int64  `json:"from"` // a moment before it began
	To      int64  `json:"to"`   // a moment after it was over
	Process string `json:"process,omitempty"`
	Server  string `json:"server,omitempty"`
}

// The events that Check itself knows.
const (
	Killed = "process killed" // from before the signal to after the end
	Frozen = "process frozen" // from before SIGSTOP to after SIGCONT
	Calm   = "calm"           // there are no faults, and all servers are well
)

// concerns reports whether the event has to do with a process: it names the process, or the worker of which that is a
// life.
func (e Event) concerns(process string) bool {
	return e.Process == process || e.Process != "" && strings.HasPrefix(process, e.Process+".")
}

// during reports whether the event has a moment in common with a span.
func (e Event) during(from, to int64) bool { return e.From <= to && e.To >= from }

// Call is what is known of one call, and of the lease that it has returned.
type Call struct {
	Process, Key, Op string
	ID               int
	TTL              time.Duration
	Mode             Mode
	Slots, Slot      int
	Asked, CtxEnd    int64
	Answered         int64 // 0: never
	Granted, Queued  bool
	Token            uint64
	Class, Text      string // of the failure

	// The lease was valid from Answered to Valid, for certain; if Valid is 0, it was never seen valid.
	Valid    int64
	End      Kind  // Released, Lost, or "" for a process that was killed
	EndAt    int64 // when it was released, or when its holder knew that it was lost
	Deadline int64 // of a lease that was lost
	Reason   string
	Unlock   string // the class of the error of Unlock
	Late     time.Duration
}

// String is the call as evidence.
func (c *Call) String() string {
	s := fmt.Sprintf("process %s, call %d: %s %s%s, TTL %v, asked %d, answered %d",
		c.Process, c.ID, c.Op, c.Key, c.how(), c.TTL, c.Asked, c.Answered)
	if !c.Granted {
		return s + fmt.Sprintf(", ctx until %d, late %v: %s %s", c.CtxEnd, c.Late, c.Class, c.Text)
	}
	s += fmt.Sprintf(", token %d, last valid %d, end %q at %d", c.Token, c.Valid, c.End, c.EndAt)
	if c.End == Lost {
		s += fmt.Sprintf(" (deadline %d, late %v): %s", c.Deadline, c.Late, c.Reason)
	}
	return s
}

// how says in which mode the call is, if it is not exclusive.
func (c *Call) how() string {
	switch {
	case c.Mode == Slots && c.Granted:
		return fmt.Sprintf(" (slot %d of %d)", c.Slot, c.Slots)
	case c.Mode == Slots:
		return fmt.Sprintf(" (one of %d slots)", c.Slots)
	case c.Mode != Exclusive:
		return fmt.Sprintf(" (%s)", c.Mode)
	}
	return ""
}

// calls puts records together. Those of one process have to come in their order.
func calls(records iter.Seq[Record]) (all []*Call, finished map[string]bool) {
	type id struct {
		process string
		call    int
	}
	open := make(map[id]*Call)
	finished = make(map[string]bool)
	for r := range records {
		if r.Kind == Finished {
			finished[r.Process] = true
			continue
		}
		c := open[id{r.Process, r.ID}]
		if c == nil {
			c = &Call{Process: r.Process, ID: r.ID}
			open[id{r.Process, r.ID}] = c
			all = append(all, c)
		}
		c.note(r)
	}
	return all, finished
}

func (c *Call) note(r Record) {
	switch r.Kind {
	case Asked:
		c.Op, c.Key, c.TTL, c.Asked, c.CtxEnd = r.Op, r.Key, r.TTL, r.At, r.Until
		c.Mode, c.Slots = r.Mode, r.Slots
	case Failed:
		c.Answered, c.CtxEnd, c.Class, c.Text, c.Late, c.Queued = r.At, r.Until, r.Class, r.Text, r.Late, r.Queued
	case Granted:
		c.Answered, c.Granted, c.Token, c.Slot, c.Queued = r.At, true, r.Token, r.Slot, r.Queued
	case Valid:
		c.Valid = r.At
	case Released:
		c.Valid, c.End, c.EndAt = max(c.Valid, r.Valid), Released, r.At
	case Lost:
		c.Valid, c.End, c.EndAt, c.Deadline = max(c.Valid, r.Valid), Lost, r.At, r.Until
		c.Reason, c.Late = r.Text, r.Late
	case Unlocked:
		c.Unlock = r.Class
	}
}
