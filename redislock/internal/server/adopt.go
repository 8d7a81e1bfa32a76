package server

import (
	"context"
	"fmt"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// Adopt implements locker.Adopter.
func (b *Server) Adopt(ctx context.Context, r locker.Request, from locker.Grant) (locker.Grant, error) {
	if err := b.Check(r); err != nil {
		return locker.Grant{}, err
	}
	n := scripts.NamesOf(r, b.Line.Process)
	words := n.AdoptWords(scripts.ValueOf(from.Owner.String(), from.Holder), r.TTL)
	switch reply, err := b.ask(ctx, b.Scripts.Adopt, words); {
	case err != nil:
		return locker.Grant{}, err
	case reply == int64(1):
		b.Line.leases.granted(r, false)
		return locker.Grant{Request: r, Token: from.Token, Slot: from.Slot}, nil
	case reply == int64(0):
		return locker.Grant{}, locker.ErrNotHeld
	default:
		return locker.Grant{}, fmt.Errorf("redis: unexpected reply %v", reply)
	}
}
