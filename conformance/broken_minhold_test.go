package conformance

import (
	"time"

	"github.com/lockerkit/locker"
)

// keeps returns a store that does something else with what is to be kept.
func keeps(keep func(s *store, name string, h *record, g locker.Grant)) func(*store) {
	return func(s *store) { s.keep = keep }
}

// keepRecord has nobody own a record, which ends after a while.
func keepRecord(s *store, name string, h *record, d time.Duration) {
	h.grant.Owner, h.revoked = locker.Owner{}, &locker.Revocation{}
	s.pushTo(name, h, time.Now().Add(d))
}

// minHoldDefects are broken in how keys are kept from others.
var minHoldDefects = []defect{
	{
		name:   "MinHold is not heeded",
		store:  keeps(func(s *store, name string, h *record, _ locker.Grant) { s.freeRecord(name, h) }),
		caught: []string{"minhold/KeepsTheKey", "minhold/OwnerIsDone"},
		fine:   []string{"minhold/NoLonger", "unlock/FreesAtOnce"},
	},
	{
		name:   "a key is kept for twice as long",
		store:  keeps(func(s *store, name string, h *record, g locker.Grant) { keepRecord(s, name, h, 2*g.Keep) }),
		caught: []string{"minhold/KeepsTheKey"},
		fine:   []string{"minhold/NoLonger", "unlock/FreesAtOnce"},
	},
	{
		name:   "a key is kept for a TTL",
		store:  keeps(func(s *store, name string, h *record, g locker.Grant) { keepRecord(s, name, h, g.TTL) }),
		caught: []string{"minhold/KeepsTheKey"},
		fine:   []string{"unlock/FreesAtOnce"},
	},
	{
		name: "a key is kept for half a TTL at most",
		store: keeps(func(s *store, name string, h *record, g locker.Grant) {
			keepRecord(s, name, h, min(g.Keep, g.TTL/2))
		}),
		caught: []string{"minhold/KeepsTheKey"},
		fine:   []string{"minhold/NoLonger"},
	},
	{
		name:   "a key is kept after each Unlock",
		store:  keeps(func(s *store, name string, h *record, g locker.Grant) { keepRecord(s, name, h, g.MinHold) }),
		caught: []string{"minhold/NoLonger"},
		fine:   []string{"unlock/FreesAtOnce"},
	},
}
