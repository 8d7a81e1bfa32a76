package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// revokedChannel is the end of the channel on which the holders of a lock are told that it was taken away.
const revokedChannel = "revoked"

// lookTogether is at how many holders of a lock one run of revoke.lua looks.
const lookTogether = scripts.DropTogether

// Revoke implements locker.Revoker.
func (b *Server) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	return b.takeAway(ctx, name, r)
}

// Break implements locker.Revoker. No lease of another key ends with it.
func (b *Server) Break(ctx context.Context, name string, r *locker.Revocation, _ bool) error {
	return b.takeAway(ctx, name, r)
}

// takeAway is both. If there are more holders than one run looks at, they are looked at until all of them have been, in
// one go in which nobody was left: those who renew meanwhile come to be among those who were looked at.
func (b *Server) takeAway(ctx context.Context, name string, r *locker.Revocation) error {
	n, err := b.names(name)
	if err != nil {
		return err
	}
	why := encodeWhy(r)
	total, taken := int64(0), int64(0)
	for seen, failures := 0, 0; ; {
		reply, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Revoke, n.RevokeWords(why, r.Broken, seen))
		if err != nil {
			if failures++; failures == conn.Attempts || !conn.Pause(ctx, err, failures) {
				return b.Client.Explain(err)
			}
			if !conn.IsDial(err) {
				total++ // it may have been done
			}
			continue
		}
		counts, _ := reply.([]any)
		if len(counts) != 2 {
			return fmt.Errorf("redis: unexpected reply %v", reply)
		}
		some, ok1 := counts[0].(int64)
		looked, ok2 := counts[1].(int64)
		switch {
		case !ok1 || !ok2:
			return fmt.Errorf("redis: unexpected reply %v", reply)
		case some < 0:
			return fmt.Errorf("%w: the lock is that of a client of another kind, which cannot be told", errors.ErrUnsupported)
		}
		total, taken = total+some, taken+some
		seen += int(looked)
		switch {
		case looked == lookTogether && !r.Broken:
			continue
		case total == 0:
			return locker.ErrNotHeld
		case seen <= lookTogether || taken == 0 || r.Broken:
			return nil
		}
		seen, taken = 0, 0
	}
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
	mu    sync.Mutex
	held  map[locker.Owner]lease
	swept time.Time
}

type lease struct {
	request locker.Request
	until   time.Time
}

// renewed notes that some leases are about to be renewed.
func (l *leases) renewed(gs []locker.Grant) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[locker.Owner]lease)
	}
	now := time.Now()
	for _, g := range gs {
		l.held[g.Owner] = lease{g.Request, now.Add(g.TTL)}
		longest = max(longest, g.TTL)
	}
	if now.Sub(l.swept) > longest { // of those that were not released
		l.swept = now
		for owner, held := range l.held {
			if now.After(held.until) {
				delete(l.held, owner)
			}
		}
	}
	return longest
}

// released notes that a lease is being given back.
func (l *leases) released(owner locker.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, owner)
}

// parseOwner is the reverse of Owner.String.
func parseOwner(text string) (o locker.Owner, ok bool) {
	n, err := hex.Decode(o[:], []byte(text))
	return o, err == nil && n == len(o) && len(text) == hex.EncodedLen(n)
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
