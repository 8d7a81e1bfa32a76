package conformance

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// The reference's inspection.

// inspection is what broken stores do in another way.
type inspection struct {
	sees    func(s *store, name string, info *locker.LockInfo) // changes what Inspect says
	matches func(name, prefix string) bool
	lists   func(infos []locker.LockInfo) []locker.LockInfo
}

func referenceInspection() inspection {
	return inspection{
		sees:    func(*store, string, *locker.LockInfo) {},
		matches: strings.HasPrefix,
		lists:   func(infos []locker.LockInfo) []locker.LockInfo { return infos },
	}
}

func (s *store) info(name string) locker.LockInfo {
	info := locker.LockInfo{Key: name}
	holders := s.beside[name]
	if held := s.held[name]; held != nil {
		holders = []*record{held}
	}
	for _, h := range holders {
		info.Holders = append(info.Holders, locker.HolderInfo{
			Name: h.grant.Holder, Mode: h.grant.Mode, Slot: h.grant.Slot, Token: h.grant.Token, Since: h.grant.Sent,
			Left: time.Until(h.expires),
		})
	}
	for _, w := range s.lines[name] {
		info.Waiters = append(info.Waiters, locker.WaiterInfo{Name: w.request.Holder, Mode: w.request.Mode,
			Since: w.since})
	}
	info.Waiting = len(info.Waiters)
	s.inspection.sees(s, name, &info)
	return info
}

// Inspect implements locker.Inspector.
func (q queued) Inspect(ctx context.Context, name string) (info locker.LockInfo, err error) {
	err = q.ask(ctx, func(s *store) { info = s.info(name) })
	return info, err
}

// List implements locker.Inspector.
func (q queued) List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		var infos []locker.LockInfo
		err := q.ask(ctx, func(s *store) {
			for _, name := range slices.Concat(slices.Collect(maps.Keys(s.held)), slices.Collect(maps.Keys(s.beside))) {
				if info := s.info(name); len(info.Holders) > 0 && s.inspection.matches(name, prefix) {
					infos = append(infos, info)
				}
			}
			infos = s.inspection.lists(infos)
		})
		if err != nil {
			yield(locker.LockInfo{}, err)
			return
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
	}
}
