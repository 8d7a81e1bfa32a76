package conformance

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lockerkit/locker"
)

// holderDefects are broken in what they make of the names of holders.
var holderDefects = func() (all []defect) {
	caught := []string{"errors/HolderNames"}
	fine := []string{"errors/Typed", "exclusion/OneHolder", "waiting/Cancelled"}
	for what, of := range map[string]func(string) string{
		"up to a colon":       func(s string) string { name, _, _ := strings.Cut(s, ":"); return name },
		"from the last colon": func(s string) string { return s[strings.LastIndexByte(s, ':')+1:] },
		"up to a space":       func(s string) string { name, _, _ := strings.Cut(s, " "); return name },
		"up to a line":        func(s string) string { name, _, _ := strings.Cut(s, "\n"); return name },
		"up to a NUL":         func(s string) string { name, _, _ := strings.Cut(s, "\x00"); return name },
		"up to a pipe":        func(s string) string { name, _, _ := strings.Cut(s, "|"); return name },
		"trimmed":             strings.TrimSpace,
		"folded":              strings.ToLower,
		"cut to 64 bytes":     cutTo(64),
		"cut to 127 bytes":    cutTo(127),
		"in ASCII":            replacing(func(r rune) bool { return r >= utf8.RuneSelf }, '?'),
		"without emoji":       replacing(func(r rune) bool { return r > 0xffff }, '?'),
		"quoted":              func(s string) string { q := strconv.Quote(s); return q[1 : len(q)-1] },
		"escaped":             url.QueryEscape,
		"unescaped":           func(s string) string { return orItself(s)(url.QueryUnescape(s)) },
		"none if not ASCII": func(s string) string {
			if strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
				return ""
			}
			return s
		},
		"unknown if there is none": func(s string) string {
			if s == "" {
				return "unknown"
			}
			return s
		},
		"from behind what looks like an owner": func(s string) string {
			if len(s) >= 32 && strings.Trim(s[:32], "0123456789abcdef") == "" {
				return strings.TrimPrefix(s[32:], ":")
			}
			return s
		},
	} {
		all = append(all, defect{
			name:   "holder's name " + what,
			store:  func(s *store) { s.tells = func(holder, _ locker.Request) string { return of(holder.Holder) } },
			caught: caught, fine: fine,
		})
	}
	return append(all, defect{
		name:   "holder's name that of whoever asks",
		store:  func(s *store) { s.tells = func(_, caller locker.Request) string { return caller.Holder } },
		caught: caught, fine: []string{"exclusion/OneHolder", "waiting/Cancelled"},
	}, defect{
		name: "holder's name that of whoever asks, where the holder has none",
		store: func(s *store) {
			s.tells = func(holder, caller locker.Request) string {
				if holder.Holder == "" {
					return caller.Holder
				}
				return holder.Holder
			}
		},
		caught: caught, fine: fine,
	}, defect{
		name:    "holder's name that of who waits",
		backend: func(_ *testing.T, c *client) locker.Backend { return namesItself{queued{c}} },
		caught:  caught, fine: []string{"errors/Typed", "exclusion/OneHolder", "waiting/Cancelled"},
	}, defect{
		name: "holder's name that of the last who locked anything",
		store: func(s *store) {
			last := ""
			s.granted = func(s *store, name string) { last = s.held[name].grant.Holder }
			s.tells = func(_, _ locker.Request) string { return last }
		},
		caught: caught, fine: []string{"exclusion/OneHolder", "waiting/Cancelled"},
	}, defect{
		name: "holder's name that of the first",
		store: func(s *store) {
			first := make(map[string]string)
			s.granted = func(s *store, name string) {
				if _, ok := first[name]; !ok {
					first[name] = s.held[name].grant.Holder
				}
			}
			s.tells = func(holder, _ locker.Request) string { return first[s.nameOf(holder)] }
		},
		caught: caught, fine: fine,
	}, defect{
		name:    "holder's name lost with a renewal",
		backend: func(_ *testing.T, c *client) locker.Backend { return forgetsName{queued{c}} },
		caught:  caught, fine: fine,
	}, defect{
		name:    "holder's name that the store cannot keep",
		backend: func(_ *testing.T, c *client) locker.Backend { return refusesNames{queued{c}} },
		caught:  caught, fine: fine,
	}, defect{
		name: "reentrant by the holder's name",
		store: func(s *store) {
			s.knows = func(holder, caller locker.Request) bool {
				return holder.Owner == caller.Owner || holder.Holder != "" && holder.Holder == caller.Holder
			}
		},
		caught: caught, fine: fine,
	}, defect{
		name: "released by the holder's name",
		store: func(s *store) {
			s.mayRelease = func(holder, caller locker.Request) bool {
				return holder.Holder == caller.Holder && (holder.Holder != "" || holder.Owner == caller.Owner)
			}
		},
		caught: []string{"unlock/StaleCannotFreeSuccessor"},
		fine:   fine,
	})
}()

// namesItself tells who waits that it does so for itself.
type namesItself struct{ queued }

func (b namesItself) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	tell := time.AfterFunc(time.Millisecond, func() { r.ReportHolder(r.Holder) })
	defer tell.Stop()
	return b.queued.Wait(ctx, r)
}

// forgetsName writes a record anew when it is renewed, and not all of it.
type forgetsName struct{ queued }

func (b forgetsName) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		name := gs[i].Name()
		_ = b.ask(ctx, func(s *store) {
			if held := s.held[name]; held != nil {
				held.grant.Holder = ""
			}
		})
		done(i, r)
	})
}

// refusesNames has a store whose texts have no NUL.
type refusesNames struct{ queued }

func (b refusesNames) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if strings.Contains(r.Holder, "\x00") {
		return locker.Grant{}, locker.NotAcquired(errors.New("invalid byte sequence"))
	}
	return b.queued.Acquire(ctx, r)
}
