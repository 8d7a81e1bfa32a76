package locker

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Ticket is a lease on its way from Lease.Detach to Adopt, as text that can be sent or stored. Whoever has it can take
// the lock over, once: handle it like a password.
type Ticket string

const ticketVersion = "locker-ticket-1."

// ticket is what a Ticket says.
type ticket struct {
	Prefix []byte        `json:"p,omitempty"` // bytes, as JSON knows none but in base64
	Key    []byte        `json:"k"`
	Mode   Mode          `json:"m,omitempty"`
	Slots  int           `json:"n,omitempty"`
	Slot   int           `json:"s,omitempty"`
	Owner  string        `json:"o"`
	Holder string        `json:"h,omitempty"`
	TTL    time.Duration `json:"t"`
	Token  uint64        `json:"f"`
}

// Adopter is implemented by a Backend in which a lock can change its owner, and which states Features.Adopt.
type Adopter interface {
	// Adopt makes r.Owner the owner of what from.Owner holds, in one atomic step: it finds that from.Owner holds it,
	// sets the owner to r.Owner, with r.Holder, and the expiry r.TTL from now. The token and the slot stay, of which
	// from has those. A second call, when r.Owner has it already, sets the expiry anew. It returns ErrNotHeld if
	// neither has it, or it is revoked. After another error the outcome counts as unknown, as with Acquire.
	Adopt(ctx context.Context, r Request, from Grant) (Grant, error)
}

// Detacher is implemented by an Adopter that has to know which leases were detached.
type Detacher interface {
	// Detached is called when a lease was detached, before anybody has its Ticket. Nobody will renew or release it here
	// any more; its key stays taken until it is adopted, or has ended. Detached must not wait for the store.
	Detached(g Grant)
}

// Detach ends the lease here without unlocking it, for another process that goes on with the same work: Adopt, with the
// Ticket, makes a lease of it there, with the same fencing token. Nobody else gets the key in between, as long as that
// happens before the lease would have ended without another renewal: two thirds of the TTL, at least.
//
// The lease has ended when Detach returns: Done is closed, its contexts have ended, and Err is ErrUnlocked. So the work
// under it has to have stopped. Detach does not ask the store.
//
// It returns ErrLost or ErrUnlocked if the lease has ended before, and errors.ErrUnsupported, with the lease as it was,
// if the backend cannot do it (memlock, redislock and etcdlock can: see Features).
func (l *Lease) Detach() (Ticket, error) {
	c := l.client
	if c.adopter == nil {
		return "", c.fail(opDetach, l.Key(), fmt.Errorf("%s: %w: %s", c.name, errors.ErrUnsupported, adopting))
	}
	_ = l.expire()
	c.mu.Lock()
	if l.reason != nil {
		reason := l.reason
		c.mu.Unlock()
		return "", c.fail(opDetach, l.Key(), reason)
	}
	e := l.endLocked(errDetached)
	c.mu.Unlock()
	e.announce()
	if d, ok := c.adopter.(Detacher); ok {
		d.Detached(l.grant)
	}
	if l.seen != nil {
		c.tellLeaseDone(l, l.doneInfo(nil))
	}
	return ticketOf(l.grant), nil
}

// ticketOf returns the Ticket for a grant.
func ticketOf(g Grant) Ticket {
	text, _ := json.Marshal(ticket{ // has nothing in it of which JSON could make no text
		Prefix: []byte(g.Prefix), Key: []byte(g.Key), Mode: g.Mode, Slots: g.Slots, Slot: g.Slot,
		Owner: g.Owner.String(), Holder: g.Holder, TTL: g.TTL, Token: g.Token,
	})
	return Ticket(ticketVersion + base64.RawURLEncoding.EncodeToString(text))
}

const adopting = "to hand a lease on"

var errDetached = fmt.Errorf("%w: it was detached", ErrUnlocked)

// grant returns what a Ticket is for.
func (t Ticket) grant() (g Grant, err error) {
	invalid := func(why error) (Grant, error) {
		return Grant{}, fmt.Errorf("%w: not a ticket of Lease.Detach: %w", ErrInvalidOption, why)
	}
	encoded, ok := strings.CutPrefix(string(t), ticketVersion)
	if !ok {
		return invalid(errors.New("it begins with something else"))
	}
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return invalid(err)
	}
	var says ticket
	if err := json.Unmarshal(text, &says); err != nil {
		return invalid(err)
	}
	g = Grant{
		Request: Request{
			Prefix: string(says.Prefix), Key: string(says.Key), Mode: says.Mode, Slots: says.Slots, Holder: says.Holder,
			TTL: says.TTL,
		},
		Token: says.Token, Slot: says.Slot,
	}
	owner, err := hex.DecodeString(says.Owner)
	if err != nil || len(owner) != len(g.Owner) {
		return invalid(errors.New("the owner is none"))
	}
	g.Owner = Owner(owner)
	if says.Token == 0 || checkKey(g.Key) != nil || len(g.Prefix) > MaxKeyLen || says.Mode > ModeSlots ||
		(says.Mode == ModeSlots) != (says.Slots > 0) || says.Slot < 0 || says.Slot > 0 && says.Slot >= says.Slots {
		return invalid(errors.New("it says what cannot be"))
	}
	return g, nil
}

// Adopt takes over the lease of a Ticket, of Lease.Detach in this or another process, by way of a Client of the same
// store (or what embeds one). The lease goes on: with the same key, fencing token, mode and slot. Its TTL, the holder's
// name, and whether it is renewed, come from this Client and opts. It works once: of those who have a copy of the
// Ticket, one gets the lease.
//
// It returns ErrNotHeld if the lease is over, or was adopted already; ErrInvalidOption if that is no Ticket;
// errors.ErrUnsupported if the backend cannot do it; ErrClosed; or an error of the store. After such an error it is
// unknown who has the lease, if anybody: it may end by itself. ctx bounds the call and nothing else.
func Adopt(ctx context.Context, l Locker, t Ticket, opts ...CallOption) (*Lease, error) {
	has, ok := l.(interface{ client() *Client })
	if !ok {
		return nil, &Error{Op: opAdopt, Err: fmt.Errorf("%T: %w: %s", l, errors.ErrUnsupported, adopting)}
	}
	c := has.client()
	from, err := t.grant()
	if err != nil {
		return nil, c.fail(opAdopt, "", err)
	}
	return c.observed(ctx, opAdopt, from.Key, from.Mode, func(ctx context.Context) (*Lease, error) {
		lease, err := c.adopt(ctx, from, opts)
		if err != nil {
			return nil, c.fail(opAdopt, from.Key, err)
		}
		return lease, nil
	})
}

func (c *Client) adopt(ctx context.Context, from Grant, opts []CallOption) (*Lease, error) {
	l, err := c.prepare(from.Key, opts)
	if err != nil {
		return nil, err
	}
	if err := c.mayAsk(ctx, c.adopter != nil, adopting); err != nil {
		return nil, err
	}
	defer c.calls.Done()
	l.grant.Prefix, l.grant.Mode, l.grant.Slots = from.Prefix, from.Mode, from.Slots
	l.beSeen()
	err = c.tryBy(ctx, l, func(ctx context.Context, r Request) (Grant, error) {
		g, err := c.adopter.Adopt(ctx, r, from)
		return Grant{Request: g.Request, Token: from.Token, Slot: from.Slot, Sent: g.Sent, Private: g.Private}, err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}
