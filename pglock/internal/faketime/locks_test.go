package faketime

import "slices"

// lockID is a key of 64 bits, or one that two integers were made of.
type lockID struct {
	key   int64
	pairs bool
}

// advisory is an advisory lock: how often each has it, shared and alone, and who waits for it.
type advisory struct {
	had  map[*process]*[2]int
	line []*wait
}

type wait struct {
	of      *process
	alone   int // 1 for alone, 0 for shared
	granted chan struct{}
}

// lock returns an advisory lock. s.mu is held, as in all that follow but await.
func (s *simulated) lock(id lockID) *advisory {
	if s.locks[id] == nil {
		s.locks[id] = &advisory{had: make(map[*process]*[2]int)}
	}
	return s.locks[id]
}

// against reports whether somebody else has a lock in a way that is against one for p.
func (l *advisory) against(p *process, alone int) bool {
	for other, n := range l.had {
		if other != p && (alone == 1 || n[1] > 0) {
			return true
		}
	}
	return false
}

func (l *advisory) grant(p *process, alone int) {
	if l.had[p] == nil {
		l.had[p] = new([2]int)
	}
	l.had[p][alone]++
}

// try is pg_try_advisory_lock. A session gets again what it has; nobody else gets past those who wait.
func (p *process) try(id lockID, alone int) bool {
	l := p.lock(id)
	if n := l.had[p]; n == nil || n[alone] == 0 {
		if slices.ContainsFunc(l.line, func(w *wait) bool { return alone+w.alone > 0 }) || l.against(p, alone) {
			return false
		}
	}
	l.grant(p, alone)
	return true
}

// unlock is pg_advisory_unlock.
func (p *process) unlock(id lockID, alone int) bool {
	l := p.lock(id)
	n := l.had[p]
	if n == nil || n[alone] == 0 {
		return false
	}
	if n[alone]--; n[0]+n[1] == 0 {
		delete(l.had, p)
	}
	l.wake()
	return true
}

// wake grants a lock to those in line who can have it now, none of whom stands behind one whom that is against.
func (l *advisory) wake() {
	var ahead []*wait
	for _, w := range l.line {
		if l.against(w.of, w.alone) || slices.ContainsFunc(ahead, func(a *wait) bool { return a.alone+w.alone > 0 }) {
			ahead = append(ahead, w)
			continue
		}
		l.grant(w.of, w.alone)
		close(w.granted)
	}
	l.line = ahead
}

// unlockAll is pg_advisory_unlock_all.
func (p *process) unlockAll() {
	for id, l := range p.locks {
		if l.had[p] != nil {
			delete(l.had, p)
			l.wake()
		}
		if len(l.had)+len(l.line) == 0 {
			delete(p.locks, id)
		}
	}
}

// await is pg_advisory_lock. It returns false if it was cancelled, or the process has to end.
func (p *process) await(key int64, alone int) bool {
	p.mu.Lock()
	if p.try(lockID{key: key}, alone) {
		p.mu.Unlock()
		return true
	}
	l := p.lock(lockID{key: key})
	w := &wait{of: p, alone: alone, granted: make(chan struct{})}
	l.line = append(l.line, w)
	p.mu.Unlock()
	p.waits.Store(true)
	defer p.waits.Store(false)
	select {
	case <-w.granted:
		return true
	case <-p.cancels:
	case <-p.over:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(l.line, w); i >= 0 {
		l.line = slices.Delete(l.line, i, i+1)
		l.wake()
	} // else it has the lock all the same
	return false
}
