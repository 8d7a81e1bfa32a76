package faketime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

const null = "NULL"

func truth(b bool) string { return map[bool]string{true: "t", false: "f"}[b] }

func (p *process) nextToken() string {
	p.token++
	return strconv.FormatUint(p.token, 10)
}

// call is a statement of a simple query: the numbers in it, in their order, and the lists of such, which are in braces.
type call struct {
	*process
	text  string
	n     []int64
	lists [][]int64
}

var (
	numbers  = regexp.MustCompile(`\{[-\d,]*\}|-?\b\d+\b`)
	settings = regexp.MustCompile(`^\s*((SET |LISTEN |SELECT set_config\('transaction_timeout)[^;]*(;|$)|--.*)`)
	timeouts = regexp.MustCompile(`idle_session_timeout = (\d+)`)
	told     = regexp.MustCompile(`'locker.key', '([-\d,]+)'`)
)

func (p *process) parse(text string) call {
	c := call{process: p, text: text}
	for _, word := range numbers.FindAllString(text, -1) {
		if list, ok := strings.CutPrefix(word, "{"); ok {
			c.lists = append(c.lists, numbersIn(strings.TrimSuffix(list, "}")))
		} else {
			c.n = append(c.n, numbersIn(word)...)
		}
	}
	return c
}

// numbersIn reads numbers with commas in between.
func numbersIn(list string) (n []int64) {
	for word := range strings.SplitSeq(list, ",") {
		if i, err := strconv.ParseInt(word, 10, 64); err == nil {
			n = append(n, i)
		}
	}
	return n
}

// row is an answer of one row, which begins with the number of the message.
func (c call) row(words ...string) [][]string {
	return [][]string{append([]string{strconv.FormatInt(c.n[0], 10)}, words...)}
}

// execute executes a step, and returns its rows, or the code of an error.
func (p *process) execute(s step) (rows [][]string, code string) {
	if s.parameters != nil {
		return p.executePrepared(s), ""
	}
	if m := timeouts.FindStringSubmatch(s.text); m != nil && !strings.Contains(s.text, "SELECT setting") {
		p.timeout = time.Duration(numbersIn(m[1])[0]) * time.Millisecond
	}
	text := s.text
	for found := settings.FindString(text); found != ""; found = settings.FindString(text) {
		if strings.HasPrefix(found, "LISTEN locker;") {
			p.mu.Lock()
			p.hears = true
			p.mu.Unlock()
		}
		text = text[len(found):]
	}
	if strings.TrimSpace(text) == "" {
		return nil, ""
	}
	for _, known := range statements {
		if known.text.MatchString(text) {
			return known.do(p.parse(text)), ""
		}
	}
	if strings.Contains(text, `"locker".`) || strings.Contains(text, "LISTEN locker_revoked") {
		return nil, "42P01" // there is no such table
	}
	panic(fmt.Sprintf("unknown statement: %s", text))
}

// statement is one that pglock sends.
type statement struct {
	text *regexp.Regexp
	do   func(call) [][]string
}

var statements = []statement{
	{regexp.MustCompile(`^SELECT pg_catalog.pg_backend_pid`), func(c call) [][]string {
		return [][]string{{strconv.Itoa(int(c.pid)), "f", "a moment ago"}}
	}},
	{regexp.MustCompile(`PREPARE locker_try_one`), func(call) [][]string { return nil }},
	{regexp.MustCompile(`^SELECT setting FROM pg_settings`), func(c call) [][]string {
		return [][]string{{strconv.FormatInt(c.timeout.Milliseconds(), 10)}}
	}},
	{regexp.MustCompile(`^SELECT \(SELECT ceiling`), func(call) [][]string {
		return [][]string{{strconv.Itoa(1 << 62), strconv.Itoa(1 << 61)}}
	}},
	{regexp.MustCompile(`^SELECT \d+(;SET lock_timeout.*)?$`), func(c call) [][]string { return c.row() }},
	{regexp.MustCompile(`^SELECT \d+, set_config\('locker.key'`), call.stand},
	{regexp.MustCompile(`^SELECT \d+, pg_advisory_unlock_all`), locked(func(c call) [][]string {
		c.unlockAll()
		return c.row("")
	})},
	{regexp.MustCompile(`^SELECT \d+, pg_advisory_unlock\(`), locked(func(c call) [][]string {
		return c.row(truth(c.unlock(lockID{key: c.n[1]}, 1)))
	})},
	{regexp.MustCompile(`^EXECUTE locker_mint`), locked(func(c call) [][]string { return c.row(c.nextToken()) })},
	{regexp.MustCompile(`^EXECUTE locker_enter_one`), locked(func(c call) [][]string {
		if c.enter(c.n[1], c.n[2], c.n[3], 0, 0) == null {
			return c.row(null)
		}
		return c.row(c.nextToken())
	})},
	{regexp.MustCompile(`^EXECUTE locker_enter\(`), locked(func(c call) [][]string {
		key, ours, theirs, first, slots := c.lists[0], c.lists[1], c.lists[2], c.lists[4], c.lists[5]
		got := make([]string, len(key))
		for i := range got {
			got[i] = c.enter(key[i], ours[i], theirs[i], first[i], slots[i])
		}
		return c.withToken(got)
	})},
	{regexp.MustCompile(`^EXECUTE locker_slot`), locked(func(c call) [][]string {
		got := null
		for i, least := range c.lists[0] {
			if got == null {
				got = c.freeSlot(c.n[2], least, c.lists[1][i])
			}
		}
		return c.withToken([]string{got})
	})},
	{regexp.MustCompile(`^SELECT \d+, CASE WHEN pg_advisory_xact_lock`), locked(call.probe)},
	{regexp.MustCompile(`^SELECT \d+,\s+count\(CASE mode`), locked(call.free)},
	{regexp.MustCompile(`^SELECT \d+, count\(\*\) FILTER \(WHERE backend_start`), locked(func(c call) [][]string {
		other := c.processes[uint32(c.n[1])]
		if other == nil {
			return c.row("0")
		}
		other.end()
		return c.row("1")
	})},
	{regexp.MustCompile(`^SELECT \d+, count\(pg_notify`), locked(func(c call) [][]string {
		for _, other := range c.processes {
			for _, key := range c.lists[0] {
				if other.hears {
					payload := strconv.FormatInt(key, 10)
					go other.send(&pgproto3.NotificationResponse{Channel: "locker", Payload: payload})
				}
			}
		}
		return c.row("")
	})},
	{regexp.MustCompile(`^SELECT \d+, array_agg\(pg_try_advisory_lock_shared`), locked(func(c call) [][]string {
		var could []string
		for _, key := range c.lists[0] {
			could = append(could, truth(c.try(lockID{key, true}, 0)))
		}
		return c.row("{" + strings.Join(could, ",") + "}")
	})},
	{regexp.MustCompile(`^SELECT \d+, count\(pg_advisory_unlock_shared`), locked(func(c call) [][]string {
		for _, key := range c.lists[0] {
			c.unlock(lockID{key, true}, 0)
		}
		return c.row("")
	})},
}

// locked is do with simulated.mu held.
func locked(do func(call) [][]string) func(call) [][]string {
	return func(c call) [][]string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return do(c)
	}
}

// withToken is the row of locker_enter and locker_slot.
func (c call) withToken(got []string) [][]string {
	token := null
	if slices.ContainsFunc(got, func(number string) bool { return number != null }) {
		token = c.nextToken()
	}
	return c.row(token, "{"+strings.Join(got, ",")+"}")
}

// enter is what locker_enter does for a reader, or for who wants one of so many slots.
func (p *process) enter(key, ours, theirs, first, slots int64) string {
	if !p.try(lockID{key: key}, 0) {
		return null
	}
	if !p.try(lockID{key: ours}, 0) {
		p.unlock(lockID{key: key}, 0)
		return null
	}
	got := null
	if p.try(lockID{key: theirs}, 1) {
		p.unlock(lockID{key: theirs}, 1)
		if got = "0"; slots > 0 {
			got = p.freeSlot(first, 0, slots-1)
		}
	}
	if got == null {
		p.unlock(lockID{key: ours}, 0)
		p.unlock(lockID{key: key}, 0)
	}
	return got
}

// freeSlot takes a slot of some numbers, if one is free.
func (p *process) freeSlot(first, least, most int64) string {
	for i := least; i <= most; i++ {
		if p.try(lockID{key: first + i}, 1) {
			return strconv.FormatInt(i, 10)
		}
	}
	return null
}

// probe looks whether somebody who has nothing of a key could have it, too.
func (c call) probe() [][]string {
	key, readers, alone := lockID{key: c.n[2]}, lockID{key: c.n[3]}, 1
	if strings.Contains(c.text, "pg_try_advisory_lock_shared(") {
		alone = 0
	}
	if !c.try(key, 0) {
		return c.row(null)
	}
	defer c.unlock(key, 0)
	if !c.try(readers, alone) {
		return c.row(null)
	}
	c.unlock(readers, alone)
	return c.row("t")
}

// free gives back what there is of some keys, and of some that follow each other.
func (c call) free() [][]string {
	const before = 3 // numbers
	for id, l := range c.locks {
		had := l.had[c.process]
		if had == nil || id.pairs {
			continue
		}
		is := slices.Contains(c.lists[0], id.key)
		for i := before; i < len(c.n); i += 2 {
			is = is || c.n[i] <= id.key && id.key <= c.n[i+1]
		}
		for mode, n := range *had {
			if is && n > 0 {
				c.unlock(id, mode)
			}
		}
	}
	return c.row("")
}

// stand waits in line: see waitFor.
func (c call) stand() [][]string {
	keys := numbersIn(told.FindStringSubmatch(c.text)[1])
	word := ""
	switch len(keys) {
	case 1: // who wants it alone
		if c.await(keys[0], 1) {
			word = "granted"
		}
	case 3: // a reader: the key, the marks of readers and of slots
		if c.await(keys[0], 0) && c.await(keys[1], 0) && c.await(keys[2], 1) {
			defer c.unlockNow(keys[2], 1)
			word = "granted"
		}
	default: // the same, slot 0, and how many there are
		word = c.standForSlot(keys[0], keys[1], keys[2], keys[3], keys[4])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if word == "" {
		return append(c.row(""), []string{"cancelled", null})
	}
	return append(c.row(""), []string{word, c.nextToken()})
}

func (c call) standForSlot(key, readers, slots, first, n int64) (word string) {
	if !c.await(key, 0) || !c.await(readers, 1) {
		return ""
	}
	defer c.unlockNow(readers, 1)
	if !c.await(slots, 0) {
		return ""
	}
	for {
		c.mu.Lock()
		slot := c.freeSlot(first, 0, n-1)
		c.mu.Unlock()
		if slot != null {
			return "granted " + slot
		}
		select {
		case <-time.After(rand.N(8 * time.Millisecond)):
		case <-c.cancels:
			return ""
		case <-c.over:
			return ""
		}
	}
}

func (p *process) unlockNow(key int64, alone int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unlock(lockID{key: key}, alone)
}

// executePrepared executes a prepared statement, whose parameters are binary.
func (p *process) executePrepared(s step) [][]string {
	name, isOne := strings.CutSuffix(s.text, "_one")
	columns := make([][]*int64, len(s.parameters))
	for i, parameter := range s.parameters {
		if i == 0 || isOne {
			columns[i] = []*int64{int8In(parameter)}
		} else {
			columns[i] = int8sIn(parameter)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	seq := strconv.FormatInt(*columns[0][0], 10)
	var done, wanted []string
	any := false
	for i, key := range columns[1] {
		ok := false
		switch name {
		case "locker_try":
			ok = p.try(lockID{key: *key}, 1)
		case "locker_unlock":
			ok = p.unlock(lockID{key: *key}, 1)
		case "locker_leave":
			ours, slot := columns[2][i], columns[3][i]
			ok = slot == nil || p.unlock(lockID{key: *slot}, 1)
			if ours != nil {
				ok = p.unlock(lockID{key: *ours}, 0) && ok
				ok = p.unlock(lockID{key: *key}, 0) && ok
			}
		default:
			panic("unknown statement: " + s.text)
		}
		any = any || ok
		done = append(done, truth(ok))
		wanted = append(wanted, truth(p.lock(lockID{*key, true}).against(p, 1)))
	}
	row := []string{seq, arrayOf(done, isOne), arrayOf(wanted, isOne)}
	if name == "locker_try" {
		token := null
		if any {
			token = p.nextToken()
		}
		row = []string{seq, token, row[1]}
		if isOne {
			row = row[:2]
		}
	}
	return [][]string{row}
}

func arrayOf(words []string, isOne bool) string {
	if isOne {
		return words[0]
	}
	return "{" + strings.Join(words, ",") + "}"
}

func int8In(b []byte) *int64 {
	if b == nil {
		return nil
	}
	n := int64(binary.BigEndian.Uint64(b))
	return &n
}

// int8sIn reads an array, of which some may be NULL.
func int8sIn(b []byte) (ns []*int64) {
	const header = 20
	for b = b[header:]; len(b) > 0; {
		length := binary.BigEndian.Uint32(b)
		b = b[4:]
		if length == 8 {
			ns = append(ns, int8In(b[:8]))
			b = b[8:]
		} else {
			ns = append(ns, nil)
		}
	}
	return ns
}
