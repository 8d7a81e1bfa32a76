package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/lockerkit/locker"
)

var sharedRules = []rule{
	{
		name: "ManyReaders", body: manyReaders, mode: locker.Shared(), since: "v0.1.0",
		did:  "Six readers over 3 Lockers lock a key, by TryLock and by Lock, and unlock it; then a writer does.",
		text: "Any number of readers hold a key at the same time, over Lockers and within one.",
		hint: hintModes,
	},
	{
		name: "WriterExcludes", body: writerExcludes, mode: locker.Shared(), since: "v0.1.0",
		did: "A reader tries a key that a writer holds, and a writer one that two readers hold, on the Locker of the " +
			"holder and on another.",
		text: "A writer excludes readers, and readers exclude writers until the last of them has left.",
		hint: hintModes,
	},
	{
		name: "WriterIsNotOvertaken", body: writerIsNotOvertaken, mode: locker.Shared(), since: "v0.1.0",
		relaxes: unordered,
		did: "A reader holds a key, and a writer waits. Then others want to read: by TryLock and by Lock, on the " +
			"Locker that reads already and on another.",
		text: "No reader overtakes a writer that waits, not by TryLock and not where somebody reads already.",
		hint: hintOneLine,
	},
	{
		name: "ReadersEnterTogether", body: readersEnterTogether, mode: locker.Shared(), since: "v0.1.0",
		did:  "Four readers over 2 Lockers wait for a writer, who unlocks.",
		text: "Readers that come next in line get in together: none has to wait for another to leave.",
		hint: hintOneLine,
	},
	{
		name: "EachEndsByItself", body: eachEndsByItself, mode: locker.Shared(), since: "v0.1.0", expires: true,
		did: "Three readers hold a key: one whose process dies, one with four times the TTL whose process dies, " +
			"too, and one who lives and unlocks after one and a half TTLs. A writer waits.",
		text: "A reader's TTL is its own: no other reader's renewal makes it longer, and no other's shorter TTL " +
			"shortens it.",
		hint: hintEachItsOwn,
	},
	{
		name: "ExpiryWakesWriter", body: expiryWakesWriter, mode: locker.Shared(), since: "v0.1.0", expires: true,
		did: "Two readers hold a key. The process of one dies, and the other one unlocks half a TTL later. A writer " +
			"waits.",
		text: "When a reader vanishes, a writer gets the lock when the TTL has passed, not before, and not much after.",
		hint: hintEachItsOwn + " A Wait has to notice by itself that the last of them has ended.",
	},
	{
		name: "CancelledWriterLetsReadersIn", body: cancelledWriterLetsReadersIn, mode: locker.Shared(),
		since: "v0.1.0",
		did:   "A reader holds a key, a writer waits, and two readers wait behind it. The writer's ctx is cancelled.",
		text:  "When a writer gives up, the readers that have waited for its turn alone get in at once.",
		hint:  hintOneLine,
	},
	{
		name: "LossIsOnlyMine", body: lossIsOnlyMine, mode: locker.Shared(), since: "v0.1.0",
		did:  "Three readers hold a key for one and a half TTLs. One of them unlocks at the beginning.",
		text: "When one reader unlocks, the others go on to hold the key.",
		hint: hintEachItsOwn,
	},
	{
		name: "TokensOverModes", body: increasing(locker.Shared()), mode: locker.Shared(), since: "v0.1.0",
		did: "A key is held by a writer, by three readers, of whom two at a time, by a writer again, and so on, " +
			"over 2 Lockers.",
		text: "Each grant of a key, in whatever mode, has a token greater than those of all before.",
		hint: hintToken,
	},
}

func manyReaders(c *check) {
	key := c.key()
	ls := []locker.Locker{c.open(), c.open(), c.open()}
	var leases []*locker.Lease
	for i := range 6 {
		if l := ls[i%len(ls)]; i < 3 {
			leases = append(leases, c.tryLock(l, key, locker.Shared()))
		} else {
			leases = append(leases, c.lock(l, key, locker.Shared()))
		}
		if mode := leases[i].Mode(); mode != locker.ModeShared {
			c.errorf("the mode of a reader's lease is %d; want %d", mode, locker.ModeShared)
		}
	}
	for _, lease := range leases {
		if err := lease.Err(); err != nil {
			c.errorf("a reader's lease has ended: %v", err)
		}
	}
	c.unlockEach(leases...)
	c.freeWithin(ls[0], key, c.soon(), "after the readers have left")
}

func writerExcludes(c *check) {
	key := c.key()
	one, other := c.open(), c.open()
	writer := c.lock(one, key)
	c.refused(other, writer, "by a reader, of a key that a writer holds", locker.Shared())
	c.refused(one, writer, "by a reader, on the Locker of the writer that holds the key", locker.Shared())
	c.unlock(writer)

	first, second := c.lock(one, key, locker.Shared()), c.lock(other, key, locker.Shared())
	third := c.open()
	c.refused(third, first, "by a writer, of a key that two readers hold")
	c.refused(one, first, "by a writer, on the Locker of one of two readers")
	c.unlock(first)
	c.refused(third, second, "by a writer, of a key that one of two readers still holds")
	c.refused(other, second, "by a writer, on the Locker of the last reader")
	c.unlock(second)
	c.freeWithin(third, key, c.soon(), "after the last reader has left")
}

func writerIsNotOvertaken(c *check) {
	key := c.key()
	reading, other, writing := c.open(), c.open(), c.open()
	reader := c.lock(reading, key, locker.Shared())
	writer := c.waits(c.within(10*c.ttl), writing, key)
	c.refused(other, reader, "by a reader, of a key for which a writer waits", locker.Shared())
	c.refused(reading, reader, "by a reader, on the Locker that reads already, while a writer waits", locker.Shared())
	late := []*wait{
		c.waits(c.within(20*c.ttl), reading, key, locker.Shared()),
		c.waits(c.within(20*c.ttl), other, key, locker.Shared()),
	}
	for _, w := range late {
		c.stillWaits(w, "for a reader, while a writer has waited for longer")
	}
	start := time.Now()
	c.unlock(reader)
	lease := c.granted(writer, start, "a writer, after the reader before it has left")
	for _, w := range late {
		c.stillWaits(w, "for a reader, while a writer holds the key")
	}
	c.unlock(lease)
	for _, w := range late {
		if lease, err := c.result(w); err != nil {
			c.errorf("a reader behind a writer: %v; want a lease", err)
		} else {
			c.unlock(lease)
		}
	}
}

func readersEnterTogether(c *check) {
	key := c.key()
	ls := []locker.Locker{c.open(), c.open()}
	writer := c.lock(ls[0], key)
	waits := make([]*wait, 4)
	for i := range waits {
		waits[i] = c.waits(c.within(10*c.ttl), ls[i%len(ls)], key, locker.Shared())
	}
	start := time.Now()
	c.unlock(writer)
	leases := make([]*locker.Lease, len(waits))
	for i, w := range waits { // nobody leaves before all are in
		leases[i] = c.granted(w, start,
			"a reader that waits behind other readers, after the writer before them has left")
	}
	c.unlockEach(leases...)
}

func eachEndsByItself(c *check) {
	key := c.key()
	living, writing := c.open(), c.open()
	start := time.Now()
	long := c.abandon(key, locker.Shared(), locker.TTL(4*c.ttl))
	short := c.abandon(key, locker.Shared())
	lives := c.lock(living, key, locker.Shared())
	writer := c.start(c.within(20*c.ttl), writing, key)
	time.Sleep(time.Until(start.Add(c.ttl * 3 / 2)))
	if short.Err() == nil {
		c.errorf("a reader whose process is dead has its lease one and a half TTLs later")
	}
	if err := lives.Err(); err != nil {
		c.errorf("a reader who renews its lease has lost it, when another one's has ended: %v", err)
	}
	if err := long.Err(); err != nil && c.h.Features.RenewsItself == "" {
		c.errorf("a reader with four times the TTL has lost its lease when that of another one has ended: %v", err)
	}
	c.stillWaits(writer, "for a writer, while readers hold the key")
	c.unlock(lives)
	lease, err := c.result(writer)
	if err != nil {
		c.fatalf("a writer that waits for readers whose processes are dead: %v; want a lease", err)
	}
	c.passed(writer, 4*c.ttl, start, "a writer that waits for a reader with four times the TTL")
	c.unlock(lease)

	// The other way round: who dies does not live on by the renewals of another.
	start = time.Now()
	_ = c.abandon(key, locker.Shared())
	lives = c.lock(living, key, locker.Shared())
	writer = c.start(c.within(20*c.ttl), writing, key)
	time.Sleep(time.Until(start.Add(c.ttl * 3 / 2)))
	freed := time.Now()
	c.unlock(lives)
	c.unlock(
		c.granted(writer, freed, "a writer, after the last living reader has left, and the dead one's TTL has passed"),
	)
}

func expiryWakesWriter(c *check) {
	key := c.key()
	l, writing := c.open(), c.open()
	lives := c.lock(l, key, locker.Shared())
	start := time.Now()
	_ = c.abandon(key, locker.Shared())
	writer := c.start(c.within(10*c.ttl), writing, key)
	time.Sleep(c.ttl / 2)
	c.unlock(lives)
	lease, err := c.result(writer)
	if err != nil {
		c.fatalf("a writer that waits for a reader whose process is dead: %v; want a lease", err)
	}
	c.passed(writer, c.ttl, start, "a writer that waits for a reader whose process is dead")
	c.unlock(lease)
}

func cancelledWriterLetsReadersIn(c *check) {
	key := c.key()
	ls := []locker.Locker{c.open(), c.open()}
	reader := c.lock(ls[0], key, locker.Shared())
	ctx, cancel := context.WithCancel(c.within(10 * c.ttl))
	defer cancel()
	writer := c.waits(ctx, c.open(), key)
	waits := []*wait{
		c.waits(
			c.within(10*c.ttl),
			ls[0],
			key,
			locker.Shared(),
		), c.waits(c.within(10*c.ttl), ls[1], key, locker.Shared()),
	}
	start := time.Now()
	cancel()
	for _, w := range waits {
		c.unlock(c.granted(w, start, "a reader, after the writer before it has given up"))
	}
	if _, err := c.result(writer); !errors.Is(err, context.Canceled) {
		c.errorf("a writer whose ctx was cancelled: %v; want context.Canceled", err)
	}
	c.unlock(reader)
	c.freeWithin(ls[1], key, c.soon(), "after the readers have left")
}

func lossIsOnlyMine(c *check) {
	key := c.key()
	one, other := c.open(), c.open()
	leaves := c.lock(one, key, locker.Shared())
	stay := []*locker.Lease{c.lock(one, key, locker.Shared()), c.lock(other, key, locker.Shared())}
	c.unlock(leaves)
	c.refused(c.open(), stay[0], "by a writer, of a key that two of three readers still hold")
	time.Sleep(c.ttl * 3 / 2)
	for _, lease := range stay {
		if err := lease.Err(); err != nil {
			c.errorf("a reader has lost its lease, after another one had unlocked: %v", err)
		}
	}
	c.refused(c.open(), stay[0], "by a writer, of a key that two readers hold")
	c.unlockEach(stay...)
	c.freeWithin(other, key, c.soon(), "after the readers have left")
}
