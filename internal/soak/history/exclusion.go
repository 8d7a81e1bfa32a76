package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// excludes reports whether the two cannot have a key at the same time, whoever else has it.
func (c *Call) excludes(other *Call) bool {
	return c.Mode != other.Mode || c.Mode == Exclusive || c.Mode == Slots && c.Slot == other.Slot
}

// place is what leases exclude one another by: all those with one place do, or none of them does.
type place struct {
	mode Mode
	slot int
}

// exclusion checks that all who had leases of one key at the same time could have them beside one another. The leases
// are in the order in which they were returned, which is that of the grants for those that exclude one another.
func (c *checker) exclusion(valid []*Call) {
	var held []*Call                  // those that have been returned, and are not known to have ended
	greatest := make(map[place]*Call) // by token
	for _, call := range valid {
		held = slices.DeleteFunc(held, func(h *Call) bool { return h.Valid < call.Answered })
		c.company(call, held)
		c.turn(call, greatest)
		held = append(held, call)
		if at := (place{call.Mode, call.Slot}); greatest[at] == nil || call.Token > greatest[at].Token {
			greatest[at] = call
		}
		alike := 0
		for _, h := range held {
			if h == call || !h.excludes(call) {
				alike++
			}
		}
		c.Most[call.Mode] = max(c.Most[call.Mode], alike)
	}
}

// company checks that those who have the key when call is returned can have it beside call.
func (c *checker) company(call *Call, held []*Call) {
	unexplained, why := c.explain(call, among(held, call.excludes))
	if first := longest(unexplained); first != nil {
		c.violation(together(first, call), first.Answered, call.Valid,
			fmt.Sprintf("for up to %v:", time.Duration(first.Valid-call.Answered)), first, call)
	}
	if call.Mode == Slots {
		why = cmp.Or(why, c.crowd(call, held))
	}
	if why.name != "" {
		c.Gaps[why.name] = append(c.Gaps[why.name], why.over)
	}
}

// crowd checks that there is a slot for call beside those who have one. It returns what explains that there is none.
func (c *checker) crowd(call *Call, held []*Call) (why gapUse) {
	slots := among(held, func(h *Call) bool { return h.Mode == Slots })
	if len(slots) < room(call, slots) {
		return gapUse{}
	}
	if slots, why = c.explain(call, slots); len(slots) < room(call, slots) {
		return why
	}
	evidence := []any{fmt.Sprintf("%d, where there is room for %d:", len(slots)+1, room(call, slots))}
	for _, h := range slots {
		evidence = append(evidence, h)
	}
	c.violation("more holders than slots", call.Asked, call.Valid, append(evidence, call)...)
	return gapUse{}
}

// among returns those of calls of which f is true.
func among(calls []*Call, f func(*Call) bool) (some []*Call) {
	for _, call := range calls {
		if f(call) {
			some = append(some, call)
		}
	}
	return some
}

// longest returns the one that was valid longest, nil if there is none.
func longest(calls []*Call) (l *Call) {
	for _, call := range calls {
		if l == nil || call.Valid > l.Valid {
			l = call
		}
	}
	return l
}

// together is the rule that is broken when two have a key at the same time that exclude one another.
func together(first, second *Call) string {
	names := map[Mode]string{Exclusive: "a writer", Shared: "a reader", Slots: "the holder of a slot"}
	switch {
	case first.Mode != second.Mode:
		return fmt.Sprintf("%s beside %s", names[second.Mode], names[first.Mode])
	case first.Mode == Slots:
		return "two holders of one slot at a time"
	}
	return "two holders at a time"
}

// room returns how many holders of slots there may be, of call and others: as many as the one says who was granted a
// slot last. If the records do not tell who that was, it is the most generous of those who it may have been.
func room(call *Call, others []*Call) (n int) {
	holders := append(slices.Clone(others), call)
	var asked int64 // by the last one
	for _, h := range holders {
		asked = max(asked, h.Asked)
	}
	for _, h := range holders {
		if h.Answered >= asked {
			n = max(n, h.Slots)
		}
	}
	return n
}

// gapUse is a gap by which a store has forgotten a holder, and for how long that one may have believed in its lock.
type gapUse struct {
	name string
	over time.Duration
}

// orLonger returns the one of both that has lasted longer.
func (g gapUse) orLonger(other gapUse) gapUse {
	if g.name == "" || other.over > g.over {
		return other
	}
	return g
}

// explain returns those of the holders of a key of whom no gap says that the store may have forgotten them when it
// granted call; and what says so of the others, of the one that was valid longest.
func (c *checker) explain(call *Call, held []*Call) (unexplained []*Call, why gapUse) {
	for _, h := range held {
		over := time.Duration(h.Valid - call.Answered)
		if gap, ok := c.admit(h, call, over); ok {
			why = why.orLonger(gapUse{gap, over})
		} else {
			unexplained = append(unexplained, h)
		}
	}
	return unexplained, why
}

// turn compares the token of call with the greatest ones of those who were returned before it and exclude it. If it was
// asked for after one of them was answered, order has looked at the two. Else the one with the smaller token may have
// been granted first, and returned when it was too late.
func (c *checker) turn(call *Call, greatest map[place]*Call) {
	var ahead *Call
	var why gapUse
	for _, g := range greatest {
		if !g.excludes(call) || call.Token >= g.Token || g.Answered < call.Asked {
			continue
		}
		if both := time.Duration(g.Valid - call.Answered); both >= 0 {
			if _, ok := c.admit(g, call, both); ok {
				continue // company has said so
			}
		}
		over := time.Duration(call.Valid - g.Answered)
		if gap, ok := c.admit(call, g, over); ok {
			why = why.orLonger(gapUse{gap, over})
		} else if ahead == nil || g.Token > ahead.Token {
			ahead = g
		}
	}
	switch {
	case ahead != nil:
		c.violation("tokens are not in the order of the grants", ahead.Asked, call.Answered, ahead, call)
	case why.name != "":
		c.Gaps[why.name] = append(c.Gaps[why.name], why.over)
	}
}
