package conformance

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// modeDefects are broken in locks for readers and for several slots.
var modeDefects = []defect{
	{
		name: "whoever holds a key excludes everybody",
		store: func(s *store) {
			s.modes.admits = func(holders []*record, _ locker.Request) bool { return len(holders) == 0 }
		},
		caught: []string{
			"shared/ManyReaders", "shared/ReadersEnterTogether", "slots/NeverMore", "slots/SlotsAreDistinct",
		},
		fine: []string{"slots/OneIsExclusive", "exclusion/OneHolder"},
	},
	{
		name:   "a writer gets in beside readers",
		store:  func(s *store) { s.modes.admits = also(locker.ModeExclusive, locker.ModeShared) },
		caught: []string{"shared/WriterExcludes", "shared/LossIsOnlyMine"},
		fine:   []string{"shared/ManyReaders", "slots/OneIsExclusive", "exclusion/OneHolder"},
	},
	{
		name:   "readers overtake a writer that waits",
		store:  func(s *store) { s.modes.overtakes = func(*store, string, locker.Request) bool { return true } },
		caught: []string{"shared/WriterIsNotOvertaken"},
		fine:   []string{"shared/ManyReaders", "shared/WriterExcludes", "waiting/FIFO"},
	},
	{
		name: "readers of a process that reads already overtake a writer",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &reenters{queued: queued{c}, reads: make(map[string]int)}
		},
		caught: []string{"shared/WriterIsNotOvertaken"},
		fine:   []string{"shared/ManyReaders", "shared/WriterExcludes", "shared/ReadersEnterTogether"},
	},
	{
		name:   "readers are let in one by one",
		store:  func(s *store) { s.modes.together = 1 },
		caught: []string{"shared/ReadersEnterTogether"},
		fine:   []string{"shared/ManyReaders", "shared/WriterIsNotOvertaken", "slots/InOrder"},
	},
	{
		name: "all readers have the expiry of the one that came or was renewed last",
		store: func(s *store) {
			s.modes.expiry = func(s *store, name string, of *record) {
				for _, h := range s.beside[name] {
					s.setExpiryBeside(name, h, of.expires)
				}
			}
		},
		caught: []string{"shared/EachEndsByItself"},
		fine:   []string{"shared/ManyReaders", "shared/LossIsOnlyMine"},
	},
	{
		name: "readers live for as long as one of them is renewed",
		store: func(s *store) {
			s.modes.expiry = func(s *store, name string, of *record) {
				for _, h := range s.beside[name] {
					if h.expires.Before(of.expires) {
						s.setExpiryBeside(name, h, of.expires)
					}
				}
			}
		},
		caught: []string{"shared/EachEndsByItself", "slots/CrashedSlotReturns"},
		fine:   []string{"shared/ManyReaders", "shared/LossIsOnlyMine"},
	},
	{
		name: "a reader's shorter TTL shortens those of the others",
		store: func(s *store) {
			s.modes.expiry = func(s *store, name string, of *record) {
				for _, h := range s.beside[name] {
					if h.expires.After(of.expires) {
						s.setExpiryBeside(name, h, of.expires)
					}
				}
			}
		},
		caught: []string{"shared/EachEndsByItself"},
		fine:   []string{"shared/ManyReaders", "shared/ExpiryWakesWriter"},
	},
	{
		name: "the end of a reader's TTL wakes nobody",
		store: func(s *store) {
			s.modes.expiry = func(s *store, name string, of *record) {
				of.timer.Stop()
				of.timer = time.AfterFunc(time.Until(of.expires), func() {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.beside[name] = slices.DeleteFunc(s.beside[name], func(h *record) bool { return h == of })
				})
			}
		},
		caught: []string{"shared/ExpiryWakesWriter", "slots/CrashedSlotReturns"},
		fine:   []string{"shared/ManyReaders", "shared/ReadersEnterTogether", "waiting/WakesOnExpiry"},
	},
	{
		name:   "a writer that gives up blocks the readers behind it",
		store:  func(s *store) { s.modes.servesWhenOneLeaves = false },
		caught: []string{"shared/CancelledWriterLetsReadersIn"},
		fine:   []string{"shared/ReadersEnterTogether", "shared/WriterIsNotOvertaken", "waiting/CancelKeepsOrder"},
	},
	{
		name:   "a reader that unlocks frees the key",
		store:  func(s *store) { s.modes.ends = func(_, _ locker.Request) bool { return true } },
		caught: []string{"shared/LossIsOnlyMine", "shared/WriterExcludes", "slots/SlotsAreDistinct"},
		fine:   []string{"slots/OneIsExclusive", "unlock/FreesAtOnce"},
	},
	{
		name: "all readers have the token of the first",
		store: func(s *store) {
			s.modes.minted = func(s *store, g *locker.Grant) {
				if holders := s.beside[g.Name()]; len(holders) > 0 {
					g.Token = holders[0].grant.Token
				}
			}
		},
		caught: []string{"shared/TokensOverModes", "slots/TokensPerSlot"},
		fine:   []string{"shared/ManyReaders", "fencing/StrictlyIncreasing"},
	},
	{
		name: "each slot counts its tokens",
		store: func(s *store) {
			slots := make(map[int]uint64)
			s.modes.minted = func(_ *store, g *locker.Grant) {
				if g.Mode == locker.ModeSlots {
					slots[g.Slot]++
					g.Token = slots[g.Slot]
				}
			}
		},
		caught: []string{"slots/TokensPerSlot"},
		fine:   []string{"shared/TokensOverModes", "fencing/StrictlyIncreasing"},
	},
	{
		name: "one more than there are slots",
		store: func(s *store) {
			right := s.modes.admits
			s.modes.admits = func(holders []*record, r locker.Request) bool {
				r.Slots++
				return right(holders, r)
			}
		},
		caught: []string{"slots/NeverMore", "slots/SlotsAreDistinct", "slots/OneIsExclusive"},
		fine:   []string{"shared/ManyReaders"},
	},
	{
		name: "the number of a slot is the number of holders",
		store: func(s *store) {
			s.modes.slot = func(holders []*record, _ locker.Request) int { return len(holders) }
		},
		caught: []string{"slots/SlotsAreDistinct"},
		fine:   []string{"slots/NeverMore", "slots/InOrder"},
	},
	{
		name: "a count without owners, which the dead never leave",
		store: func(s *store) {
			s.modes.expiry = func(_ *store, _ string, of *record) {
				if of.grant.Mode == locker.ModeSlots {
					of.timer.Stop()
				}
			}
		},
		caught: []string{"slots/CrashedSlotReturns"},
		fine:   []string{"slots/NeverMore", "slots/InOrder", "shared/EachEndsByItself"},
	},
	{
		name:    "a slot that was granted to who had given up is kept",
		backend: func(_ *testing.T, c *client) locker.Backend { return keepsUnwanted{queued{c}} },
		caught:  []string{"slots/CancelledWaitTakesNone"},
		fine:    []string{"slots/NeverMore", "slots/InOrder"},
	},
	{
		name: "the last to come for a slot is the first to be served",
		store: func(s *store) {
			s.arrange = func(what event, line []*waiter, i int) []*waiter {
				if what == joined {
					return append([]*waiter{line[i]}, line[:i]...)
				}
				return line
			}
		},
		caught: []string{"slots/InOrder", "waiting/FIFO"},
		fine:   []string{"slots/NeverMore", "shared/ManyReaders"},
	},
	{
		name:   "a lock without the option gets in beside slots",
		store:  func(s *store) { s.modes.admits = also(locker.ModeExclusive, locker.ModeSlots) },
		caught: []string{"slots/OneIsExclusive"},
		fine:   []string{"shared/WriterExcludes", "slots/NeverMore"},
	},
	{
		name: "the first holder says how many slots there are",
		store: func(s *store) {
			right := s.modes.admits
			s.modes.admits = func(holders []*record, r locker.Request) bool {
				if len(holders) > 0 {
					r.Slots = holders[0].grant.Slots
				}
				return right(holders, r)
			}
		},
		caught: []string{"slots/DifferentN"},
		fine:   []string{"slots/NeverMore", "slots/InOrder"},
	},
}

// also returns what admits as the reference does, and a mode beside another one.
func also(mode, beside locker.Mode) func([]*record, locker.Request) bool {
	right := referenceModes().admits
	return func(holders []*record, r locker.Request) bool {
		return r.Mode == mode && len(holders) > 0 && holders[0].grant.Mode == beside || right(holders, r)
	}
}

// reenters grants a shared lock at once to a client that has it already, as a Postgres session does.
type reenters struct {
	queued
	mu    sync.Mutex
	reads map[string]int
}

func (b *reenters) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.acquire(ctx, r, b.queued.Acquire)
}

func (b *reenters) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.acquire(ctx, r, b.queued.Wait)
}

func (b *reenters) acquire(
	ctx context.Context, r locker.Request, by func(context.Context, locker.Request) (locker.Grant, error),
) (g locker.Grant, err error) {
	b.mu.Lock()
	again := r.Mode == locker.ModeShared && b.reads[r.Name()] > 0
	b.mu.Unlock()
	if again {
		err = b.ask(ctx, func(s *store) { g = s.grant(r) })
	} else {
		g, err = by(ctx, r)
	}
	if err == nil && r.Mode == locker.ModeShared {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reads[r.Name()]++
	}
	return g, err
}

func (b *reenters) Release(ctx context.Context, g locker.Grant) error {
	err := b.queued.Release(ctx, g)
	if err == nil && g.Mode == locker.ModeShared {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reads[g.Name()]--
	}
	return err
}

// keepsUnwanted leaves the line after an acquire whose outcome is unknown, and does not look whether it has a slot.
type keepsUnwanted struct{ queued }

func (b keepsUnwanted) Release(ctx context.Context, g locker.Grant) error {
	if g.Token > 0 || g.Mode != locker.ModeSlots {
		return b.queued.Release(ctx, g)
	}
	return b.ask(ctx, func(s *store) { s.leave(s.lineOf(g.Request), g.Owner) })
}
