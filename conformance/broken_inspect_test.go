package conformance

import (
	"path"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// sees returns a store whose Inspect says something else.
func sees(change func(s *store, name string, info *locker.LockInfo)) func(*store) {
	return func(s *store) { s.inspection.sees = change }
}

// eachHolder returns a store whose Inspect says something else of each holder.
func eachHolder(change func(h *locker.HolderInfo)) func(*store) {
	return sees(func(_ *store, _ string, info *locker.LockInfo) {
		for i := range info.Holders {
			change(&info.Holders[i])
		}
	})
}

// inspectDefects are broken in what they tell of locks.
var inspectDefects = []defect{
	{
		name: "Inspect tells of the first of several holders",
		store: sees(func(_ *store, _ string, info *locker.LockInfo) {
			info.Holders = info.Holders[:min(1, len(info.Holders))]
		}),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since", "inspect/FreeIsFree", "inspect/ListsUnderPrefix"},
	},
	{
		name:   "Inspect takes every lock for exclusive",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Mode = locker.ModeExclusive }),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since", "inspect/CountsWaiters"},
	},
	{
		name:   "Inspect gives every holder slot 0",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Slot = 0 }),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since", "slots/SlotsAreDistinct"},
	},
	{
		name: "Inspect gives every holder the last token that was minted",
		store: sees(func(s *store, _ string, info *locker.LockInfo) {
			for i := range info.Holders {
				info.Holders[i].Token = s.token
			}
		}),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since", "fencing/StrictlyIncreasing"},
	},
	{
		name:   "Inspect tells the name of somebody else",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Name = "somebody" }),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since", "errors/HolderNames"},
	},
	{
		name:   "Inspect says that more is left than the TTL",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Left *= 2 }),
		caught: []string{"inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since"},
	},
	{
		name:   "Inspect says since it was asked",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Since = time.Now() }),
		caught: []string{"inspect/Since"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name:   "Inspect says since the last renewal",
		store:  eachHolder(func(h *locker.HolderInfo) { h.Since = time.Now().Add(h.Left - time.Second) }),
		caught: []string{"inspect/Since"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect says since the key was first locked",
		store: func(s *store) {
			since := make(map[string]time.Time)
			s.inspection.sees = func(_ *store, name string, info *locker.LockInfo) {
				for i := range info.Holders {
					if since[name].IsZero() {
						since[name] = info.Holders[i].Since
					}
					info.Holders[i].Since = since[name]
				}
			}
		},
		caught: []string{"inspect/Since"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect counts no waiters",
		store: sees(func(_ *store, _ string, info *locker.LockInfo) {
			info.Waiting, info.Waiters = 0, nil
		}),
		caught: []string{"inspect/CountsWaiters"},
		fine:   []string{"inspect/SaysWhoHolds", "waiting/FIFO"},
	},
	{
		name: "Inspect counts all who have ever waited",
		store: func(s *store) {
			most := make(map[string]int)
			s.inspection.sees = func(_ *store, name string, info *locker.LockInfo) {
				most[name] = max(most[name], info.Waiting)
				info.Waiting = most[name]
			}
		},
		caught: []string{"inspect/CountsWaiters"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect counts the holder as a waiter",
		store: sees(func(_ *store, _ string, info *locker.LockInfo) {
			info.Waiting += len(info.Holders)
		}),
		caught: []string{"inspect/CountsWaiters", "inspect/SaysWhoHolds"},
		fine:   []string{"inspect/Since"},
	},
	{
		name:   "Inspect tells of the waiters in the wrong order",
		store:  sees(func(_ *store, _ string, info *locker.LockInfo) { slices.Reverse(info.Waiters) }),
		caught: []string{"inspect/CountsWaiters"},
		fine:   []string{"inspect/SaysWhoHolds", "waiting/FIFO"},
	},
	{
		name: "Inspect describes more waiters than it counts",
		store: sees(func(_ *store, _ string, info *locker.LockInfo) {
			info.Waiters = append(info.Waiters, info.Waiters...)
		}),
		caught: []string{"inspect/CountsWaiters"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect tells of who held a key last",
		store: func(s *store) {
			last := make(map[string][]locker.HolderInfo)
			s.inspection.sees = func(_ *store, name string, info *locker.LockInfo) {
				if len(info.Holders) == 0 {
					info.Holders = last[name]
				}
				last[name] = info.Holders
			}
		},
		caught: []string{"inspect/FreeIsFree"},
		fine:   []string{"inspect/SaysWhoHolds", "inspect/Since"},
	},
	{
		name: "List takes a prefix for a pattern",
		store: func(s *store) {
			s.inspection.matches = func(name, prefix string) bool {
				for i := len(name); i > 0; i-- {
					if ok, _ := path.Match(prefix, name[:i]); ok {
						return true
					}
				}
				return false
			}
		},
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name:   "List yields what contains the prefix",
		store:  func(s *store) { s.inspection.matches = strings.Contains },
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name:   "List leaves out the key that is the prefix",
		store:  func(s *store) { s.inspection.matches = longer },
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "List yields keys twice",
		store: func(s *store) {
			s.inspection.lists = func(infos []locker.LockInfo) []locker.LockInfo { return append(infos, infos...) }
		},
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "List yields the first three",
		store: func(s *store) {
			s.inspection.lists = func(infos []locker.LockInfo) []locker.LockInfo { return infos[:min(3, len(infos))] }
		},
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "List yields nothing under the empty prefix of a Locker with a Prefix",
		store: func(s *store) {
			s.inspection.matches = func(name, prefix string) bool {
				return strings.HasPrefix(name, prefix) && !strings.HasSuffix(prefix, ":")
			}
		},
		caught: []string{"inspect/ListsUnderPrefix"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect pushes the expiry",
		store: sees(func(s *store, name string, _ *locker.LockInfo) {
			if held := s.held[name]; held != nil {
				s.expireAfter(held, held.grant.TTL)
			}
		}),
		caught: []string{"inspect/DisturbsNobody", "inspect/FreeIsFree"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect locks a key to see whether it is free",
		store: sees(func(s *store, name string, _ *locker.LockInfo) {
			if s.held[name] == nil && len(s.beside[name]) == 0 {
				s.grant(locker.Request{Key: name, TTL: time.Second / 100})
			}
		}),
		caught: []string{"inspect/DisturbsNobody"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
	{
		name: "Inspect takes somebody out of the line",
		store: sees(func(s *store, name string, _ *locker.LockInfo) {
			if line := s.lines[name]; len(line) > 0 {
				s.lines[name] = line[1:]
			}
		}),
		caught: []string{"inspect/DisturbsNobody", "inspect/CountsWaiters"},
		fine:   []string{"inspect/SaysWhoHolds"},
	},
}

// longer reports whether a name has a prefix and something more.
func longer(name, prefix string) bool {
	return len(name) > len(prefix) && strings.HasPrefix(name, prefix)
}
