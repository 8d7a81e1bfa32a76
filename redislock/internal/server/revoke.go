package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// revokedChannel is the end of the channel on which the holders of a lock are told that it was taken away.
const revokedChannel = "revoked"

// Revoke implements locker.Revoker.
func (b *Server) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	return b.takeAway(ctx, name, r)
}

// Break implements locker.Revoker. No lease of another key ends with it.
func (b *Server) Break(ctx context.Context, name string, r *locker.Revocation, _ bool) error {
	return b.takeAway(ctx, name, r)
}

// takeAway is both. If there are more holders than one run of the script looks at, it is run until all of them have
// been looked at.
func (b *Server) takeAway(ctx context.Context, name string, r *locker.Revocation) error {
	if err := scripts.CheckName(name); err != nil {
		return err
	}
	all := 0
	for from := ""; ; {
		taken, more, err := b.takeSome(ctx, name, r, from)
		switch all += taken; {
		case err != nil:
			return err
		case more != "":
			from = more
		case all == 0:
			return locker.ErrNotHeld
		default:
			return nil
		}
	}
}

// takeSome runs the script until it is answered. A request that arrives late must take nothing from who has the lock by
// then: each has a tombstone, by the name of an owner who is nobody.
func (b *Server) takeSome(
	ctx context.Context, name string, r *locker.Revocation, from string,
) (taken int, more string, err error) {
	nobody, _ := parseOwner(NewProcess())
	n := scripts.NamesOf(locker.Request{Key: name, Owner: nobody}, b.Line.Process)
	words := n.RevokeWords(encodeWhy(r), r.Broken, from)
	unanswered := false
	for attempt := 1; ; attempt++ {
		reply, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Revoke, words)
		if err == nil {
			return parseTaken(reply)
		}
		unanswered = unanswered || !conn.IsDial(err) && !conn.IsReply(err)
		if attempt == conn.Attempts || !conn.Pause(ctx, err, attempt) {
			if unanswered {
				b.withdraw(n, true)
			}
			return 0, "", b.Client.Explain(err)
		}
	}
}

// parseTaken returns what a reply of revoke.lua says.
func parseTaken(reply any) (taken int, more string, err error) {
	text, _ := reply.(string)
	count, more, ok := strings.Cut(text, " ")
	taken, err = strconv.Atoi(count)
	switch {
	case err != nil || !ok:
		return 0, "", fmt.Errorf("redis: unexpected reply %v", reply)
	case taken < 0:
		return 0, "", fmt.Errorf("%w: the lock is that of a client of another kind, which cannot be told",
			errors.ErrUnsupported)
	}
	return taken, more, nil
}

// encodeWhy returns who takes a lock away and why, in a form without spaces, but for one, and commas.
func encodeWhy(r *locker.Revocation) string {
	return url.QueryEscape(r.By) + " " + url.QueryEscape(r.Reason)
}

// decodeWhy is the reverse.
func decodeWhy(why string, broken bool) *locker.Revocation {
	by, reason, _ := strings.Cut(why, " ")
	r := &locker.Revocation{Broken: broken}
	r.By, _ = url.QueryUnescape(by)
	r.Reason, _ = url.QueryUnescape(reason)
	return r
}

// whyRevoked returns the error of the renewal of a lease that was revoked: the reason is in a key of its own.
func (b *Server) whyRevoked(ctx context.Context, g locker.Grant) error {
	n, _ := b.names(g.Name())
	why, err := b.Client.Get(ctx, scripts.NoteOf(n)).Result()
	if err != nil {
		why = "" // it does not matter more than to tell the holder
	}
	return fmt.Errorf("%w: %w", locker.ErrLost, decodeWhy(why, false))
}

// leases are those of this Locker that have been renewed, by their owners. Their holders are told at once when somebody
// takes a lock away; those of younger leases when they renew.
type leases struct {
	mu   sync.Mutex
	held map[locker.Owner]lease
	most int // more than so many are looked through for those that are over
}

type lease struct {
	request locker.Request
	until   time.Time
}

// renewed notes that some leases are about to be renewed.
func (l *leases) renewed(gs []locker.Grant) {
	const few = 1000
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[locker.Owner]lease)
	}
	now := time.Now()
	for _, g := range gs {
		l.held[g.Owner] = lease{g.Request, now.Add(g.TTL)}
	}
	if len(l.held) > l.most { // some were not released
		maps.DeleteFunc(l.held, func(_ locker.Owner, held lease) bool { return now.After(held.until) })
		l.most = 2*len(l.held) + few
	}
}

// any reports whether there is one that is not over, and forgets those that it finds before.
func (l *leases) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for owner, held := range l.held {
		if now.Before(held.until) {
			return true
		}
		delete(l.held, owner)
	}
	return false
}

// released notes that a lease is being given back.
func (l *leases) released(owner locker.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, owner)
}

// parseOwner is the reverse of Owner.String.
func parseOwner(text string) (o locker.Owner, ok bool) {
	if len(text) != hex.EncodedLen(len(o)) {
		return o, false // Decode would write on behind the end
	}
	_, err := hex.Decode(o[:], []byte(text))
	return o, err == nil
}

// heard tells those of this Locker who had a lock that was taken away.
func (l *leases) heard(message string) {
	kind, rest, _ := strings.Cut(message, " ")
	end := strings.LastIndexByte(rest, ' ')
	if end < 0 || kind != "r" && kind != "b" {
		return // not one of ours
	}
	l.takenAway(rest[end+1:], decodeWhy(rest[:end], kind == "b"))
}

// takenAway tells those of some owners who are holders here.
func (l *leases) takenAway(owners string, r *locker.Revocation) {
	var lost []locker.Request
	l.mu.Lock()
	for text := range strings.SplitSeq(owners, ",") {
		if owner, ok := parseOwner(text); ok {
			if held, ok := l.held[owner]; ok {
				lost = append(lost, held.request)
				delete(l.held, owner)
			}
		}
	}
	l.mu.Unlock()
	if len(lost) > 0 {
		locker.ReportLost(lost, r)
	}
}
