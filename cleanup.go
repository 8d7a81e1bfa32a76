package locker

import (
	"container/heap"
	"errors"
	"sync"
	"time"
)

// cleanup gives back, in the background and for every caller, what acquires may have left behind that nobody wants:
// those whose outcome is unknown, and those whose caller had gone when they were granted.
//
// However long a store hangs, and however many acquires fail meanwhile, there are at most cleaners goroutines, and
// mostDebts owners to release: what does not find room ends with its TTL, as what cannot be released in time does.
type cleanup struct {
	mu      sync.Mutex
	debts   debtHeap
	working int         // goroutines
	timer   *time.Timer // nil until the first pause
}

const (
	cleaners  = 8
	mostDebts = 10_000
)

// debt is what has to be released.
type debt struct {
	grant Grant
	due   time.Time
	until time.Time     // it has ended by itself then
	pause time.Duration // after the next failure
}

// add has what r may have left behind released. g is what was granted, zero if that is unknown. It has to be called by
// what Close waits for.
func (k *cleanup) add(c *Client, r Request, g Grant) {
	now := time.Now()
	granted := g.TTL
	if g.Request = r; granted > 0 {
		g.TTL = granted
	}
	g.MinHold = 0 // nobody has used it
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.debts) < mostDebts {
		lasts := max(r.TTL, g.TTL)
		heap.Push(&k.debts, &debt{grant: g, due: now, until: now.Add(lasts), pause: 5 * time.Millisecond})
		k.startLocked(c)
	}
}

// startLocked starts a goroutine if there is work for one more.
func (k *cleanup) startLocked(c *Client) {
	if k.working < cleaners {
		k.working++
		c.calls.Go(func() { k.work(c) })
	}
}

// work releases what is due, until nothing is.
func (k *cleanup) work(c *Client) {
	for {
		d := k.next(c)
		if d == nil {
			return
		}
		err := c.releaseOnce(d.grant, d.until, time.Until(d.until), new(callCtx))
		if err == nil || errors.Is(err, ErrLost) || isFinal(err) || c.life.Err() != nil {
			continue // Close does not wait for a store that does not answer
		}
		k.later(d)
	}
}

// next returns the debt that is due, nil if there is none: the timer then starts work when one is.
func (k *cleanup) next(c *Client) *debt {
	k.mu.Lock()
	defer k.mu.Unlock()
	closing := c.life.Err() != nil
	for len(k.debts) > 0 {
		d := k.debts[0]
		wait := time.Until(d.due)
		switch {
		case time.Until(d.until) <= 0:
			heap.Pop(&k.debts)
			continue
		case wait <= 0, closing:
			heap.Pop(&k.debts)
			if len(k.debts) > 0 && (closing || time.Until(k.debts[0].due) <= 0) {
				k.startLocked(c)
			}
			return d
		case k.timer == nil:
			k.timer = time.AfterFunc(wait, func() { k.wake(c) })
		default:
			k.timer.Reset(wait)
		}
		break
	}
	k.working--
	return nil
}

// wake is the timer's function.
func (k *cleanup) wake(c *Client) {
	if c.enter() != nil {
		return // Close has seen to what was left
	}
	defer c.calls.Done()
	k.start(c)
}

// start starts a goroutine if there is something to do. It has to be called by what Close waits for.
func (k *cleanup) start(c *Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.debts) > 0 {
		k.startLocked(c)
	}
}

// later has a debt tried again after a pause. With a long TTL that does not hurry, nor if there are many: a store that
// refuses all of them is asked a thousand times a second at most.
func (k *cleanup) later(d *debt) {
	longest := min(max(d.grant.TTL/30, longestPause), 10*time.Second)
	k.mu.Lock()
	defer k.mu.Unlock()
	pause := max(d.pause, time.Duration(len(k.debts))*time.Millisecond)
	d.due = time.Now().Add(jittered(pause))
	d.pause = min(2*d.pause, longest)
	heap.Push(&k.debts, d)
}

// debtHeap is a heap.Interface ordered by debt.due.
type debtHeap []*debt

func (h debtHeap) Len() int           { return len(h) }
func (h debtHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h debtHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *debtHeap) Push(x any) { *h = append(*h, x.(*debt)) }

// Pop implements heap.Interface.
func (h *debtHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return d
}
