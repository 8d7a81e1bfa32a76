package server

import (
	"context"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// Adopt implements locker.Adopter. If a connection fails, it asks again: the answer is the same.
func (b *Server) Adopt(ctx context.Context, r locker.Request, from locker.Grant) (locker.Grant, error) {
	if err := b.Check(r); err != nil {
		return locker.Grant{}, err
	}
	n := scripts.NamesOf(r, b.Line.Process)
	words := n.AdoptWords(scripts.ValueOf(from.Owner.String(), from.Holder), r.TTL)
	for attempt := 1; ; attempt++ {
		reply, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Adopt, words)
		switch {
		case err == nil && reply == int64(1):
			return locker.Grant{Request: r, Token: from.Token, Slot: from.Slot}, nil
		case err == nil && reply == int64(0):
			return locker.Grant{}, locker.ErrNotHeld
		case err == nil:
			return locker.Grant{}, fmt.Errorf("redis: unexpected reply %v", reply)
		case attempt == conn.Attempts || !conn.Pause(ctx, err, attempt):
			return locker.Grant{}, b.Client.Explain(err)
		}
	}
}
