package pglock

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
)

// seen is a lock as it is to be seen.
type seen struct {
	name    string
	key     int64
	marks   marks
	parties map[string]*party
	polling int
	records []record
}

// partOf is a key of those that a lock is made of, to be had alone or together with others.
type partOf struct {
	key   int64
	alone bool
}

// party is a session, or a prepared transaction, that has or waits for something of a lock.
type party struct {
	pid     int // 0 if there is none
	locker  int // the number of the Locker; 0 if it is none
	hears   bool
	session string
	has     map[partOf]bool
	numbers []int // of the slots that it has
	waits   *partOf
	since   time.Time // when that began
}

// is reports whether both are the same session.
func (p *party) is(other *party) bool { return p.pid == other.pid && p.locker == other.locker }

// sortOut finds out what the rows that locksSQL has returned say of each lock.
func sortOut(names []string, rows [][]string, records []record) ([]*seen, error) {
	locks := make([]*seen, len(names))
	parts := make(map[int64][]*seen) // as several names may have the same key
	for i, name := range names {
		key := Key(name)
		m := marksOf(key)
		locks[i] = &seen{name: name, key: key, marks: m, parties: make(map[string]*party)}
		for _, part := range []int64{key, m.readers, m.slots, m.gate, m.first} {
			parts[part] = append(parts[part], locks[i])
		}
	}
	lockers := make(map[string]int) // by their sessions
	hear := make(map[int]bool)
	for _, row := range rows {
		if len(row) != 8 {
			return nil, errMismatch
		}
		key, err := strconv.ParseInt(row[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errMismatch, err)
		}
		granted, alone := row[5] == "t", row[4] == "t"
		switch row[3] {
		case strconv.Itoa(lockerMark):
			lockers[row[0]] = int(int32(key)) //nolint:gosec // the second half
		case strconv.Itoa(hearsMark):
			hear[int(int32(key))] = true //nolint:gosec // likewise
		case "1":
			if granted && !alone { // or it looks whether there is such a mark
				for _, lock := range parts[key] {
					if lock.key == key {
						lock.polling++
					}
				}
			}
		default:
			part := key
			if _, ok := parts[key]; !ok {
				part = key >> slotBits << slotBits
			}
			for _, lock := range parts[part] {
				if err := lock.add(row, partOf{key, alone}, granted); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, lock := range locks {
		for id, p := range lock.parties {
			p.locker = lockers[id]
			p.hears = hear[p.locker]
		}
		for len(records) > 0 && records[0].name == lock.name { // both are in the same order
			lock.records = append(lock.records, records[0])
			records = records[1:]
		}
	}
	return locks, nil
}

// add adds what a row says.
func (s *seen) add(row []string, part partOf, granted bool) error {
	p := s.parties[row[0]]
	if p == nil {
		pid, err := strconv.Atoi(row[1])
		if err != nil {
			return fmt.Errorf("%w: %w", errMismatch, err)
		}
		p = &party{pid: pid, session: row[7], has: make(map[partOf]bool)}
		s.parties[row[0]] = p
	}
	switch {
	case !granted:
		since, err := strconv.ParseInt(row[6], 10, 64)
		if err != nil {
			return fmt.Errorf("%w: %w", errMismatch, err)
		}
		p.waits, p.since = &part, time.UnixMicro(since)
	case part.key>>slotBits == s.marks.first>>slotBits && part.key != s.key:
		p.numbers = append(p.numbers, int(part.key-s.marks.first))
	default:
		p.has[part] = true
	}
	return nil
}

// describe tells who has the lock, and who waits for it.
func (s *seen) describe() locker.LockInfo {
	info := locker.LockInfo{Key: s.name}
	var line []inLine
	for _, p := range s.parties {
		info.Holders = append(info.Holders, s.named(p, p.holds(s.key, s.marks))...)
		if w, ok := p.waitsFor(s.key, s.marks); ok {
			line = append(line, w)
		}
	}
	slices.SortFunc(info.Holders, func(a, b locker.HolderInfo) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Session, b.Session), cmp.Compare(a.Token, b.Token))
	})
	slices.SortFunc(line, func(a, b inLine) int {
		return cmp.Or(cmp.Compare(a.steps, b.steps), a.info.Since.Compare(b.info.Since))
	})
	for _, w := range line {
		info.Waiters = append(info.Waiters, w.info)
	}
	info.Waiting = len(line) + s.polling
	return info
}

// named completes what is known of a session's holders by their records. Of two for the same holder, the last one
// counts: the other is about to be removed. Readers of which there are records are told apart.
func (s *seen) named(p *party, holders []locker.HolderInfo) []locker.HolderInfo {
	var readers []locker.HolderInfo
	for _, r := range s.records { // by their tokens
		if p.locker == 0 || r.pid != p.pid || r.locker != p.locker {
			continue
		}
		for i := range holders {
			h := &holders[i]
			if h.Mode != r.mode || h.Slot != r.slot {
				continue
			}
			h.Name, h.Token, h.Since = r.holder, r.token, r.since
			if h.Mode == locker.ModeShared {
				readers = append(readers, *h)
			}
		}
	}
	if len(readers) > 0 {
		return readers
	}
	return holders
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
