//go:build !race

package redlockmodel

import (
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var large = flag.Bool("large", false,
	"explore the large models too: ten minutes or more (see -timeout), and 4 GB of memory")

var (
	// untimed is for the tokens, without any time.
	untimed = model{nodes: 3, owners: 2, tokens: true, maxToken: 3, duplicates: true, ghosts: true}
	// timed is for exclusion, with time.
	timed = model{nodes: 3, owners: 2, timed: true, ttl: 2, renewals: true, duplicates: true}
	// grants is for the order of grants: tokens with time. What renewals do to tokens, ghosts do in untimed.
	grants = model{nodes: 3, owners: 2, timed: true, ttl: 1, tokens: true, maxToken: 3, duplicates: true}
)

type change func(*model)

// with is m after some changes.
func (m model) with(changes ...change) *model {
	for _, change := range changes {
		change(&m)
	}
	return &m
}

func nodes(n int) change       { return func(m *model) { m.nodes = n } }
func owners(n int) change      { return func(m *model) { m.owners = n } }
func ttl(n uint8) change       { return func(m *model) { m.ttl = n } }
func has(f mutation) change    { return func(m *model) { m.mutation = f } }
func only(cs ...claim) change  { return func(m *model) { m.only = cs } }
func ghosts(yes bool) change   { return func(m *model) { m.ghosts = yes } }
func renewals(yes bool) change { return func(m *model) { m.renewals = yes } }
func once(m *model)            { m.duplicates = false }
func unbounded(m *model)       { m.order = true }

// explore is m.explore, with its figures in the log.
func explore(t *testing.T, m *model) result {
	t.Helper()
	start := time.Now()
	r := m.explore()
	t.Logf("%d states, depth %d, in %v", r.states, r.depth, time.Since(start).Round(time.Millisecond))
	return r
}

// TestClaims explores the protocol as it is, to the end: no claim is broken.
func TestClaims(t *testing.T) {
	tokens := []string{"sends ACQ to all", "ACQ granted", "CONFIRM ok", "is GRANTED", "the lock expires"}
	locks := []string{"sends ACQ to all", "ACQ granted", "is GRANTED", "the lock expires", "REL"}
	renew := append(slices.Clone(locks), "sends RENEW to all", "RENEW ok", "has RENEWED, and sends REPAIR")
	// Where messages are duplicated, a repair leads nowhere that a late ACQ does not lead to.
	repair := append(slices.Clone(renew), "REPAIR")
	for _, c := range []struct {
		name  string
		m     *model
		large bool
		seen  []string // steps that lead to new states: the model does something
	}{
		{"tokens", untimed.with(), false, tokens},
		{"tokens/unbounded", untimed.with(unbounded, once, ghosts(false)), false, tokens},
		{"tokens/unbounded and ghosts", untimed.with(unbounded, once), true, tokens},
		{"tokens/unbounded, duplicates and ghosts", untimed.with(unbounded), true, tokens},
		{"tokens/3 owners", untimed.with(owners(3)), true, tokens},
		{"tokens/4 nodes", untimed.with(nodes(4)), true, tokens},
		{"tokens/5 nodes", untimed.with(nodes(5)), true, tokens},

		{"exclusion", timed.with(), false, renew},
		{"exclusion/messages once", timed.with(once, ttl(1)), false, repair},
		{"exclusion/messages once, ttl 2", timed.with(once), true, repair},
		{"exclusion/ttl 3", timed.with(ttl(3)), true, renew},
		{"exclusion/3 owners", timed.with(owners(3)), true, renew},
		{"exclusion/4 nodes", timed.with(nodes(4)), true, renew},
		{"exclusion/5 nodes", timed.with(nodes(5)), true, renew},

		{"grants/messages once, no tombstones", grants.with(once, has(noTombstone), only(distinct, byGrant)), false,
			append(tokens, "REL")},
		{"grants", grants.with(), true, append(tokens, "REL")},
		{"grants/ttl 2", grants.with(ttl(2)), true, append(tokens, "REL")},
		{"grants/ttl 2, messages once", grants.with(ttl(2), once), true, append(tokens, "REL")},
		{"grants/ttl 2, messages once, unbounded", grants.with(ttl(2), once, unbounded), true, append(tokens, "REL")},
		{"grants/ttl 2, messages once, ghosts", grants.with(ttl(2), once, ghosts(true)), true, append(tokens, "REL")},
		{"grants/renewals and ghosts", grants.with(renewals(true), ghosts(true)), true, renew},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.large && !*large {
				t.Skip("without -large")
			}
			r := explore(t, c.m)
			if r.broken != "" {
				t.Errorf("%s%s", r.broken, r.trace)
			}
			for _, what := range c.seen {
				if !r.seen[what] {
					t.Errorf("it never happened: %s; what did: %v", what, slices.Sorted(maps.Keys(r.seen)))
				}
			}
		})
	}
}

// TestMutations does one thing wrong at a time: that the claims hold where they hold says something. With -v, it shows
// how they break.
func TestMutations(t *testing.T) {
	for _, c := range []struct {
		mutation
		m      *model
		breaks []claim
	}{
		{noWriteBack, untimed.with(), []claim{distinct, inOrder}},
		{noWriteBack, grants.with(once), []claim{byGrant}},
		{confirmByFew, untimed.with(), []claim{distinct, inOrder}},
		{confirmUnowned, untimed.with(), []claim{distinct}},
		{confirmNewer, untimed.with(), []claim{distinct}},
		{confirmAny, untimed.with(once), []claim{distinct}},
		{mintAgain, untimed.with(), []claim{distinct}},

		{halfQuorum, untimed.with(), []claim{distinct, inOrder}},
		{halfQuorum, timed.with(), []claim{exclusion}},
		{validFromReply, timed.with(), []claim{exclusion}},
		{validFromReply, grants.with(once), []claim{byGrant}},
		{renewFromReply, timed.with(), []claim{exclusion}},
		{renewStale, timed.with(), []claim{exclusion}},
		{releaseUnowned, timed.with(owners(3), renewals(false)), []claim{exclusion}},
		{releaseFirst, timed.with(), []claim{exclusion}},
		{leaveReleases, timed.with(), []claim{exclusion}},
		{clockSlow, timed.with(), []claim{exclusion}},
		{ownerAgain, timed.with(), []claim{exclusion}},
		{repairTaken, timed.with(), []claim{exclusion}},
		{noTombstone, timed.with(), []claim{noOrphan}},
		{repairUntombed, timed.with(), []claim{noOrphan}},
		{tombIfUnanswered, timed.with(renewals(false)), []claim{noOrphan}},
		{tombIfUnanswered, timed.with(once), []claim{noOrphan}},
		{lateRenewal, timed.with(once), []claim{continuity}},

		{expiresEarly, timed.with(), []claim{exclusion}},
		{expiresEarly, grants.with(once), []claim{byGrant}},
		{restartEmpty, timed.with(), []claim{exclusion}},
		{restartEmpty, untimed.with(), []claim{distinct, inOrder}},
		{restartBack, untimed.with(), []claim{distinct, inOrder}},
	} {
		for _, broken := range c.breaks {
			t.Run(string(c.mutation)+"/"+string(broken), func(t *testing.T) {
				t.Parallel()
				r := explore(t, c.m.with(has(c.mutation), only(broken)))
				if r.broken == "" {
					t.Fatal("it should break, and does not")
				}
				t.Logf("%s%s", r.broken, r.trace)
			})
		}
	}
}

// TestHarmless does what looks wrong, and breaks nothing of what is said here. It explores each to the end.
func TestHarmless(t *testing.T) {
	safe := only(exclusion, continuity)
	for _, c := range []struct {
		mutation
		m     *model
		large bool
	}{
		{confirmRaisesFirst, untimed.with(), true},
		{confirmRaisesFirst, untimed.with(once), false},
		{confirmNewer, untimed.with(once), false},
		{confirmAny, grants.with(), true},
		{restartLater, timed.with(ttl(1), safe), false},
		{noTombstone, timed.with(ttl(1), safe), false},
		{noTombstone, timed.with(once, safe), true},
		{tombIfUnanswered, timed.with(once, ttl(1), renewals(false)), false},
		{repairMajority, timed.with(ttl(1)), false},
		{repairMajority, timed.with(once, ttl(1)), true},
		{lateRenewal, timed.with(only(exclusion)), true},
	} {
		t.Run(string(c.mutation), func(t *testing.T) {
			t.Parallel()
			if c.large && !*large {
				t.Skip("without -large")
			}
			if r := explore(t, c.m.with(has(c.mutation))); r.broken != "" {
				t.Errorf("%s%s", r.broken, r.trace)
			}
		})
	}
}

// TestKey walks at random: a key has all of a state in it, but for the order of the nodes.
func TestKey(t *testing.T) {
	count := func(nodes [maxNodes]node) map[node]int {
		n := map[node]int{}
		for _, d := range nodes {
			n[d]++
		}
		return n
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, m := range []*model{untimed.with(unbounded, owners(3), nodes(5)), timed.with(ttl(3), once), grants.with()} {
		for range 100 {
			var s state
			for range 30 {
				var next []state
				m.next(&s, func(_ step, c *state, _ string) { next = append(next, *c) })
				if len(next) == 0 {
					break
				}
				s = next[r.IntN(len(next))]
				if m.order {
					s.compress()
				}
				k := s.key(m.nodes)
				if back := k.state(m.nodes); back.owner != s.owner || !maps.Equal(count(back.node), count(s.node)) {
					t.Fatalf("%+v\nbecomes\n%+v", s, back)
				}
				r.Shuffle(m.nodes, func(i, j int) { s.node[i], s.node[j] = s.node[j], s.node[i] })
				if s.key(m.nodes) != k {
					t.Fatalf("%+v\nhas another key with its nodes in another order", s)
				}
			}
		}
	}
}
