package conformance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// crowdDefects are broken when there are many keys.
var crowdDefects = []defect{
	{
		name:   "a hundred keys, and then the first goes",
		store:  evicting(100, false),
		caught: []string{"exclusion/ManyKeys", "exclusion/EveryByteCounts"},
		fine:   fineNames,
	},
	{
		name:   "a thousand keys, and then one of them goes",
		store:  evicting(1000, true),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name:   "ten thousand keys, and then the first goes",
		store:  evicting(10_000, false),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name:    "a thousand keys, and then no more",
		backend: func(_ *testing.T, c *client) locker.Backend { return refusesMore{queued{c}} },
		caught:  []string{"exclusion/ManyKeys"},
		fine:    append([]string{"exclusion/KeyAlphabet"}, fineNames...),
	},
	{
		name:   "cleaned up by age, whatever was renewed",
		store:  sweeping(time.Second, 100),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name: "lines of three dozen keys, and no more",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &fewLines{queued: queued{c}, lines: make(map[string]int)}
		},
		caught: []string{"waiting/EachNameWakes"},
		fine:   append([]string{"exclusion/EveryByteCounts", "waiting/FIFO"}, fineNames...),
	},
	{
		name:   "names by 16 bits of a hash",
		store:  naming(func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Name()) & 0xffff) }),
		caught: []string{"exclusion/ManyKeys"},
	},
	{
		name: "lines by 16 bits of a hash",
		store: func(s *store) {
			s.lineOf = func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Name()) & 0xffff) }
		},
		caught: []string{"waiting/EachNameWakes"},
	},
	{
		name:   "names by CRC-32",
		store:  naming(func(r locker.Request) string { return fmt.Sprint(crc32.ChecksumIEEE([]byte(r.Name()))) }),
		caught: []string{"exclusion/EveryByteCounts"},
		fine:   fineNames,
	},
	{
		name:   "names by FNV-1a",
		store:  naming(func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Name())) }),
		caught: []string{"exclusion/EveryByteCounts"},
		fine:   fineNames,
	},
	{
		name: "names by 32 bits of SHA-256",
		store: naming(func(r locker.Request) string {
			sum := sha256.Sum256([]byte(r.Name()))
			return string(sum[:4])
		}),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name:   "names by hashtext",
		store:  naming(func(r locker.Request) string { return fmt.Sprint(hashtext([]byte(r.Name()))) }),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name:   "names by 24 bits of a hash that nobody knows",
		store:  naming(func(r locker.Request) string { return fmt.Sprint(maphash.String(unknown, r.Name()) >> 40) }),
		caught: []string{"exclusion/ManyKeys"},
		fine:   fineNames,
	},
	{
		name:   "lines by FNV-1a",
		store:  func(s *store) { s.lineOf = func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Name())) } },
		caught: []string{"waiting/EachNameWakes"},
		fine:   append([]string{"exclusion/EveryByteCounts"}, fineNames...),
	},
}

var unknown = maphash.MakeSeed()

// evicting keeps so many locks: then the one that was granted first goes, or any.
func evicting(most int, anyOne bool) func(*store) {
	return func(s *store) {
		var order []string
		s.granted = func(s *store, name string) {
			if !anyOne {
				order = append(order, name)
			}
			for len(s.held) > most {
				for other := range s.held {
					if !anyOne {
						other, order = order[0], order[1:]
					}
					if s.held[other] != nil && other != name {
						s.held[other].timer.Stop()
						delete(s.held, other)
					}
					break
				}
			}
		}
	}
}

// sweeping deletes locks that are older than a TTL, when there have been so many grants, and more than there are locks.
func sweeping(age time.Duration, after int) func(*store) {
	return func(s *store) {
		grants := 0
		s.granted = func(s *store, _ string) {
			if grants++; grants < max(after, len(s.held)) {
				return
			}
			grants = 0
			for name, held := range s.held {
				if time.Since(held.grant.Sent) > age {
					s.free(name)
				}
			}
		}
	}
}

// refusesMore takes a store that is full for a key that is held.
type refusesMore struct{ queued }

func (b refusesMore) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var full bool
	if err := b.ask(ctx, func(s *store) { full = len(s.held) >= 1000 }); err != nil {
		return locker.Grant{}, err
	}
	if full {
		return locker.Grant{}, locker.ErrLocked
	}
	return b.queued.Acquire(ctx, r)
}

// fewLines has so many lines, and forgets who comes for another key.
type fewLines struct {
	queued
	mu    sync.Mutex
	lines map[string]int
}

func (b *fewLines) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	b.mu.Lock()
	b.lines[r.Name()]++
	forgotten := len(b.lines) > 36
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.lines[r.Name()]--; b.lines[r.Name()] == 0 {
			delete(b.lines, r.Name())
		}
	}()
	if forgotten {
		if g, err := b.Acquire(ctx, r); !errors.Is(err, locker.ErrLocked) {
			return g, err
		}
		<-ctx.Done()
		return locker.Grant{}, context.Cause(ctx)
	}
	return b.queued.Wait(ctx, r)
}

// TestSharesKeys is about a rule that is relaxed in part: a store may share locks, but not lose them.
func TestSharesKeys(t *testing.T) {
	withoutRaces(t)
	t.Parallel()
	for _, test := range []struct {
		name  string
		store func(*store)
		fails bool
	}{
		{"shares", naming(func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Name()) & 0xffff) }), false},
		{"loses", evicting(100, false), true},
	} {
		h := (&defect{store: test.store}).harness()
		h.Features.SharesKeys = "it has 65,536 locks"
		h = h.withDefaults()
		h.Wrap(t, func(t *testing.T) {
			v := ruleNamed(t, "exclusion/ManyKeys").run(t, h, "exclusion/ManyKeys")
			if len(v.problems) > 0 != test.fails || !test.fails && len(v.gaps) == 0 {
				t.Errorf("%s: %v, %v", test.name, v.problems, v.gaps)
			}
		})
	}
}
