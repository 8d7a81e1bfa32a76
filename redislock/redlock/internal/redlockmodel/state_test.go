//go:build !race

package redlockmodel

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

const (
	maxNodes  = 5
	maxOwners = 3
)

// state is everything: the nodes, the owners, and by what they imply all messages under way. See package doc for which.
type state struct {
	node  [maxNodes]node
	owner [maxOwners]owner
}

type node struct {
	lock  uint8 // who has it: 1 + the owner's index; 0 if it is free
	left  uint8 // ticks until it may expire
	fence uint8 // the greatest token minted or confirmed here
	tombs uint8 // whose release was processed here: one bit for each owner
	of    [maxOwners]exchange
}

// exchange is what went on between one node and one owner.
type exchange struct {
	mint uint8 // the token in the answer to ACQ, as long as it matters
	is   uint8
}

const (
	acquired  = 1 << iota // ACQ was delivered: kept only where messages are not duplicated
	granted               // ACQ was answered with a grant that the owner may count, or has counted
	confirmed             // the owner may count the node as one that knows its token
	renewed               // RENEW was answered with ok that the owner may count
	leaves                // LEAVE was sent there: kept only where it does harm, by a mutation
)

type owner struct {
	phase  phase
	left   uint8 // ticks until its validity is over, or would be over if it were granted now
	renew  uint8 // 0, or 1 + ticks until the validity is over that the renewal under way would give
	token  uint8
	is     uint8
	before uint8 // who had been granted before its first request was sent: one bit for each owner
}

type phase uint8

const (
	idle phase = iota
	trying
	confirming
	held
	done
)

// sends reports whether the protocol has an owner make a request of a node which may have the lock for it.
func (p phase) sends(r protocol.Request) bool {
	as := map[phase]protocol.Phase{
		trying: protocol.Asking, confirming: protocol.Confirming, held: protocol.Holding, done: protocol.Over,
	}[p]
	for _, known := range []protocol.Status{protocol.Held, protocol.Behind, protocol.Unknown} {
		if protocol.Next(as, known) == r {
			return p != idle
		}
	}
	return false
}

func (p phase) String() string {
	return []string{"idle", "trying", "confirming", "held", "done"}[p]
}

const (
	wasGranted = 1 << iota
	sentRenew
	sentRepair
	overtaken   // somebody else was granted since it was
	sentRelease // before it stopped to believe: a mutation
)

// believes says whether the owner of o would now act as the holder.
func (o *owner) believes() bool { return o.phase == held && o.left > 0 }

func name(o int) string { return string(rune('A' + o)) }

// count is on how many nodes the exchange with owner o has all of what.
func (s *state) count(o int, what uint8) (n int) {
	for i := range s.node {
		if s.node[i].of[o].is&what == what {
			n++
		}
	}
	return n
}

// forget drops from all exchanges with owner o what is given, and the tokens minted.
func (s *state) forget(o int, what uint8) {
	for i := range s.node {
		s.node[i].of[o].mint = 0
		s.node[i].of[o].is &^= what
	}
}

// values calls f for every token there is in s.
func (s *state) values(f func(*uint8)) {
	for i := range s.node {
		f(&s.node[i].fence)
		for o := range s.node[i].of {
			f(&s.node[i].of[o].mint)
		}
	}
	for o := range s.owner {
		f(&s.owner[o].token)
	}
}

// compress replaces all tokens by their ranks. 0, which is no token, stays.
func (s *state) compress() {
	var used uint64
	s.values(func(v *uint8) { used |= 1 << *v })
	used &^= 1
	s.values(func(v *uint8) {
		if *v > 0 {
			*v = uint8(bits.OnesCount64(used&(1<<*v-1))) + 1
		}
	})
}

// A key is a state in few words, the same one for all states that differ in the order of the nodes only.
type key [maxNodes + maxOwners]uint64

// key is s, of n nodes, with its nodes in order.
func (s *state) key(n int) (k key) {
	for i := range n {
		d := &s.node[i]
		w := uint64(d.lock) | uint64(d.left)<<2 | uint64(d.fence)<<5 | uint64(d.tombs)<<10
		for o, x := range d.of {
			w |= (uint64(x.mint) | uint64(x.is)<<5) << (13 + 10*o)
		}
		// By insertion: there are three of them.
		j := i
		for ; j > 0 && k[j-1] > w; j-- {
			k[j] = k[j-1]
		}
		k[j] = w
	}
	for i, o := range s.owner {
		k[n+i] = uint64(o.phase) | uint64(o.left)<<3 | uint64(o.renew)<<6 | uint64(o.token)<<9 | uint64(o.is)<<14 |
			uint64(o.before)<<19
	}
	return k
}

// state is the reverse of state.key.
func (k key) state(n int) (s state) {
	for i := range n {
		w := k[i]
		d := node{lock: uint8(w & 3), left: uint8(w >> 2 & 7), fence: uint8(w >> 5 & 31), tombs: uint8(w >> 10 & 7)}
		for o := range d.of {
			x := w >> (13 + 10*o)
			d.of[o] = exchange{mint: uint8(x & 31), is: uint8(x >> 5 & 31)}
		}
		s.node[i] = d
	}
	for i := range s.owner {
		w := k[n+i]
		s.owner[i] = owner{phase(w & 7), uint8(w >> 3 & 7), uint8(w >> 6 & 7), uint8(w >> 9 & 31), uint8(w >> 14 & 31),
			uint8(w >> 19 & 7)}
	}
	return s
}

// String is s for a trace: the nodes, then the owners that have begun.
func (s *state) describe(m *model) string {
	var b strings.Builder
	for _, d := range s.node[:m.nodes] {
		b.WriteByte('[')
		if d.lock == 0 {
			b.WriteString("free")
		} else {
			b.WriteString(name(int(d.lock) - 1))
			if m.timed {
				fmt.Fprintf(&b, " %d", d.left)
			}
		}
		if m.tokens {
			fmt.Fprintf(&b, " fence %d", d.fence)
		}
		b.WriteString("] ")
	}
	for i, o := range s.owner[:m.owners] {
		if o.phase == idle {
			continue
		}
		fmt.Fprintf(&b, " %s:%v", name(i), o.phase)
		if o.token > 0 {
			fmt.Fprintf(&b, " token %d", o.token)
		}
		if o.believes() {
			b.WriteString(" BELIEVES")
		}
		if m.timed && o.phase != done {
			fmt.Fprintf(&b, " left %d", o.left)
		}
	}
	return b.String()
}
