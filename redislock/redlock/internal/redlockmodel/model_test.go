//go:build !race

package redlockmodel

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

// model is the protocol, its world, and what is wrong with either.
type model struct {
	nodes, owners int
	tokens        bool // mint and write back; otherwise whoever has a quorum is granted
	order         bool // tokens are known by their order only, and so without bound; otherwise integers up to maxToken
	duplicates    bool // any message may be delivered again, at any time
	ghosts        bool // there are any number of other owners, none of whom is ever granted
	timed         bool // locks live for ttl ticks at least, and clients look at their clocks; otherwise there is no time
	ttl           uint8
	renewals      bool
	maxToken      uint8 // unless order
	mutation      mutation
	only          []claim // what to look at; all claims if nil
}

// claim is what shall hold.
type claim string

const (
	exclusion  claim = "exclusion"
	continuity claim = "continuity"
	distinct   claim = "distinct tokens"
	inOrder    claim = "tokens in order"
	byGrant    claim = "tokens in order of grants"
	noOrphan   claim = "no orphan"
)

func (m *model) looksAt(c claim) bool { return m.only == nil || slices.Contains(m.only, c) }

// breaks is how c is broken, if it is one of those to look at.
func (m *model) breaks(c claim, format string, args ...any) string {
	if !m.looksAt(c) {
		return ""
	}
	return string(c) + ": " + fmt.Sprintf(format, args...)
}

// mutation is one thing done wrong, or suspected to be; "" is the protocol as it should be.
type mutation string

const (
	// In the tokens.
	noWriteBack        mutation = "the token is not written back"
	confirmUnowned     mutation = "CONFIRM succeeds without the owner check"
	confirmRaisesFirst mutation = "CONFIRM raises the fence before the owner check, and fails then"
	confirmByFew       mutation = "the token is written back to less than a majority"
	confirmNewer       mutation = "CONFIRM succeeds although the fence has passed the token"
	confirmAny         mutation = "so it does, and counts on a node whose own mint did not count"
	mintAgain          mutation = "ACQ mints max(fence, clock) instead of max(fence + 1, clock)"

	// In the lock.
	halfQuorum       mutation = "a quorum is N/2"
	validFromReply   mutation = "validity counts from the reply"
	renewFromReply   mutation = "validity of a renewal counts from the reply"
	renewStale       mutation = "an answer to an earlier renewal counts for the later one"
	lateRenewal      mutation = "a renewal counts although the validity was over before it was confirmed"
	releaseUnowned   mutation = "REL deletes whoever's lock"
	releaseFirst     mutation = "an owner believes until REL has been answered"
	leaveReleases    mutation = "LEAVE deletes the owner's lock"
	clockSlow        mutation = "the client's clock is slower than the drift allows for"
	ownerAgain       mutation = "the next try has the same owner id"
	noTombstone      mutation = "REL leaves no tombstone"
	tombIfUnanswered mutation = "REL leaves a tombstone only where ACQ was not answered"
	repairUntombed   mutation = "REPAIR ignores tombstones"
	repairTaken      mutation = "REPAIR takes the lock from others"
	repairMajority   mutation = "a majority is repaired, and counts as confirmed"

	// In the world.
	expiresEarly mutation = "a node's clock jumps ahead: a lock expires early"
	restartEmpty mutation = "a node restarts empty"
	restartBack  mutation = "a node forgets its fence, and its clock is behind it"
	restartLater mutation = "a node restarts empty, but not before its lock has expired"
)

func (m *model) quorum() int {
	if m.mutation == halfQuorum {
		return m.nodes / 2
	}
	return m.nodes/2 + 1
}

// A step is one thing that happens, for the trace.
type step struct {
	what  string
	owner int
	node  int
	token uint8
}

func (t step) String() string {
	s := t.what
	if t.owner >= 0 {
		s = name(t.owner) + ": " + s
	}
	if t.node >= 0 {
		s += fmt.Sprintf(" (node %d)", t.node+1)
	}
	if t.token > 0 {
		s += fmt.Sprintf(" token %d", t.token)
	}
	return s
}

// emit takes a step and the state that it leads to, and, if the step itself breaks a claim, how.
type emit func(t step, s *state, broken string)

// next emits every state that may follow s.
func (m *model) next(s *state, emit emit) {
	for o := range m.owners {
		m.clientSteps(s, o, emit)
		for n := range m.nodes {
			m.deliveries(s, o, n, emit)
		}
	}
	for n := range m.nodes {
		m.nodeSteps(s, n, emit)
	}
	if m.timed {
		m.tick(s, emit)
	}
}

// broken says which claim s breaks, if any.
func (m *model) broken(s *state) string {
	holder := -1
	for o := range m.owners {
		if !m.timed || !s.owner[o].believes() {
			continue
		}
		if holder >= 0 {
			return m.breaks(exclusion, "%s and %s both believe to hold", name(holder), name(o))
		}
		holder = o
	}
	if holder >= 0 && s.owner[holder].is&overtaken != 0 {
		if b := m.breaks(continuity, "%s holds again, after somebody else was granted", name(holder)); b != "" {
			return b
		}
	}
	for n := range m.nodes {
		if d := &s.node[n]; d.lock > 0 && d.tombs&(1<<(d.lock-1)) != 0 {
			return m.breaks(noOrphan, "a node has the lock for %s, whose REL it has processed", name(int(d.lock)-1))
		}
	}
	return ""
}

// clientSteps are what owner o may do next.
func (m *model) clientSteps(s *state, o int, emit emit) {
	q := m.quorum()
	switch me := &s.owner[o]; me.phase {
	case idle:
		// Owners begin in the order of their names: they differ in nothing else.
		if o > 0 && s.owner[o-1].phase == idle {
			return
		}
		c := *s
		c.owner[o].phase = trying
		if m.timed {
			c.owner[o].left = m.ttl
			if m.mutation == clockSlow {
				c.owner[o].left++
			}
		}
		for other := range m.owners {
			if s.owner[other].is&wasGranted != 0 && !m.timed { // with time, the order of grants is what counts
				c.owner[o].before |= 1 << other
			}
		}
		emit(step{"sends ACQ to all", o, -1, 0}, &c, "")

	case trying:
		if !m.tokens {
			if s.count(o, granted) >= q && (me.left > 0 || !m.timed || m.mutation == validFromReply) {
				m.grant(s, o, emit)
			}
		} else {
			m.choose(s, o, emit)
		}

	case confirming:
		need := q
		switch m.mutation {
		case confirmByFew:
			need = q - 1
		case noWriteBack:
			need = 0
		}
		if s.count(o, confirmed) >= need && (me.left > 0 || !m.timed || m.mutation == validFromReply) {
			m.grant(s, o, emit)
		}

	case held:
		if m.timed && m.renewals {
			m.renewing(s, o, emit)
		}
		if m.mutation == releaseFirst && me.is&sentRelease == 0 {
			c := *s
			c.owner[o].is |= sentRelease
			emit(step{"sends REL to all, and believes on", o, -1, 0}, &c, "")
		}

	case done:
		if m.mutation == ownerAgain {
			c := *s
			c.owner[o] = owner{phase: trying, left: m.ttl, is: sentRelease}
			emit(step{"sends ACQ to all, once more", o, -1, 0}, &c, "")
		}
	}

	if p := s.owner[o].phase; m.timed && p != idle && p != done {
		c := *s
		c.end(m, o)
		emit(step{"gives up, and sends REL to all", o, -1, 0}, &c, "")
	}
}

func (s *state) end(m *model, o int) {
	me := &s.owner[o]
	*me = owner{phase: done, token: me.token, is: me.is & (wasGranted | sentRenew | sentRepair)}
	if me.is&wasGranted == 0 {
		me.token = 0
	}
	if m.mutation != tombIfUnanswered {
		s.forget(o, granted)
	}
	s.forget(o, confirmed|renewed)
}

// choose emits, for every quorum of answers that may have arrived, the token that they make.
func (m *model) choose(s *state, o int, emit emit) {
	all := 0
	for n := range m.nodes {
		if s.node[n].of[o].is&granted != 0 {
			all |= 1 << n
		}
	}
	for set := all; set > 0; set = (set - 1) & all {
		if bits.OnesCount(uint(set)) < m.quorum() {
			continue
		}
		var token uint8
		for n := range m.nodes {
			if set&(1<<n) != 0 {
				token = max(token, s.node[n].of[o].mint)
			}
		}
		c := *s
		c.owner[o].phase = confirming
		c.owner[o].token = token
		for n := range m.nodes {
			x := &c.node[n].of[o]
			if set&(1<<n) == 0 {
				x.is &^= granted
			} else if x.mint == token {
				x.is |= confirmed
			}
			x.mint = 0
		}
		emit(step{"has a quorum, which makes", o, -1, token}, &c, "")
	}
}

// grant emits that owner o is granted, and says whether it must not be.
func (m *model) grant(s *state, o int, emit emit) {
	c := *s
	me := &c.owner[o]
	me.phase = held
	me.is |= wasGranted
	if m.mutation == validFromReply {
		me.left = m.ttl
	}
	if m.mutation == leaveReleases {
		for n := range m.nodes {
			if x := &c.node[n].of[o]; x.is&granted == 0 {
				x.is |= leaves
			}
		}
	}
	if m.mutation != tombIfUnanswered {
		c.forget(o, granted)
	}
	c.forget(o, confirmed)
	if !m.timed {
		// Nothing that it does from now on matters, and its locks may vanish now as well as later.
		for n := range m.nodes {
			if c.node[n].lock == uint8(o+1) {
				c.node[n].lock = 0
			}
		}
	}
	broken := ""
	for other := range m.owners {
		you := &c.owner[other]
		if other == o || you.is&wasGranted == 0 {
			continue
		}
		if you.phase == held && m.timed {
			you.is |= overtaken
		}
		if !m.tokens || you.token < me.token || broken != "" {
			continue
		}
		switch {
		case you.token == me.token:
			broken = m.breaks(distinct, "%s and %s have the same", name(other), name(o))
		case m.timed:
			broken = m.breaks(byGrant, "%s, granted before %s, has a greater one", name(other), name(o))
		case me.before&(1<<other) != 0:
			broken = m.breaks(inOrder, "%s, granted before %s began, has a greater one", name(other), name(o))
		}
	}
	emit(step{"is GRANTED", o, -1, me.token}, &c, broken)
}

// renewing emits what owner o, which holds, does to renew.
func (m *model) renewing(s *state, o int, emit emit) {
	me := &s.owner[o]
	if me.left > 0 {
		c := *s
		c.owner[o].renew = 1 + m.ttl
		c.owner[o].is |= sentRenew
		if m.mutation != renewStale {
			c.forget(o, renewed)
		}
		emit(step{"sends RENEW to all", o, -1, 0}, &c, "")
	}
	if (me.left > 0 || m.mutation == lateRenewal) && me.renew > 0 && s.count(o, renewed) >= m.quorum() {
		c := *s
		c.owner[o].left = me.renew - 1
		if m.mutation == renewFromReply {
			c.owner[o].left = m.ttl
		}
		c.owner[o].renew = 0
		c.owner[o].is |= sentRepair
		c.forget(o, renewed)
		emit(step{"has RENEWED, and sends REPAIR", o, -1, 0}, &c, "")
	}
}

// deliveries emits what becomes of the messages of owner o to node n that may be under way.
func (m *model) deliveries(s *state, o, n int, emit emit) {
	me, d := &s.owner[o], &s.node[n]
	if me.phase == idle {
		return
	}
	id, tomb := uint8(o+1), uint8(1)<<o
	entombed := d.tombs&tomb != 0 && m.mutation != noTombstone &&
		(m.mutation != tombIfUnanswered || d.of[o].is&granted == 0)

	// ACQ.
	switch {
	case entombed, !m.duplicates && d.of[o].is&acquired != 0:
	case d.lock == 0:
		m.mint(s, n, func(c *state, token uint8) {
			x := &c.node[n].of[o]
			c.node[n].lock = id
			if m.timed {
				c.node[n].left = m.ttl
			}
			if !m.duplicates {
				x.is |= acquired
			}
			if x.is&granted != 0 && me.phase == trying && m.tokens {
				emit(step{"ACQ again, granted but not answered", o, n, token}, c, "") // it keeps the earlier answer
			}
			if me.phase == trying {
				x.is |= granted
				x.mint = token
			}
			emit(step{"ACQ granted", o, n, token}, c, "")
		})
	case d.lock == id:
		c := *s
		x := &c.node[n].of[o]
		if m.timed {
			c.node[n].left = m.ttl
		}
		emit(step{"ACQ again, granted but not answered", o, n, x.mint}, &c, "")
		if me.phase == trying {
			x.is |= granted
			x.mint = d.fence
			emit(step{"ACQ again, granted", o, n, x.mint}, &c, "")
		}
	}

	if m.tokens && me.phase == confirming && me.phase.sends(protocol.Confirm) && d.of[o].is&confirmed == 0 {
		m.confirm(s, o, n, emit)
	}

	released := me.phase.sends(protocol.Leave) || me.phase.sends(protocol.LineUp) || me.is&sentRelease != 0
	if m.timed && released && (d.tombs&tomb == 0 || d.lock == id || m.mutation == releaseUnowned) {
		c := *s
		if d.lock == id || m.mutation == releaseUnowned {
			c.node[n].lock, c.node[n].left = 0, 0
		}
		if m.mutation != ownerAgain && (m.mutation != noTombstone || m.looksAt(noOrphan)) {
			c.node[n].tombs |= tomb
		}
		emit(step{"REL", o, n, 0}, &c, "")
	}

	if d.of[o].is&leaves != 0 && d.lock == id {
		c := *s
		c.node[n].lock, c.node[n].left = 0, 0
		emit(step{"LEAVE, which frees the lock", o, n, 0}, &c, "")
	}

	if me.is&sentRenew != 0 && d.lock == id {
		c := *s
		c.node[n].left = m.ttl
		if me.phase == held && me.renew > 0 {
			c.node[n].of[o].is |= renewed
		}
		emit(step{"RENEW ok", o, n, 0}, &c, "")
	}

	early := m.mutation == repairMajority && me.phase == held && me.renew > 0
	if (me.is&sentRepair != 0 || early) && (!entombed || m.mutation == repairUntombed) &&
		(d.lock == 0 || m.mutation == repairTaken && d.lock != id) {
		c := *s
		c.node[n].lock, c.node[n].left, c.node[n].fence = id, m.ttl, max(d.fence, me.token)
		if early {
			c.node[n].of[o].is |= renewed
		}
		emit(step{"REPAIR", o, n, me.token}, &c, "")
	}
}

// confirm emits the delivery of CONFIRM. A refusal changes nothing, so it is as if the message were lost.
func (m *model) confirm(s *state, o, n int, emit emit) {
	me, d := &s.owner[o], &s.node[n]
	owned := d.lock == uint8(o+1) || m.mutation == confirmUnowned
	newer := m.mutation == confirmNewer || m.mutation == confirmAny
	counted := d.of[o].is&granted != 0 || m.mutation != confirmNewer
	if owned && counted && (d.fence <= me.token || newer) {
		c := *s
		c.node[n].fence = max(d.fence, me.token)
		c.node[n].of[o].is |= confirmed
		emit(step{"CONFIRM ok", o, n, me.token}, &c, "")
	} else if m.mutation == confirmRaisesFirst && d.fence < me.token {
		c := *s
		c.node[n].fence = me.token
		emit(step{"CONFIRM refused, but the fence raised", o, n, me.token}, &c, "")
	}
}

// mint emits what node n may make its next token: any greater than its fence, since its clock may say anything.
func (m *model) mint(s *state, n int, emit func(c *state, token uint8)) {
	c := *s
	if !m.tokens {
		emit(&c, 0)
		return
	}
	top := m.maxToken
	if m.order {
		// Twice the ranks, so that there is a value between any two, and one beyond.
		top = 0
		c.values(func(v *uint8) {
			*v *= 2
			top = max(top, *v+1)
		})
	}
	from := c.node[n].fence + 1
	if m.mutation == mintAgain && from > 1 {
		from--
	}
	for token := from; token <= top; token++ {
		d := c
		d.node[n].fence = token
		emit(&d, token)
	}
}

// nodeSteps are what node n may do by itself.
func (m *model) nodeSteps(s *state, n int, emit emit) {
	d := &s.node[n]
	if d.lock > 0 && (d.left == 0 || m.mutation == expiresEarly) {
		c := *s
		c.node[n].lock, c.node[n].left = 0, 0
		emit(step{"the lock expires", -1, n, 0}, &c, "")
	}
	// Other owners come and go, and messages arrive from owners whose further fate does not matter.
	if m.ghosts && m.tokens && (d.lock == 0 || s.owner[d.lock-1].phase >= held) {
		m.mint(s, n, func(c *state, token uint8) {
			emit(step{"another owner's request raises the fence", -1, n, token}, c, "")
		})
	}
	switch m.mutation {
	case restartLater:
		if d.left == 0 {
			c := *s
			c.node[n].lock, c.node[n].tombs = 0, 0
			emit(step{"the node restarts empty", -1, n, 0}, &c, "")
		}
	case restartEmpty:
		c := *s
		c.node[n].lock, c.node[n].left, c.node[n].fence, c.node[n].tombs = 0, 0, 0, 0
		emit(step{"the node restarts empty", -1, n, 0}, &c, "")
	case restartBack:
		// If its clock were ahead, this would change nothing: all that counts is that mints are greater.
		c := *s
		c.node[n].fence = 0
		emit(step{"the node forgets its fence", -1, n, 0}, &c, "")
	}
}

// tick emits that time passes, for all alike.
func (m *model) tick(s *state, emit emit) {
	c := *s
	for n := range m.nodes {
		c.node[n].left -= min(1, c.node[n].left)
	}
	for o := range m.owners {
		me := &c.owner[o]
		me.left -= min(1, me.left)
		if me.renew > 0 {
			me.renew = max(1, me.renew-1)
		}
	}
	if c != *s {
		emit(step{"a tick", -1, -1, 0}, &c, "")
	}
}
