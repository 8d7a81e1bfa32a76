package conformance

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
)

// revokes returns a store that does something else to who is revoked.
func revokes(change func(*revocation)) func(*store) {
	return func(s *store) { change(&s.revocation) }
}

// freeUnserved takes the key away from one of its holders, and serves nobody.
func freeUnserved(s *store, name string, h *record) {
	line := s.lines[name]
	s.lines[name] = nil
	s.freeRecord(name, h)
	s.lines[name] = line
}

// revokeDefects are broken in how locks are taken away.
var revokeDefects = []defect{
	{
		name: "Revoke frees the key at once",
		store: revokes(func(r *revocation) {
			r.marks = func(s *store, name string, h *record, _ *locker.Revocation) { s.freeRecord(name, h) }
		}),
		caught: []string{"revoke/TellsTheHolder", "revoke/StubbornHolderEndsByTTL", "revoke/FrozenHolderEndsByTTL"},
		fine:   []string{"break/FreesNow", "unlock/FreesAtOnce"},
	},
	{
		name: "Revoke does nothing",
		store: revokes(func(r *revocation) {
			r.marks = func(*store, string, *record, *locker.Revocation) {}
		}),
		caught: []string{"revoke/TellsTheHolder", "revoke/StubbornHolderEndsByTTL", "revoke/LeadStepsDown"},
		fine:   []string{"break/FreesNow", "break/OldHolderIsTold"},
	},
	{
		name: "Revoke is about the key, whoever has it",
		store: func(s *store) {
			names := make(map[string]*locker.Revocation)
			s.revocation.marks = func(_ *store, name string, h *record, r *locker.Revocation) {
				h.revoked, names[name] = r, r
			}
			s.granted = func(s *store, name string) {
				for _, h := range s.records(name) {
					if r := names[name]; r != nil {
						h.revoked = r
					}
				}
			}
		},
		caught: []string{"revoke/OnlyTheHolder"},
		fine:   []string{"revoke/StubbornHolderEndsByTTL", "break/FreesNow"},
	},
	{
		name: "Revoke is about all keys",
		store: revokes(func(r *revocation) {
			r.marks = func(s *store, _ string, _ *record, r *locker.Revocation) {
				for _, h := range s.held {
					h.revoked = r
				}
				for _, holders := range s.beside {
					for _, h := range holders {
						h.revoked = r
					}
				}
			}
		}),
		caught: []string{"revoke/OnlyTheHolder"},
		fine:   []string{"revoke/TellsTheHolder", "revoke/StubbornHolderEndsByTTL"},
	},
	{
		name: "Revoke is about the first of several holders",
		store: revokes(func(r *revocation) {
			r.spares = func(holders []*record) []*record { return holders[min(1, len(holders)):] }
		}),
		caught: []string{"revoke/TellsTheHolder", "break/FreesNow"},
		fine:   []string{"revoke/StubbornHolderEndsByTTL", "revoke/OnlyTheHolder"},
	},
	{
		name: "the holder is not told why",
		store: revokes(func(r *revocation) {
			r.says = func(r *locker.Revocation) error {
				return fmt.Errorf("%w: %w", locker.ErrLost, &locker.Revocation{By: r.By})
			}
		}),
		caught: []string{"revoke/TellsTheHolder"},
		fine:   []string{"break/FreesNow"},
	},
	{
		name: "the holder is not told that it was revoked",
		store: revokes(func(r *revocation) {
			r.says = func(*locker.Revocation) error { return locker.ErrLost }
		}),
		caught: []string{"revoke/TellsTheHolder"},
		fine:   []string{"break/FreesNow"},
	},
	{
		name: "Revoke makes the lease last for another TTL and a half",
		store: revokes(func(r *revocation) {
			r.marks = func(s *store, name string, h *record, r *locker.Revocation) {
				h.revoked = r
				s.pushTo(name, h, time.Now().Add(5*h.grant.TTL/2))
			}
		}),
		caught: []string{"revoke/StubbornHolderEndsByTTL", "revoke/FrozenHolderEndsByTTL"},
		fine:   []string{"revoke/TellsTheHolder", "revoke/OnlyTheHolder", "break/FreesNow"},
	},
	{
		name: "Revoke shortens the lease",
		store: revokes(func(r *revocation) {
			r.marks = func(s *store, name string, h *record, r *locker.Revocation) {
				h.revoked = r
				s.pushTo(name, h, time.Now().Add(h.grant.TTL/2))
			}
		}),
		caught: []string{"revoke/StubbornHolderEndsByTTL", "revoke/FrozenHolderEndsByTTL"},
		fine:   []string{"revoke/NotHeld", "break/FreesNow"},
	},
	{
		name: "who was revoked cannot give the key back",
		store: revokes(func(r *revocation) {
			r.releases = func(*store, string, *record) {}
		}),
		caught: []string{"revoke/TellsTheHolder", "revoke/OnlyTheHolder"},
		fine:   []string{"revoke/StubbornHolderEndsByTTL", "break/FreesNow"},
	},
	{
		name: "nobody is served when who was revoked gives the key back",
		store: revokes(func(r *revocation) {
			r.releases = freeUnserved
		}),
		caught: []string{"revoke/LeadStepsDown", "revoke/TellsTheHolder"},
		fine:   []string{"break/FreesNow", "unlock/FreesAtOnce"},
	},
	{
		name: "to take away what nobody holds is no error",
		store: revokes(func(r *revocation) {
			r.answers = func(error) error { return nil }
		}),
		caught: []string{"revoke/NotHeld"},
		fine:   []string{"revoke/TellsTheHolder", "break/FreesNow"},
	},
	{
		name: "Break keeps the key until the lease has ended",
		store: revokes(func(r *revocation) {
			r.breaks = func(_ *store, _ string, h *record) { h.revoked = &locker.Revocation{Broken: true, Reason: why} }
		}),
		caught: []string{"break/FreesNow"},
		fine:   []string{"break/OldHolderIsTold", "revoke/TellsTheHolder"},
	},
	{
		name: "Break frees the key, and serves nobody",
		store: revokes(func(r *revocation) {
			r.breaks = freeUnserved
		}),
		caught: []string{"break/FreesNow"},
		fine:   []string{"break/OldHolderIsTold", "revoke/TellsTheHolder"},
	},
	{
		name: "Break forgets the last token",
		store: revokes(func(r *revocation) {
			r.breaks = func(s *store, name string, h *record) {
				s.token = 0
				s.freeRecord(name, h)
			}
		}),
		caught: []string{"break/FreesNow"},
		fine:   []string{"break/OldHolderIsTold", "fencing/StrictlyIncreasing"},
	},
	{
		name: "who was broken renews all the same",
		store: func(s *store) {
			broken := make(map[locker.Owner]bool)
			s.revocation.breaks = func(s *store, name string, h *record) {
				broken[h.grant.Owner] = true
				s.freeRecord(name, h)
			}
			s.revocation.broken = func(_ *store, owner locker.Owner) bool { return broken[owner] }
		},
		caught: []string{"break/OldHolderIsTold"},
		fine:   []string{"break/FreesNow", "revoke/TellsTheHolder"},
	},
	{
		name: "who was broken frees the key of the next",
		store: func(s *store) {
			broken := make(map[locker.Owner]bool)
			s.revocation.breaks = func(s *store, name string, h *record) {
				broken[h.grant.Owner] = true
				s.freeRecord(name, h)
			}
			right := s.mayRelease
			s.mayRelease = func(holder, caller locker.Request) bool {
				return right(holder, caller) ||
					broken[caller.Owner]
			}
			s.revocation.broken = func(_ *store, owner locker.Owner) bool { return broken[owner] }
		},
		caught: []string{"break/OldHolderHarmsNobody"},
		fine:   []string{"break/FreesNow", "revoke/TellsTheHolder"},
	},
	{
		name: "a second Revoke is told that it was the first",
		store: revokes(func(r *revocation) {
			revoked := false
			r.marks = func(_ *store, _ string, h *record, r *locker.Revocation) { h.revoked, revoked = r, true }
			r.answers = func(err error) error {
				if revoked && errors.Is(err, locker.ErrNotHeld) {
					return nil
				}
				return err
			}
		}),
		caught: []string{"revoke/NotHeld"},
		fine:   []string{"revoke/TellsTheHolder", "revoke/LeadStepsDown"},
	},
}
