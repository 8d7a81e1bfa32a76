package conformance

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var holderRules = []rule{
	{
		name: "HolderNames", body: holderNames, since: "v0.1.0",
		did: "Some ninety leases have a locker.Holder each: with separators of every kind, blank, long, not ASCII, alike; " +
			"two have none. Others, who have names too, or the same, call TryLock and Lock, also by the Locker that holds; " +
			"one of them gets the key by waiting, and is asked about, too. So are some of them a TTL later.",
		text: "Whatever name a holder gives itself plays no part in the lock, and who is refused is told that name, or " +
			"none if the store knows none; never half of it, that of another, or one's own.",
		hint: "Store Request.Holder beside the owner so that both can be told apart whatever bytes the name has (the owner " +
			"first, as its length is known), and return it in locker.Held and by Request.ReportHolder as it is. A store that " +
			"cannot know it returns \"\", always.",
	},
}

// namesOfHolders are such that a backend may cut, fold, split or escape them, or take them for something else.
func namesOfHolders() []string {
	const owner = "0123456789abcdef0123456789abcdef" // looks like one
	names := []string{
		"a", "worker", "Worker", "WORKER", "worker-1", "worker_1", "a:b", "a:b:c", ":", "::", ":a", "a:", "a::b", "host:1234",
		"a/b", "/", "a|b", "|", "a,b", ",", "a;b", "a=b", "a@b", "a#b", "a&b", "a+b", "a%20b", "%", "%s", "%d", "a b", " ",
		"  ", " a", "a ", "a\tb", "\t", "a\nb", "\n", "a\r\nb", "a\x00b", "\x00", "a\x00", "\x00a", "\x1f", "\x7f", `"`, `""`,
		"'", `a"b`, `\`, `\\`, `\n`, `\x00`, "`", "{}", "{a}", "[]", "()", "<b>", "&amp;", "null", "nil", "true", "0", "1",
		"-1", "*", "?", "$1", "caller", "the caller", locker.ThisLocker, "conformance-holder", "\u00e9", "e\u0301",
		"\u65e5\u672c\u8a9e", "\u00df", "\U0001F512", "\U0001F513", "\ufeffa", "\ufffd", "\u2028", "\u202ea", "\u200b",
		"a\u00a0", owner, owner + ":", owner + ":a", ":" + owner, "a:" + owner,
	}
	for _, length := range []int{31, 32, 33, 63, 64, 65, 100, 127, locker.MaxHolderLen} {
		names = append(names, strings.Repeat("h", length))
	}
	return append(names, strings.Repeat(":", locker.MaxHolderLen), strings.Repeat("\x00", locker.MaxHolderLen),
		strings.Repeat("\U0001F512", locker.MaxHolderLen/4), strings.Repeat("\u00e9", locker.MaxHolderLen/2),
		strings.Repeat("a:", locker.MaxHolderLen/2),
		strings.Repeat("h", locker.MaxHolderLen-1)+"i", "", "") // two without a name
}

// namesTold is what becomes of those who are refused.
type namesTold struct {
	*check
	ls             []locker.Locker // the first is that which holds, at first
	known, unknown atomic.Int64    // how often TryLock told the name of a holder that has one, and how often none
	example        atomic.Pointer[string]
}

// refused has others try a key that is held.
func (t *namesTold) refused(held *locker.Lease, name, another string) {
	t.try(t.ls[1], held, name)
	t.try(t.ls[2], held, name, locker.Holder(name))
	t.try(t.ls[2], held, name, locker.Holder(another))
	t.try(t.ls[0], held, name, locker.Holder("somebody else"))
}

// try has somebody try a key until the name of its holder is told, as one of several servers may not know yet who came
// after whom, or until it is clear that it is not told.
func (t *namesTold) try(l locker.Locker, held *locker.Lease, name string, opts ...locker.CallOption) {
	for start := time.Now(); !t.failed(); time.Sleep(t.ttl / 50) {
		lease, err := l.TryLock(t.within(10*t.ttl), held.Key(), opts...)
		if !t.isRefused(lease, err, held, name, "TryLock") {
			return
		}
		told := holderIn(err)
		switch ended := time.Since(start) > t.soon(); {
		case told == name && name != "":
			t.known.Add(1)
			return
		case told == name:
			return
		case told == "" && (ended || t.known.Load() == 0):
			t.unknown.Add(1)
			t.example.Store(&name)
			return
		case ended:
			t.errorf("TryLock, for %v: Error.Holder is %q; the holder's name is %q", t.soon(), told, name)
			return
		}
	}
}

// wait has somebody wait for a key until its ctx ends. The Locker that holds may also be told that it does so itself.
func (t *namesTold) wait(l locker.Locker, held *locker.Lease, name string, itself bool) {
	const times = 3
	told := ""
	for range times {
		lease, err := l.Lock(t.within(t.ttl/10), held.Key(), locker.Holder("who waits"))
		if !t.isRefused(lease, err, held, name, "Lock") {
			return
		}
		// The store need not have told by whom the key is held, or that it is.
		if told = holderIn(err); told == "" || told == name || itself && told == locker.ThisLocker {
			return
		}
	}
	t.errorf("Lock whose wait has ended, %d times: Error.Holder is %q; the holder's name is %q", times, told, name)
}

// isRefused reports whether somebody was refused a key that is held.
func (t *namesTold) isRefused(lease *locker.Lease, err error, held *locker.Lease, name, how string) bool {
	var e *locker.Error
	switch {
	case err == nil && held.Err() == nil:
		t.wrongf("%s of a key that %q holds succeeded", how, name)
		_ = lease.Unlock()
	case err == nil:
		t.errorf("%s of a key that %q holds: it succeeded, as the holder has lost its lease: %v", how, name, held.Err())
		_ = lease.Unlock()
	case !errors.As(err, &e):
		t.errorf("%s of a key that %q holds: %v; want an error that is a *locker.Error", how, name, err)
	case errors.Is(err, locker.ErrLocked), errors.Is(err, context.DeadlineExceeded):
		return true
	default:
		t.errorf("%s of a key that %q holds: %v; want that it is refused", how, name, err)
	}
	return false
}

// holderIn returns the holder's name in an error.
func holderIn(err error) string {
	var e *locker.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Holder
}

func holderNames(c *check) {
	names := namesOfHolders()
	c.shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	another := func(i int) string { return names[(i+7)%len(names)] }
	ls := []locker.Locker{c.open(), c.open(locker.Holder("the caller")), c.open()}
	told := &namesTold{check: c, ls: ls}

	long := locker.TTL(20 * c.ttl) // they need not live by renewals
	c.several(len(names), func(i int) {
		lease, err := ls[0].TryLock(c.within(10*c.ttl), c.key(), locker.Holder(names[i]), long)
		if err != nil {
			c.errorf("TryLock with Holder(%q), of a key that is free: %v", names[i], err)
			return
		}
		told.refused(lease, names[i], another(i))
		l, itself := ls[1+i%2], i%4 == 0
		if itself {
			l = ls[0]
		}
		told.wait(l, lease, names[i], itself)

		w := c.start(c.within(10*c.ttl), ls[2], lease.Key(), locker.Holder(another(i)), long)
		if i%2 == 0 { // it waits, or need not
			c.settle()
		}
		c.unlock(lease)
		next, err := c.result(w)
		if err != nil {
			c.errorf("Lock by %q of a key that %q has unlocked: %v", another(i), names[i], err)
			return
		}
		told.refused(next, another(i), names[i])
		c.unlock(next)
	})
	if !c.failed() {
		told.whenRenewed(names[:asMany(c.ttl/6, c.pace(ls[0]), 24, len(names))])
	}
	if known, unknown := told.known.Load(), told.unknown.Load(); known > 0 && unknown > 0 {
		c.errorf("who was refused was told the holder's name %d times, and %d times none although it had one, such as %q",
			known, unknown, *told.example.Load())
	}
}

// whenRenewed is about leases with these names that have been renewed.
func (t *namesTold) whenRenewed(names []string) {
	leases := make([]*locker.Lease, len(names))
	t.several(len(names), func(i int) {
		leases[i] = t.tryLock(t.ls[0], t.key(), locker.Holder(names[i]))
	})
	t.beyondTTL()
	start := time.Now()
	t.several(len(names), func(i int) {
		if leases[i] == nil {
			return
		}
		if time.Since(start) < t.ttl/8 { // see livesOn
			t.try(t.ls[1], leases[i], names[i])
		}
		t.unlock(leases[i])
	})
}
