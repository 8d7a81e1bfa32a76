package locker_test

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// TestDetach: a ticket has the whole lease, whatever the bytes of its key. The new holder's options hold, and the
// Observers of both are told.
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		observe := func(who string) locker.Option {
			return locker.Observe(&locker.Observer{
				LockDone: func(_ context.Context, i locker.LockDoneInfo) {
					told = append(told,
						who+" "+i.Op+" "+i.Mode.String())
				},
				LeaseDone: func(i locker.LeaseDoneInfo) {
					if i.Err != nil {
						t.Errorf("%s is told of the end: %v", who, i.Err)
					}
					told = append(told, who+" done")
				},
			})
		}
		memory := memlock.New()
		one := memory.Peer(observe("one"), locker.Prefix("p\xff:"), locker.Holder("one"), locker.TTL(time.Minute))
		two := memory.Peer(observe("two"), locker.Holder("two"), locker.TTL(2*time.Minute))
		const key = "k\xfe\x00\"é"
		first := mustLock(t, one, key, locker.Slots(2))
		old := mustLock(t, one, key, locker.Slots(2))
		ctx, cancel := old.Context(t.Context())
		defer cancel()
		ticket, err := old.Detach()
		if err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		<-old.Done()
		if _, err := old.Detach(); !errors.Is(err, locker.ErrUnlocked) {
			t.Errorf("a second Detach: %v; want ErrUnlocked", err)
		}
		time.Sleep(time.Minute / 2)
		lease, err := locker.Adopt(t.Context(), two, ticket)
		if err != nil {
			t.Fatal(err)
		}
		if lease.Key() != key || lease.Token() != old.Token() || lease.Slot() != 1 || lease.Mode() != locker.ModeSlots {
			t.Errorf("%q, token %d, slot %d, %v", lease.Key(), lease.Token(), lease.Slot(), lease.Mode())
		}
		if left := time.Until(lease.Deadline()); left < 118*time.Second {
			t.Errorf("it lasts for %v; want what the new holder's TTL says", left)
		}
		info, err := one.Inspect(t.Context(), key)
		if err != nil || len(info.Holders) != 2 || info.Holders[1].Name != "two" {
			t.Errorf("%+v, %v; want the new holder's name", info, err)
		}
		_ = lease.Unlock()
		_ = first.Unlock()
		got := strings.Join(told, ", ")
		want := "one lock slots, one lock slots, one done, two adopt slots, two done, one done"
		if got := strings.ReplaceAll(got, "trylock", "lock"); got != want {
			t.Errorf("told: %s; want %s", got, want)
		}
	})
}

// handing is a fake whose grants are as old as a third of a second, and which notes what was detached.
type handing struct {
	*fake
	detached []locker.Grant
}

func (*handing) Features() locker.Features { return locker.Features{Adopt: true, MinHold: true} }

func (h *handing) Adopt(_ context.Context, r locker.Request, from locker.Grant) (locker.Grant, error) {
	return locker.Grant{Request: r, Token: from.Token, Sent: time.Now().Add(-time.Second / 3)}, nil
}

func (h *handing) Detached(g locker.Grant) { h.detached = append(h.detached, g) }

// TestSentBefore: a lease that is adopted is valid from when the backend says. MinHold counts from the grant all the
// same. The backend is told what was detached.
func TestSentBefore(t *testing.T) {
	h := &handing{fake: new(fake)}
	inFakeTimeOn(t, h, func(t *testing.T, l *locker.Client) {
		old := mustLock(t, l, "k", locker.TTL(time.Minute))
		ticket, err := old.Detach()
		if err != nil || len(h.detached) != 1 || h.detached[0].Owner != locker.GrantOf(old).Owner {
			t.Fatalf("%v; %+v was detached", err, h.detached)
		}
		lease, err := locker.Adopt(t.Context(), l, ticket, locker.MinHold(2*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if left, want := time.Until(lease.Deadline()), validity(time.Second)-time.Second/3; left != want {
			t.Errorf("the lease is valid for %v; want %v", left, want)
		}
		time.Sleep(time.Second / 4)
		if err := lease.Unlock(); err != nil {
			t.Error(err)
		}
		if keep, want := h.released[0].Keep, 1750*time.Millisecond; keep != want {
			t.Errorf("it is kept for %v; want %v", keep, want)
		}
	})
}

// TestDetachRefused has what cannot be detached or adopted.
func TestDetachRefused(t *testing.T) {
	older := locker.New(new(fake))
	lease := mustLock(t, older, "k")
	_, err := lease.Detach()
	wantError(t, err, "detach", "k", errors.ErrUnsupported)
	if err := lease.Unlock(); err != nil {
		t.Errorf("after a Detach that was refused: %v", err)
	}
	memory := memlock.New()
	ticket, err := mustLock(t, memory, "k").Detach()
	if err != nil {
		t.Fatal(err)
	}
	_, err = locker.Adopt(t.Context(), older, ticket)
	wantError(t, err, "adopt", "k", errors.ErrUnsupported)
	_, err = locker.Adopt(t.Context(), struct{ locker.Locker }{memory}, ticket)
	wantError(t, err, "adopt", "", errors.ErrUnsupported)
	_, err = locker.Adopt(t.Context(), memory, ticket, locker.TTL(-1))
	wantError(t, err, "adopt", "k", locker.ErrInvalidOption)
	for _, bad := range []locker.Ticket{
		"", "x", ticket[1:], ticket[:len(ticket)-1], ticket + "!", locker.Ticket(strings.Replace(string(ticket), "-1.",
			"-2.", 1)),
		madeTicket(`{}`), madeTicket(`{"k":"aw==","o":"00","t":1,"f":1}`),
		madeTicket(`{"k":"aw==","o":"00000000000000000000000000000000","t":1}`),
		madeTicket(`{"k":"","o":"00000000000000000000000000000000","t":1,"f":1}`),
		madeTicket(`{"k":"aw==","o":"00000000000000000000000000000000","t":1,"f":1,"m":3}`),
		madeTicket(`{"k":"aw==","o":"00000000000000000000000000000000","t":1,"f":1,"m":2,"n":2,"s":2}`),
		madeTicket(`{"k":"aw==","o":"00000000000000000000000000000000","t":1,"f":1,"n":2}`),
	} {
		_, err := locker.Adopt(t.Context(), memory, bad)
		wantError(t, err, "adopt", "", locker.ErrInvalidOption)
	}
	if lease, err = locker.Adopt(t.Context(), memory, ticket); err != nil {
		t.Fatalf("after what was refused: %v", err)
	}
	if err := memory.Break(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	_, err = lease.Detach()
	wantError(t, err, "detach", "k", locker.ErrLost, locker.ErrBroken)
}

func madeTicket(text string) locker.Ticket {
	return locker.Ticket("locker-ticket-1." + base64.RawURLEncoding.EncodeToString([]byte(text)))
}

// FuzzTicket adopts what anybody may send.
func FuzzTicket(f *testing.F) {
	memory := memlock.New()
	lease, err := memory.TryLock(f.Context(), "k")
	if err != nil {
		f.Fatal(err)
	}
	ticket, err := lease.Detach()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(ticket))
	f.Add(string(madeTicket(`{"k":"aw==","o":"00000000000000000000000000000000","t":1,"f":1}`)))
	f.Fuzz(func(t *testing.T, text string) {
		_, err := locker.Adopt(t.Context(), memlock.New(), locker.Ticket(text))
		if !errors.Is(err, locker.ErrNotHeld) && !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%v; want ErrNotHeld or ErrInvalidOption", err)
		}
	})
}
