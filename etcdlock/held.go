package etcdlock

import (
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// The keys of locks that are held are watched, so that a holder is told at once when its lock is taken away. A watch
// begins at the revision of the grant: what has happened since then is not missed, and nobody has to look at the key
// for that. Most locks are held for a moment, and are not worth a watch. So it is made when they have been held for
// one tick to two.
const watchTick = 50 * time.Millisecond

// watchPause is how long after the end of a watch another is made: a server that ends all of them must not be asked for
// them all the time.
const watchPause = time.Second

// unwatched is a claim that holds its lock, and is to be watched from a revision on: before that it was there, and not
// marked as taken away. If that is 0, no such revision is known, and it is looked at first.
type unwatched struct {
	claim *claim
	from  int64
}

// newcomers are the claims that are to be watched soon.
type newcomers struct {
	timer         *time.Timer // nil until there is one
	late, earlier []unwatched // of this tick, and of the one before
	broken        []*claim    // whose watches have ended; waits for watchAgain if there are any
}

// watchSoonLocked has a claim watched that was there at a revision, without a mark, or of which that is not known.
func (b *backend) watchSoonLocked(c *claim, seen int64) {
	n := &b.newcomers
	switch {
	case n.timer == nil:
		n.timer = time.AfterFunc(watchTick, func() { b.running.start(b.tick) })
	case len(n.late)+len(n.earlier) == 0:
		n.timer.Reset(watchTick)
	}
	u := unwatched{claim: c}
	if seen > 0 {
		u.from = seen + 1
	}
	n.late = append(n.late, u)
}

// tick has those watched that were there before the last tick.
func (b *backend) tick() {
	b.mu.Lock()
	n := &b.newcomers
	due := slices.DeleteFunc(n.earlier, func(u unwatched) bool { return u.claim.gone }) // nearly all
	n.late, n.earlier = nil, n.late
	if len(n.earlier) > 0 {
		n.timer.Reset(watchTick)
	}
	b.mu.Unlock()
	var unknown []*claim
	for _, u := range due {
		if u.from > 0 {
			u.claim.watchFrom(u.from)
		} else {
			unknown = append(unknown, u.claim)
		}
	}
	b.lookAndWatch(unknown)
}

func (b *backend) watchAgain() {
	b.mu.Lock()
	n := &b.newcomers
	broken := slices.DeleteFunc(n.broken, func(c *claim) bool { return c.gone })
	n.broken = nil
	b.mu.Unlock()
	b.lookAndWatch(broken)
}

func (b *backend) lookAndWatch(claims []*claim) {
	for i, s := range b.lookAfter(claims) {
		_ = b.learn(b.life, claims[i], s) // if that fails, the next Renew looks
	}
}

// watchFrom has the claim watched from a revision on, unless it is.
func (c *claim) watchFrom(revision int64) {
	b := c.session.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.gone || c.watch != nil || b.closed { // closed: notify would be called here
		return
	}
	key := target{span: span{from: c.key}, puts: true}
	c.watch = b.watches.add(key, revision, func(e watchEvent, by []*mvccpb.Event) {
		switch e {
		case watchReady:
			c.watchedSince(true)
		case watchChanged:
			for _, e := range by {
				c.changed(e)
			}
		case watchBroken:
			c.watchedSince(false)
		}
	})
}

// watchedSince takes note of whether what is done with the key is told from now on. If that has ended, the claim is
// looked at later, and watched again.
func (c *claim) watchedSince(now bool) {
	b := c.session.b
	b.mu.Lock()
	defer b.mu.Unlock()
	c.watched = now
	if now {
		return
	}
	c.watch = nil
	if c.gone || b.closed {
		return
	}
	n := &b.newcomers
	if n.broken = append(n.broken, c); len(n.broken) == 1 {
		time.AfterFunc(watchPause, func() { b.running.start(b.watchAgain) })
	}
}
