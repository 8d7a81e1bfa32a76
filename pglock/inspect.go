package pglock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
)

// To inspect is to read pg_locks, where a lock is a key without a name, and pg_stat_activity, which knows the sessions.
// It is done on a session that has no locks and does nothing else: it may take a while where there are many locks, and
// may have to wait for somebody who has locked the tables of databases or roles.

// inspectSQL returns what sessions have or wait for of a key and its marks. It is a format: the number of the message,
// the key, its marks, and the keys of the slots. What has two integers, which are halves of the key, is the mark of
// somebody who polls. The server notes when a wait began a moment after it did.
const inspectSQL = `SELECT %[1]d;
SELECT coalesce(pid::text, virtualtransaction), key, objsubid = 2, mode = 'ExclusiveLock', granted,
	(extract(epoch FROM coalesce(waitstart, clock_timestamp())) * 1000000)::bigint,
	concat_ws(', ', coalesce('pid ' || pid, 'a prepared transaction'), host(client_addr), nullif(application_name, ''))
FROM (SELECT *, classid::bigint << 32 | objid::bigint AS key FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) OFFSET 0) AS locks
	LEFT JOIN pg_stat_activity USING (pid)
WHERE CASE objsubid WHEN 2 THEN key = %[2]d
	ELSE key IN (%[2]d, %[3]d, %[4]d, %[5]d) OR key BETWEEN %[6]d AND %[7]d END`

// Inspect implements locker.Inspector.
func (b *backend) Inspect(ctx context.Context, name string) (locker.LockInfo, error) {
	b.mu.Lock()
	l := b.lookout()
	b.mu.Unlock()
	if err := l.await(ctx); err != nil {
		return locker.LockInfo{}, err
	}
	key := Key(name)
	m := marksOf(key)
	answers := make(chan answer, 1)
	b.mu.Lock()
	begun := b.begin(func() { // as to write may take a while
		l.session.askText(&message{answered: func(a answer) { answers <- a }}, inspectSQL,
			key, m.readers, m.slots, m.gate, m.first, m.first+locker.MaxSlots-1)
	})
	b.mu.Unlock()
	if !begun {
		return locker.LockInfo{}, locker.ErrClosed
	}
	select {
	case a := <-answers:
		if a.err != nil {
			return locker.LockInfo{}, explain(a.err)
		}
		return describe(name, a.rows[1:])
	case <-ctx.Done():
		return locker.LockInfo{}, context.Cause(ctx)
	}
}

// List implements locker.Inspector, as far as there is anything to list.
func (b *backend) List(context.Context, string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		yield(locker.LockInfo{}, fmt.Errorf("%w: to list locks: Postgres keeps hashes of names", errors.ErrUnsupported))
	}
}

// lookout returns the session for those who inspect, which it begins to make if there is none. b.mu is held.
func (b *backend) lookout() *leaseSession {
	if l := b.looking; l != nil {
		if l.session != nil {
			l.session.used = time.Now()
		}
		return l
	}
	l := &leaseSession{timeout: connectWithin, ready: make(chan struct{})}
	if !b.begin(func() {
		s, err := b.open(connectWithin)
		if err == nil {
			s.boundLocks(silence / 2) // or it would be given up, and with it what others have asked
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		l.session, l.err = s, err
		if err != nil || s.dead {
			b.looking = nil
		}
		close(l.ready)
	}) {
		l.err = locker.ErrClosed
		close(l.ready)
		return l
	}
	b.looking = l
	return l
}

// looksOn reports whether a session is that for those who inspect. b.mu is held.
func (b *backend) looksOn(s *session) bool { return b.looking != nil && b.looking.session == s }

// partOf is a key of those that a lock is made of, to be had alone or together with others.
type partOf struct {
	key   int64
	alone bool
}

// party is a session that has or waits for something of a lock.
type party struct {
	session string
	has     map[partOf]bool
	numbers []int // of the slots that it has
	waits   *partOf
	since   time.Time // when that began
}

// describe tells who has the lock of a name, and who waits for it, by the rows that inspectSQL has returned.
func describe(name string, rows [][]string) (locker.LockInfo, error) {
	info := locker.LockInfo{Key: name}
	key := Key(name)
	m := marksOf(key)
	parties := make(map[string]*party)
	polling := 0
	for _, row := range rows {
		if len(row) != 7 {
			return locker.LockInfo{}, errMismatch
		}
		id, err := strconv.ParseInt(row[1], 10, 64)
		since, err2 := strconv.ParseInt(row[5], 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return locker.LockInfo{}, fmt.Errorf("%w: %w", errMismatch, err)
		}
		part, granted := partOf{id, row[3] == "t"}, row[4] == "t"
		if row[2] == "t" {
			if granted && !part.alone { // or it looks whether there is such a mark
				polling++
			}
			continue
		}
		p := parties[row[0]]
		if p == nil {
			p = &party{session: row[6], has: make(map[partOf]bool)}
			parties[row[0]] = p
		}
		switch {
		case !granted:
			p.waits, p.since = &part, time.UnixMicro(since)
		case id >= m.first && id < m.first+locker.MaxSlots:
			p.numbers = append(p.numbers, int(id-m.first))
		default:
			p.has[part] = true
		}
	}
	var line []inLine
	for _, p := range parties {
		info.Holders = append(info.Holders, p.holds(key, m)...)
		if w, ok := p.waitsFor(key, m); ok {
			line = append(line, w)
		}
	}
	slices.SortFunc(info.Holders, func(a, b locker.HolderInfo) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Session, b.Session))
	})
	slices.SortFunc(line, func(a, b inLine) int {
		return cmp.Or(cmp.Compare(a.steps, b.steps), a.info.Since.Compare(b.info.Since))
	})
	for _, w := range line {
		info.Waiters = append(info.Waiters, w.info)
	}
	info.Waiting = len(line) + polling
	return info, nil
}

// holds returns what a session has of a lock. Who passes the gate, or waits for a mark, may have the key, and has no
// lock yet. Who has the key with others, and no mark, is no Locker; or one that is about to wait for a mark.
func (p *party) holds(key int64, m marks) (holders []locker.HolderInfo) {
	holder := locker.HolderInfo{Session: p.session}
	has := func(key int64, alone bool) bool { return p.has[partOf{key, alone}] }
	switch {
	case has(key, true):
		return []locker.HolderInfo{holder}
	case !has(key, false):
		return nil
	case len(p.numbers) > 0:
		holder.Mode = locker.ModeSlots
		for _, holder.Slot = range p.numbers {
			holders = append(holders, holder)
		}
		return holders
	case p.waits != nil || has(m.gate, true) || has(m.slots, false) || has(m.readers, true):
		return nil
	}
	holder.Mode = locker.ModeShared
	return []locker.HolderInfo{holder}
}

// inLine is somebody in line, with how many steps there are before the last one, see waits.
type inLine struct {
	steps int
	info  locker.WaiterInfo
}

// waitsFor returns how a session waits for a lock, if it does. Who passes the gate does not.
func (p *party) waitsFor(key int64, m marks) (w inLine, ok bool) {
	w.info = locker.WaiterInfo{Session: p.session, Since: p.since}
	switch {
	case p.waits == nil:
		w.info.Mode = locker.ModeSlots // he looks for a free one
		return w, p.has[partOf{m.readers, true}] && !p.has[partOf{m.gate, true}] && len(p.numbers) == 0
	case p.waits.key == key:
		w.steps = 2
		if !p.waits.alone {
			w.info.Mode = locker.ModeShared // or for a slot: what comes next is not to be seen
		}
	case p.waits.key == m.readers && !p.waits.alone, p.waits.key == m.slots && p.waits.alone:
		w.steps, w.info.Mode = 1, locker.ModeShared
	case p.waits.key == m.readers, p.waits.key == m.slots:
		w.steps, w.info.Mode = 1, locker.ModeSlots
	default:
		return inLine{}, false
	}
	return w, true
}
