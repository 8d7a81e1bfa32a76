package etcdlock

import (
	"cmp"
	"slices"
)

// ownLine is the claims of this Locker in one place, in the order in which they were made, and so the order of their
// turns. Only the first of them looks whose turn it is, as that is as much work for the servers as the line is long.
// Behind one that has the lock, the next watches its key; the others just wait for their turn to do that.
type ownLine struct {
	claims []*claim
	holder string // of the lock, as the first has seen it last
}

// enlist puts a claim into its line, when it is known at which revision it was made.
func (b *backend) enlist(c *claim, revision int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enlistLocked(c, revision)
}

func (b *backend) enlistLocked(c *claim, revision int64) {
	if c.gone || c.created != 0 {
		return
	}
	c.created = revision
	l := b.lines[c.place]
	if l == nil {
		l = new(ownLine)
		b.lines[c.place] = l
	}
	i, _ := slices.BinarySearchFunc(l.claims, c, byCreation)
	l.claims = slices.Insert(l.claims, i, c)
}

func byCreation(a, b *claim) int { return cmp.Compare(a.created, b.created) }

// delistLocked takes a claim out of its line that nobody has any more, of which the next is told.
func (b *backend) delistLocked(c *claim) {
	if c.created == 0 {
		return
	}
	l := b.lines[c.place]
	i := slices.Index(l.claims, c)
	l.callLocked(i + 1)
	l.claims = slices.Delete(l.claims, i, i+1)
	c.created = 0
	if len(l.claims) == 0 {
		delete(b.lines, c.place)
	}
}

// tellNextLocked tells the next in the line that a claim has the lock.
func (b *backend) tellNextLocked(c *claim) {
	if l := b.lines[c.place]; l != nil {
		l.callLocked(slices.Index(l.claims, c) + 1)
	}
}

// callLocked tells the claim at an index, if there is one, that there is news of the one before.
func (l *ownLine) callLocked(i int) {
	if i < len(l.claims) {
		select {
		case l.claims[i].turn <- struct{}{}:
		default: // it has been told
		}
	}
}

// ownBefore returns the claim of this Locker that comes before another one in its line, nil if there is none, and
// whether it has the lock.
func (b *backend) ownBefore(c *claim) (before *claim, holds bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.created == 0 || c.gone {
		return nil, false
	}
	l := b.lines[c.place]
	i := slices.Index(l.claims, c)
	if i == 0 {
		return nil, false
	}
	before = l.claims[i-1]
	return before, before.token != 0
}

// sawHolder notes who has the lock of a claim that is in line.
func (b *backend) sawHolder(c *claim, holder string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.lines[c.place]; l != nil {
		l.holder = holder
	}
}

// holderOf returns who has the lock of a claim that waits behind others of this Locker, as far as they know.
func (b *backend) holderOf(c *claim) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lines[c.place]
	if l == nil {
		return ""
	}
	if first := l.claims[0]; first.token != 0 {
		return first.request.Holder
	}
	return l.holder
}
