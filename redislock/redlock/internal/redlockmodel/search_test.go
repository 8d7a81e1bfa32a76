//go:build !race

package redlockmodel

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// search is a breadth-first search of all states that a model can reach.
type search struct {
	m     *model
	width int      // words of a key that are used
	keys  []uint64 // of all states found, in the order found
	from  []uint32 // the state from which each was found
	table []uint64 // open addressing: 1 + index of a state, and above it half of its hash
	depth int
}

// result is what a search found.
type result struct {
	states, depth int
	broken        string          // the claim that does not hold, or ""
	trace         string          // the shortest way there
	seen          map[string]bool // what happened on the way to any state
}

// explore visits every state, until one breaks a claim.
func (m *model) explore() result {
	q := &search{m: m, width: m.nodes + maxOwners, table: make([]uint64, 1<<10)}
	first, seen := state{}, map[string]bool{}
	q.add(first.key(m.nodes), 0)
	level := 1 // index where the next level begins
	for i := 0; i < len(q.from); i++ {
		if i == level {
			level = len(q.from)
			q.depth++
		}
		s := q.key(i).state(m.nodes)
		var found result
		m.next(&s, func(t step, c *state, broken string) {
			if found.broken != "" {
				return
			}
			k := m.canonical(c)
			if q.add(k, i) {
				seen[t.what] = true
			}
			if broken == "" {
				broken = m.broken(c)
			}
			if broken != "" {
				found = result{len(q.from), q.depth + 1, broken, q.trace(i, k, broken), seen}
			}
		})
		if found.broken != "" {
			return found
		}
	}
	return result{states: len(q.from), depth: q.depth, seen: seen}
}

// canonical is the key of s, which stays as it is.
func (m *model) canonical(s *state) key {
	if !m.order {
		return s.key(m.nodes)
	}
	c := *s
	c.compress()
	return c.key(m.nodes)
}

func (q *search) key(i int) (k key) {
	copy(k[:], q.keys[i*q.width:(i+1)*q.width])
	return k
}

// add adds the state with key k, and says whether it is new.
func (q *search) add(k key, from int) bool {
	if 2*len(q.from) > len(q.table) {
		q.table = make([]uint64, 2*len(q.table))
		for i := range q.from {
			slot, tag, _ := q.find(q.key(i))
			q.table[slot] = tag | uint64(i+1)
		}
	}
	slot, tag, found := q.find(k)
	if found {
		return false
	}
	q.keys = append(q.keys, k[:q.width]...)
	q.from = append(q.from, uint32(from))
	q.table[slot] = tag | uint64(len(q.from))
	return true
}

// find is where k is in the table, or belongs, and the upper half of its hash, which saves most of the comparisons.
func (q *search) find(k key) (slot int, tag uint64, found bool) {
	h := uint64(0)
	for _, w := range k[:q.width] {
		hi, lo := bits.Mul64(h^w^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
		h = hi ^ lo
	}
	tag = h &^ math.MaxUint32
	for slot = int(h) & (len(q.table) - 1); q.table[slot] != 0; slot = (slot + 1) & (len(q.table) - 1) {
		if e := q.table[slot]; e&^math.MaxUint32 == tag && q.key(int(uint32(e)-1)) == k {
			return slot, tag, true
		}
	}
	return slot, tag, false
}

// trace is the way to state i, and from there to last, with every node under one name.
func (q *search) trace(i int, last key, broken string) string {
	way := []key{last}
	for ; i > 0; i = int(q.from[i]) {
		way = append(way, q.key(i))
	}
	var b strings.Builder
	s := state{}
	for j := len(way) - 1; j >= 0; j-- {
		var t step
		var to *state
		q.m.next(&s, func(u step, c *state, bad string) {
			if to == nil && q.m.canonical(c) == way[j] && (j > 0 || bad == broken || q.m.broken(c) == broken) {
				d := *c
				if q.m.order {
					d.compress()
				}
				t, to = u, &d
			}
		})
		s = *to
		fmt.Fprintf(&b, "\n%3d. %-46s %s", len(way)-j, t, s.describe(q.m))
	}
	return b.String()
}
