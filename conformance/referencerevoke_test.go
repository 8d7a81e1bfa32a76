package conformance

import (
	"context"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
)

// The reference's revocation: holders are told when they renew.

// revocation is what broken stores do in another way.
type revocation struct {
	marks    func(s *store, name string, h *record, r *locker.Revocation)
	says     func(r *locker.Revocation) error        // to the holder
	spares   func(holders []*record) []*record       // those that are not taken away
	releases func(s *store, name string, h *record)  // frees what a holder had that was revoked
	breaks   func(s *store, name string, h *record)  // frees what somebody has
	answers  func(err error) error                   // to who takes a lock away
	broken   func(s *store, owner locker.Owner) bool // what was broken is renewed
}

func referenceRevocation() revocation {
	return revocation{
		marks:    func(_ *store, _ string, h *record, r *locker.Revocation) { h.revoked = r },
		says:     func(r *locker.Revocation) error { return fmt.Errorf("%w: %w", locker.ErrLost, r) },
		spares:   func([]*record) []*record { return nil },
		releases: (*store).freeRecord,
		breaks:   (*store).freeRecord,
		answers:  func(err error) error { return err },
		broken:   func(*store, locker.Owner) bool { return false },
	}
}

// freeRecord takes the key away from one of its holders.
func (s *store) freeRecord(name string, h *record) {
	if s.held[name] == h {
		s.free(name)
	} else {
		s.freeBeside(name, func(other *record) bool { return other == h })
	}
}

// records returns those of the holders of a key.
func (s *store) records(name string) []*record {
	if held := s.held[name]; held != nil {
		return []*record{held}
	}
	return append([]*record(nil), s.beside[name]...)
}

// isRevoked returns what is said to an owner who renews what was taken away from him, or nil.
func (s *store) isRevoked(h *record) error {
	if h.revoked == nil {
		return nil
	}
	return s.revocation.says(h.revoked)
}

// takeAway is Revoke and Break.
func (s *store) takeAway(name string, r *locker.Revocation) error {
	holders := s.records(name)
	spared := make(map[*record]bool)
	for _, h := range s.revocation.spares(holders) {
		spared[h] = true
	}
	found := false
	for _, h := range holders {
		switch {
		case !r.Broken && h.revoked != nil:
			continue
		case spared[h]:
		case r.Broken:
			s.revocation.breaks(s, name, h)
		default:
			s.revocation.marks(s, name, h, r)
		}
		found = true
	}
	if !found {
		return s.revocation.answers(locker.ErrNotHeld)
	}
	return s.revocation.answers(nil)
}

// Revoke implements locker.Revoker.
func (q queued) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	return q.takeAway(ctx, name, r)
}

// Break implements locker.Revoker.
func (q queued) Break(ctx context.Context, name string, r *locker.Revocation, _ bool) error {
	return q.takeAway(ctx, name, r)
}

func (q queued) takeAway(ctx context.Context, name string, r *locker.Revocation) (err error) {
	if failure := q.ask(ctx, func(s *store) { err = s.takeAway(name, r) }); failure != nil {
		return failure
	}
	return err
}

// pushTo sets the expiry of a record, whatever its kind.
func (s *store) pushTo(name string, h *record, at time.Time) {
	if s.held[name] == h {
		s.expireAfter(h, time.Until(at))
	} else {
		s.setExpiryBeside(name, h, at)
	}
}
