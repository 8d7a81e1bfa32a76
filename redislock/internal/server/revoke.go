package server

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
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
