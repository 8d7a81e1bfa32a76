package conformance

import (
	"time"

	"github.com/lockerkit/locker"
)

// adopts returns a store in which locks change their owner in another way.
func adopts(adopt func(s *store, h *record, r locker.Request, from locker.Grant) bool) func(*store) {
	return func(s *store) { s.adopts = adopt }
}

// adoptRecord is how the reference does it: it reports whether the lock was that owner's.
func adoptRecord(s *store, h *record, r locker.Request, from locker.Grant) bool {
	if h.revoked != nil || h.grant.Owner != from.Owner && h.grant.Owner != r.Owner {
		return false
	}
	h.grant.Request = r
	s.pushTo(s.nameOf(r), h, time.Now().Add(r.TTL))
	return true
}

// detachDefects are broken in how a lease moves to another process.
var detachDefects = []defect{
	{
		name: "a ticket is good for more than one",
		store: func(s *store) {
			owners := make(map[locker.Owner]bool)
			s.adopts = func(s *store, h *record, r locker.Request, from locker.Grant) bool {
				if owners[h.grant.Owner] {
					from.Owner = h.grant.Owner
				}
				owners[r.Owner] = adoptRecord(s, h, r, from)
				return owners[r.Owner]
			}
		},
		caught: []string{"detach/OnlyOnce"},
		fine:   []string{"detach/MovesToAnother", "detach/EndsByTTL"},
	},
	{
		name: "a ticket is good for whoever holds the key",
		store: adopts(func(s *store, h *record, r locker.Request, from locker.Grant) bool {
			from.Owner = h.grant.Owner
			return adoptRecord(s, h, r, from)
		}),
		caught: []string{"detach/OnlyOnce", "detach/EndsByTTL"},
		fine:   []string{"exclusion/OneHolder"},
	},
	{
		name: "the owner stays",
		store: adopts(func(s *store, h *record, r locker.Request, from locker.Grant) bool {
			owner := h.grant.Owner
			done := adoptRecord(s, h, r, from)
			if done {
				h.grant.Owner = owner
			}
			return done
		}),
		caught: []string{"detach/OnlyOnce", "detach/MovesToAnother"},
		fine:   []string{"detach/EndsByTTL"},
	},
	{
		name: "who adopts is not the holder of the lease, which goes on to its end",
		store: adopts(func(_ *store, h *record, _ locker.Request, from locker.Grant) bool {
			return h.grant.Owner == from.Owner
		}),
		caught: []string{"detach/MovesToAnother", "detach/OnlyOnce"},
		fine:   []string{"detach/EndsByTTL"},
	},
}
