package conformance

import (
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// The reference's locks of other modes: it has a list of holders for each key, which all have the same mode. Only its
// Lockers with a line have them.

// modes is what broken stores do in another way.
type modes struct {
	admits              func(holders []*record, r locker.Request) bool
	slot                func(holders []*record, r locker.Request) int // of a new holder
	overtakes           func(s *store, name string, r locker.Request) bool
	expiry              func(s *store, name string, of *record) // is called when a holder is new or renewed
	together            int                                     // how many get in together
	servesWhenOneLeaves bool                                    // the line
	ends                func(holder, caller locker.Request) bool
	minted              func(s *store, g *locker.Grant)
}

func referenceModes() modes {
	return modes{
		admits: func(holders []*record, r locker.Request) bool {
			if len(holders) == 0 {
				return true
			}
			switch mode := holders[0].grant.Mode; r.Mode {
			case locker.ModeShared:
				return mode == locker.ModeShared
			case locker.ModeSlots:
				return mode == locker.ModeSlots && len(holders) < r.Slots
			default:
				return false
			}
		},
		slot:                smallestFree,
		overtakes:           func(*store, string, locker.Request) bool { return false },
		expiry:              func(*store, string, *record) {},
		together:            1 << 30,
		servesWhenOneLeaves: true,
		ends:                func(holder, caller locker.Request) bool { return holder.Owner == caller.Owner },
		minted:              func(*store, *locker.Grant) {},
	}
}

func smallestFree(holders []*record, _ locker.Request) int {
	for slot := 0; ; slot++ {
		if !slices.ContainsFunc(holders, func(h *record) bool { return h.grant.Slot == slot }) {
			return slot
		}
	}
}

// holderOf returns the request of a holder of a key that has one.
func (s *store) holderOf(name string) locker.Request {
	if held := s.held[name]; held != nil {
		return held.grant.Request
	}
	return s.beside[name][0].grant.Request
}

// acquireBeside is acquire for a key that nobody has exclusively.
func (s *store) acquireBeside(r locker.Request) (locker.Grant, error) {
	name := s.nameOf(r)
	holders := s.beside[name]
	for _, h := range holders {
		if h.revoked == nil && s.knows(h.grant.Request, r) {
			s.expireBesideAfter(name, h, r.TTL)
			return h.grant, nil
		}
	}
	inLine := len(holders) > 0 && len(s.lines[s.lineOf(r)]) > 0 && !s.modes.overtakes(s, name, r)
	if !inLine && s.modes.admits(holders, r) {
		return s.grant(r), nil
	}
	return locker.Grant{}, &locker.Held{
		Holder: s.tells(holders[0].grant.Request, r), Remaining: time.Until(holders[0].expires),
	}
}

func (s *store) grantBeside(h *record) locker.Grant {
	r := h.grant.Request
	name := s.nameOf(r)
	if r.Mode == locker.ModeSlots {
		h.grant.Slot = s.modes.slot(s.beside[name], r)
	}
	s.modes.minted(s, &h.grant)
	s.beside[name] = append(s.beside[name], h)
	s.expireBesideAfter(name, h, r.TTL)
	s.granted(s, name)
	return h.grant
}

func (s *store) expireBesideAfter(name string, h *record, ttl time.Duration) {
	s.setExpiryBeside(name, h, time.Now().Add(s.keptFor(ttl)))
	s.modes.expiry(s, name, h)
}

func (s *store) setExpiryBeside(name string, h *record, at time.Time) {
	h.expires = at
	if h.timer != nil {
		h.timer.Stop()
	}
	h.timer = time.AfterFunc(time.Until(at), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !time.Now().Before(h.expires) {
			s.freeBeside(name, func(other *record) bool { return other == h })
		}
	})
}

// freeBeside takes the key from some of its holders, and gives it to those who come next.
func (s *store) freeBeside(name string, from func(*record) bool) {
	holders := s.beside[name]
	if len(holders) == 0 {
		return
	}
	at := s.lineOf(holders[0].grant.Request)
	s.beside[name] = slices.DeleteFunc(holders, func(h *record) bool {
		if from(h) {
			h.timer.Stop()
			return true
		}
		return false
	})
	s.serveBeside(name, at)
}

// serveBeside lets those in who lead the line, as far as they are admitted.
func (s *store) serveBeside(name, at string) {
	for n := 0; s.held[name] == nil && n < s.modes.together; n++ {
		line := s.lines[at]
		if len(line) == 0 || !s.modes.admits(s.beside[name], line[0].request) {
			return
		}
		next := line[0]
		s.lines[at] = slices.Delete(s.arrange(freed, line, 0), 0, 1)
		next.granted <- s.grant(next.request)
	}
}

func (s *store) renewBeside(g locker.Grant) error {
	name := s.nameOf(g.Request)
	for _, h := range s.beside[name] {
		if s.mayRenew(h.grant.Request, g.Request) {
			if err := s.isRevoked(h); err != nil {
				return err
			}
			s.expireBesideAfter(name, h, g.TTL)
			return nil
		}
	}
	return locker.ErrLost
}

func (s *store) releaseBeside(g locker.Grant) error {
	name := s.nameOf(g.Request)
	mine := func(h *record) bool { return s.modes.ends(h.grant.Request, g.Request) }
	if !slices.ContainsFunc(s.beside[name], mine) {
		return locker.ErrLost
	}
	if g.MinHold > 0 {
		i := slices.IndexFunc(s.beside[name], mine)
		s.keep(s, name, s.beside[name][i], g)
		return nil
	}
	s.freeBeside(name, mine)
	return nil
}
