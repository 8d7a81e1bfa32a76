package server

import (
	"encoding/hex"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// listenAfter is for how long a lock has been held, at least, when its Locker begins to listen to who may take it away,
// and twice that is the most. Most locks are held for a moment, and are not worth a connection.
const listenAfter = 50 * time.Millisecond

// leases are those of this Locker, by their owners. Their holders are told at once when somebody takes a lock away.
// What is said before the Locker listens is not heard: then they are told when they renew.
type leases struct {
	listen func() // begins to listen, unless that has been done

	mu      sync.Mutex
	began   time.Time // what the times of leases are counted from; set once
	held    map[locker.Owner]lease
	most    int         // more than so many are looked through for those that are over
	timer   *time.Timer // nil until there is one; calls tick
	ticking bool
}

func newLeases(listen func()) *leases {
	return &leases{listen: listen, began: time.Now(), held: make(map[locker.Owner]lease)}
}

// lease is small enough for a map to need no memory of its own for each.
type lease struct {
	request locker.Request
	until   time.Duration
	waited  bool // for it in line, where others may have come meanwhile
}

// granted notes a lease, for which it listens when it has been held for a while.
func (l *leases) granted(r locker.Request, waited bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteLocked(lease{r, l.now() + r.TTL, waited})
	switch {
	case l.ticking:
		return
	case l.timer == nil:
		l.timer = time.AfterFunc(listenAfter, l.tick)
	default:
		l.timer.Reset(listenAfter)
	}
	l.ticking = true
}

// tick listens if there is a lease that was there at the last tick, and else comes again for those there are.
func (l *leases) tick() {
	l.mu.Lock()
	now, old := l.now(), false
	for _, held := range l.held {
		if old = held.until-now <= held.request.TTL-listenAfter; old {
			break
		}
	}
	if l.ticking = !old && len(l.held) > 0; l.ticking {
		l.timer.Reset(listenAfter)
	}
	l.mu.Unlock()
	if old {
		l.listen()
	}
}

// renewed notes that some leases are about to be renewed, and listens.
func (l *leases) renewed(gs []locker.Grant) {
	l.mu.Lock()
	now := l.now()
	for _, g := range gs {
		l.noteLocked(lease{g.Request, now + g.TTL, l.held[g.Owner].waited})
	}
	l.mu.Unlock()
	l.listen()
}

func (l *leases) now() time.Duration { return time.Since(l.began) }

func (l *leases) noteLocked(held lease) {
	const few = 1000
	l.held[held.request.Owner] = held
	if len(l.held) > l.most { // some were not released
		now := l.now()
		maps.DeleteFunc(l.held, func(_ locker.Owner, held lease) bool { return now > held.until })
		l.most = 2*len(l.held) + few
	}
}

// any reports whether there is one that is not over, and forgets those that it finds before.
func (l *leases) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for owner, held := range l.held {
		if now < held.until {
			return true
		}
		delete(l.held, owner)
	}
	return false
}

// released notes that a lease is being given back, and reports whether its owner had waited for it in line.
func (l *leases) released(owner locker.Owner) (waited bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waited = l.held[owner].waited
	delete(l.held, owner)
	return waited
}

// parseOwner is the reverse of Owner.String.
func parseOwner(text string) (o locker.Owner, ok bool) {
	if len(text) != hex.EncodedLen(len(o)) {
		return o, false // Decode would write on behind the end
	}
	_, err := hex.Decode(o[:], []byte(text))
	return o, err == nil
}

// heard tells those of this Locker who had a lock that was taken away.
func (l *leases) heard(message string) {
	kind, rest, _ := strings.Cut(message, " ")
	end := strings.LastIndexByte(rest, ' ')
	if end < 0 || kind != "r" && kind != "b" {
		return // not one of ours
	}
	l.takenAway(rest[end+1:], decodeWhy(rest[:end], kind == "b"))
}

// takenAway tells those of some owners who are holders here.
func (l *leases) takenAway(owners string, r *locker.Revocation) {
	var lost []locker.Request
	l.mu.Lock()
	for text := range strings.SplitSeq(owners, ",") {
		if owner, ok := parseOwner(text); ok {
			if held, ok := l.held[owner]; ok {
				lost = append(lost, held.request)
				delete(l.held, owner)
			}
		}
	}
	l.mu.Unlock()
	if len(lost) > 0 {
		locker.ReportLost(lost, r)
	}
}
