package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"html"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockerkit/locker"
)

// nameDefects are broken in what they make of names: of locks, and of those who hold them.
var nameDefects = slices.Concat(lossyNames, elsewhereLossy, prefixDefects, crowdDefects, holderDefects)

// fineNames are rules that need nothing of names but that they differ in much.
var fineNames = []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "lease/OutlivesTTL", "unlock/FreesAtOnce"}

// lossy are ways to make one name of two.
var lossy = []struct {
	name string
	of   func(string) string
}{
	{"case folded", strings.ToLower},
	{"upper case", strings.ToUpper},
	{"space trimmed", strings.TrimSpace},
	{"spaces at the end ignored", func(s string) string { return strings.TrimRight(s, " ") }},
	{"ended by a NUL", func(s string) string { s, _, _ = strings.Cut(s, "\x00"); return s }},
	{"NULs at the end ignored", func(s string) string { return strings.TrimRight(s, "\x00") }},
	{"slashes at the end ignored", func(s string) string { return strings.TrimRight(s, "/") }},
	{"slashes in front ignored", func(s string) string { return strings.TrimLeft(s, "/") }},
	{"a mark of byte order ignored", func(s string) string { return strings.TrimPrefix(s, "\ufeff") }},
	{"the first line only", func(s string) string { first, _, _ := strings.Cut(s, "\n"); return first }},
	{"taken for a path", path.Clean},
	{"unescaped like a query", func(s string) string { return orItself(s)(url.QueryUnescape(s)) }},
	{"unescaped like a path", func(s string) string { return orItself(s)(url.PathUnescape(s)) }},
	{"unescaped like HTML", html.UnescapeString},
	{"unescaped like Go", func(s string) string { return orItself(s)(strconv.Unquote(`"` + s + `"`)) }},
	{"backslashes unescaped", func(s string) string { return strings.ReplaceAll(s, `\\`, `\`) }},
	{"quotes unescaped", func(s string) string { return strings.ReplaceAll(s, `''`, `'`) }},
	{"a plus for a space", func(s string) string { return strings.ReplaceAll(s, "+", " ") }},
	{"odd characters replaced", replacing(func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }, '_')},
	{"slashes replaced", func(s string) string { return strings.ReplaceAll(s, "/", "-") }},
	{"characters beyond ASCII replaced", replacing(func(r rune) bool { return r >= utf8.RuneSelf }, '?')},
	{"emoji replaced", replacing(func(r rune) bool { return r > 0xffff }, '?')},
	{"in hexadecimal if not ASCII", func(s string) string {
		if strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
			return fmt.Sprintf("%x", s)
		}
		return s
	}},
	{"accents ignored", without(unicode.Mn)},
	{"what is not seen ignored", without(unicode.Cf)},
	{"seven bits", func(s string) string {
		b := []byte(s)
		for i := range b {
			b[i] &= 0x7f
		}
		return string(b)
	}},
	{"cut to 63 bytes", cutTo(63)},
	{"cut to 255 bytes", cutTo(255)},
	{"cut to 512 bytes", cutTo(512)},
	{"cut to 1,000 bytes", cutTo(1000)},
	{"the last 64 bytes", func(s string) string { return s[max(0, len(s)-64):] }},
	{"the middle left out", func(s string) string { return s[:min(100, len(s))] + s[max(len(s)-100, min(100, len(s))):] }},
	{"the order of bytes ignored", func(s string) string { b := []byte(s); slices.Sort(b); return string(b) }},
	{"a sum", func(s string) string {
		sum := 0
		for i := range len(s) {
			sum += int(s[i])
		}
		return fmt.Sprint(sum)
	}},
	{"every eighth byte of long ones", func(s string) string {
		for i := 64; i < len(s); i += 7 {
			s = s[:i] + s[i+1:]
		}
		return s
	}},
	{"numbers by their value", func(s string) string {
		at := strings.LastIndexByte(s, ':') + 1
		if f, err := strconv.ParseFloat(s[at:], 64); err == nil {
			return s[:at] + fmt.Sprint(f)
		}
		return s
	}},
	{"the hash tag only", hashTagOf},
}

func orItself(s string) func(string, error) string {
	return func(other string, err error) string {
		if err != nil {
			return s
		}
		return other
	}
}

func replacing(odd func(rune) bool, with rune) func(string) string {
	return func(s string) string {
		return strings.Map(func(r rune) rune {
			if odd(r) {
				return with
			}
			return r
		}, s)
	}
}

func without(what *unicode.RangeTable) func(string) string {
	return func(s string) string {
		var b strings.Builder
		for len(s) > 0 { // what is not UTF-8 stays
			r, size := utf8.DecodeRuneInString(s)
			if !unicode.Is(what, r) {
				b.WriteString(s[:size])
			}
			s = s[size:]
		}
		return b.String()
	}
}

func cutTo(n int) func(string) string { return func(s string) string { return s[:min(n, len(s))] } }

func fnv32a(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return h.Sum32()
}

// hashTagOf is what a Redis Cluster finds the slot of a key by.
func hashTagOf(s string) string {
	if _, rest, ok := strings.Cut(s, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	return s
}

func ways(names ...string) (ways []func(string) string) {
	for _, name := range names {
		i := slices.IndexFunc(lossy, func(l struct {
			name string
			of   func(string) string
		}) bool {
			return l.name == name
		})
		ways = append(ways, lossy[i].of)
	}
	return ways
}

// lossyNames keep locks by less than the whole name.
var lossyNames = func() (all []defect) {
	for _, l := range lossy {
		all = append(all, defect{
			name:   "names: " + l.name,
			store:  naming(func(r locker.Request) string { return l.of(r.Name()) }),
			caught: []string{"exclusion/EveryByteCounts"},
			fine:   []string{"exclusion/TryLockHeld", "lease/OutlivesTTL"},
		})
	}
	return append(all, defect{
		name:    "names are patterns",
		backend: func(_ *testing.T, c *client) locker.Backend { return matches{c} },
		caught:  []string{"exclusion/EveryByteCounts"},
		fine:    fineNames,
	}, defect{
		name:    "a record of its own beside each lock",
		backend: func(_ *testing.T, c *client) locker.Backend { return keepsTokens{queued{c}} },
		caught:  []string{"exclusion/EveryByteCounts"},
		fine:    fineNames,
	})
}()

// matches looks for the name as one that may be a pattern, as LIKE does.
type matches struct{ *client }

func (b matches) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var taken bool
	if err := b.ask(ctx, func(s *store) {
		for name, held := range s.held {
			same, err := path.Match(r.Name(), name)
			taken = taken || err == nil && same && held.grant.Owner != r.Owner
		}
	}); err != nil {
		return locker.Grant{}, err
	}
	if taken {
		return locker.Grant{}, locker.ErrLocked
	}
	return b.client.Acquire(ctx, r)
}

// keepsTokens keeps the token of each lock where the lock of another name would be.
type keepsTokens struct{ queued }

func (b keepsTokens) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if err == nil {
		beside := r
		beside.Key += ":token"
		_ = b.ask(ctx, func(s *store) {
			if s.held[beside.Name()] == nil {
				s.grant(beside)
			}
		})
	}
	return g, err
}

// elsewhereLossy keep locks by the whole name, and something else by less.
var elsewhereLossy = func() (all []defect) {
	for i, of := range ways(
		"case folded", "cut to 255 bytes", "characters beyond ASCII replaced", "the hash tag only", "space trimmed",
	) {
		of := func(r locker.Request) string { return of(r.Name()) }
		what := []string{"case folded", "cut", "ASCII", "by hash tags", "trimmed"}[i]
		all = append(all, defect{
			name:   "lines: " + what,
			store:  func(s *store) { s.lineOf = of },
			caught: []string{"waiting/EachNameWakes"},
			fine:   append([]string{"exclusion/EveryByteCounts"}, fineNames...),
		}, defect{
			name: "renewals: " + what,
			backend: func(_ *testing.T, c *client) locker.Backend {
				return renewsByName{queued: queued{c}, nameOf: of}
			},
			caught: []string{"exclusion/EveryByteCounts"},
			fine:   append([]string{"exclusion/KeyAlphabet"}, fineNames...),
		}, defect{
			name: "renewals that say nothing: " + what,
			backend: func(_ *testing.T, c *client) locker.Backend {
				return renewsByName{queued: queued{c}, nameOf: of, silent: true}
			},
			caught: []string{"exclusion/EveryByteCounts"},
			fine:   append([]string{"exclusion/KeyAlphabet"}, fineNames...),
		}, defect{
			name: "releases: " + what,
			backend: func(_ *testing.T, c *client) locker.Backend {
				return releasesByName{queued: queued{c}, nameOf: of}
			},
			caught: []string{"exclusion/EveryByteCounts"},
			fine:   fineNames,
		})
	}
	byName := locker.Request.Name
	escaped := func(s string) string { return strings.Trim(strconv.Quote(s), `"`) }
	of := func(what func(string) string) func(locker.Request) string {
		return func(r locker.Request) string { return what(r.Name()) }
	}
	for what, b := range map[string]struct{ listen, tell func(locker.Request) string }{
		"told of a release in ASCII":      {byName, of(ways("characters beyond ASCII replaced")[0])},
		"told of a release, cut":          {byName, of(cutTo(255))},
		"waiting for a name, case folded": {of(strings.ToLower), byName},
		"waiting for a name, escaped":     {of(escaped), byName},
	} {
		all = append(all, defect{
			name:    what,
			backend: func(_ *testing.T, c *client) locker.Backend { return newHears(c, b.listen, b.tell) },
			caught:  []string{"waiting/EachNameWakes"},
			fine:    []string{"exclusion/EveryByteCounts", "lease/OutlivesTTL", "exclusion/OneHolder"},
		})
	}
	return append(all, defect{
		name: "renewals in a list with commas",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsByName{queued: queued{c}, separator: ","}
		},
		caught: []string{"exclusion/EveryByteCounts"},
		fine:   fineNames,
	}, defect{
		name: "renewals in a list of lines",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsByName{queued: queued{c}, separator: "\n"}
		},
		caught: []string{"exclusion/EveryByteCounts"},
		fine:   fineNames,
	}, defect{
		name: "renewals, each name once but for case",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsOnce{queued{c}}
		},
		caught: []string{"exclusion/EveryByteCounts"},
		fine:   fineNames,
	}, defect{
		name: "the end of a lease noticed by its name in ASCII",
		backend: func(_ *testing.T, c *client) locker.Backend {
			b := newHears(c, byName, byName)
			b.expiries = func(r locker.Request) bool {
				return !bytes.ContainsFunc([]byte(r.Name()), func(r rune) bool { return r >= utf8.RuneSelf })
			}
			return b
		},
		caught: []string{"waiting/EachNameWakes"},
		fine:   []string{"exclusion/EveryByteCounts", "waiting/WakesOnExpiry", "lease/OutlivesTTL"},
	}, defect{
		name: "channels of which the first to wait has it",
		backend: func(_ *testing.T, c *client) locker.Backend {
			b := newHears(c, of(hashTagOf), of(hashTagOf))
			b.one = true
			return b
		},
		caught: []string{"waiting/EachNameWakes"},
		fine:   []string{"exclusion/EveryByteCounts", "lease/OutlivesTTL", "exclusion/OneHolder"},
	})
}()

// renewsByName finds the locks to be renewed by something else than their names, or by what is left of a list of names.
type renewsByName struct {
	queued
	nameOf    func(locker.Request) string
	separator string
	silent    bool // what is not found is not reported
}

func (b renewsByName) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	names := make([]string, len(gs))
	for i, g := range gs {
		names[i] = g.Name()
		if b.nameOf != nil {
			names[i] = b.nameOf(g.Request)
		}
	}
	if b.separator != "" {
		names = strings.Split(strings.Join(names, b.separator), b.separator)
	}
	requested := slices.Clone(gs)
	lost := make([]bool, len(gs))
	err := b.ask(ctx, func(s *store) {
		for i, g := range requested {
			held := s.held[names[i]]
			if held == nil || held.grant.Owner != g.Owner {
				lost[i] = !b.silent
				continue
			}
			s.expireAfter(held, g.TTL)
		}
	})
	for i := range gs {
		switch {
		case err != nil:
			done(i, locker.Renewal{Err: err})
		case lost[i]:
			done(i, locker.Renewal{Err: locker.ErrLost})
		default:
			done(i, locker.Renewal{})
		}
	}
}

// renewsOnce renews one of those whose names are the same in its map.
type renewsOnce struct{ queued }

func (b renewsOnce) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	byName := make(map[string]int)
	for i, g := range gs {
		byName[strings.ToLower(g.Name())] = i
	}
	for i := range gs {
		if byName[strings.ToLower(gs[i].Name())] != i {
			done(i, locker.Renewal{})
			continue
		}
		b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) { done(i, r) })
	}
}

// releasesByName frees what has another name, if it has a lock of the same owner.
type releasesByName struct {
	queued
	nameOf func(locker.Request) string
}

func (b releasesByName) Release(ctx context.Context, g locker.Grant) error {
	name := b.nameOf(g.Request)
	if name == g.Name() {
		return b.queued.Release(ctx, g)
	}
	_ = b.ask(ctx, func(s *store) { _ = s.release(locker.Grant{Request: locker.Request{Key: name, Owner: g.Owner}}) })
	return nil
}

// hears has channels on which those who wait hear of releases. They ask again when they hear something, and when the
// holder's lease ends.
type hears struct {
	*client
	bus          *bus
	listen, tell func(locker.Request) string
	expiries     func(locker.Request) bool // whether it notices the end of a lease
	one          bool                      // a message is for the first who listens
}

// bus is the channels of a store.
type bus struct {
	mu        sync.Mutex
	listeners map[string][]chan struct{}
}

var buses sync.Map // of stores

func newHears(c *client, listen, tell func(locker.Request) string) *hears {
	b, _ := buses.LoadOrStore(c.store, &bus{listeners: make(map[string][]chan struct{})})
	always := func(locker.Request) bool { return true }
	return &hears{client: c, bus: b.(*bus), listen: listen, tell: tell, expiries: always}
}

func (b *hears) Features() locker.Features { return locker.Features{Queue: true} }

func (b *hears) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	heard := make(chan struct{}, 1)
	channel := b.listen(r)
	b.bus.mu.Lock()
	b.bus.listeners[channel] = append(b.bus.listeners[channel], heard)
	b.bus.mu.Unlock()
	defer func() {
		b.bus.mu.Lock()
		defer b.bus.mu.Unlock()
		mine := func(c chan struct{}) bool { return c == heard }
		b.bus.listeners[channel] = slices.DeleteFunc(b.bus.listeners[channel], mine)
	}()
	for {
		sent := time.Now()
		g, err := b.Acquire(ctx, r)
		var held *locker.Held
		if !errors.As(err, &held) {
			if g.Sent.IsZero() {
				g.Sent = sent
			}
			return g, err
		}
		r.ReportHolder(held.Holder)
		next := time.Hour
		if b.expiries(r) {
			next = held.Remaining
		}
		select {
		case <-heard:
		case <-time.After(next):
		case <-ctx.Done():
			return locker.Grant{}, context.Cause(ctx)
		}
	}
}

func (b *hears) Release(ctx context.Context, g locker.Grant) error {
	err := b.client.Release(ctx, g)
	b.bus.mu.Lock()
	defer b.bus.mu.Unlock()
	for _, heard := range b.bus.listeners[b.tell(g.Request)] {
		select {
		case heard <- struct{}{}:
		default:
		}
		if b.one {
			break
		}
	}
	return err
}

// TestHears is about the same channels with the right names.
func TestHears(t *testing.T) {
	t.Parallel()
	d := defect{backend: func(_ *testing.T, c *client) locker.Backend {
		return newHears(c, locker.Request.Name, locker.Request.Name)
	}}
	for _, name := range append([]string{"waiting/EachNameWakes", "exclusion/PrefixAndKeyAreJoined"}, fineNames...) {
		for _, p := range d.problems(t, name) {
			t.Errorf("%s: %v", name, p)
		}
	}
}

// prefixDefects are broken in what they make of a prefix.
var prefixDefects = func() (all []defect) {
	for what, of := range map[string]func(locker.Request) string{
		"in a column of its own": func(r locker.Request) string { return fmt.Sprintf("%d %s", len(r.Prefix), r.Name()) },
		"joined by a colon":      func(r locker.Request) string { return r.Prefix + ":" + r.Key },
		"joined by a slash":      func(r locker.Request) string { return path.Join("/", r.Prefix, r.Key) },
		"quoted by itself":       func(r locker.Request) string { return strconv.Quote(r.Prefix) + strconv.Quote(r.Key) },
		"hashed by itself":       func(r locker.Request) string { return fmt.Sprint(fnv32a(r.Prefix)) + r.Key },
		"its colon replaced":     func(r locker.Request) string { return strings.TrimSuffix(r.Prefix, ":") + r.Key },
		"case folded":            func(r locker.Request) string { return strings.ToLower(r.Prefix) + r.Key },
		"cut to 24 bytes":        func(r locker.Request) string { return cutTo(24)(r.Prefix) + r.Key },
		"cut to 1,000 bytes":     func(r locker.Request) string { return cutTo(1000)(r.Prefix) + r.Key },
		"ended by a NUL":         func(r locker.Request) string { return ways("ended by a NUL")[0](r.Prefix) + r.Key },
		"made valid":             func(r locker.Request) string { return strings.ToValidUTF8(r.Prefix, "?") + r.Key },
		"made valid, as is the key": func(r locker.Request) string {
			return strings.ToValidUTF8(r.Prefix, "?") + strings.ToValidUTF8(r.Key, "?")
		},
	} {
		all = append(all, defect{
			name:   "prefix " + what,
			store:  naming(of),
			caught: []string{"exclusion/PrefixAndKeyAreJoined"},
			fine:   fineNames,
		})
	}
	key := func(r locker.Request) string { return r.Key }
	return append(all, defect{
		name:    "renewals without the prefix",
		backend: func(_ *testing.T, c *client) locker.Backend { return renewsByName{queued: queued{c}, nameOf: key} },
		caught:  []string{"exclusion/PrefixAndKeyAreJoined", "exclusion/EveryByteCounts", "waiting/EachNameWakes"},
		fine:    fineNames,
	}, defect{
		name: "renewals without the prefix, that say nothing",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsByName{queued: queued{c}, nameOf: key, silent: true}
		},
		caught: []string{"exclusion/PrefixAndKeyAreJoined", "exclusion/EveryByteCounts", "waiting/EachNameWakes"},
		fine:   fineNames,
	}, defect{
		name:   "lines without the prefix",
		store:  func(s *store) { s.lineOf = key },
		caught: []string{"exclusion/PrefixAndKeyAreJoined", "waiting/EachNameWakes"},
		fine:   fineNames,
	}, defect{
		name:    "told of a release without the prefix",
		backend: func(_ *testing.T, c *client) locker.Backend { return newHears(c, locker.Request.Name, key) },
		caught:  []string{"waiting/EachNameWakes", "exclusion/PrefixAndKeyAreJoined"},
		fine:    []string{"exclusion/EveryByteCounts", "waiting/WakesOnRelease", "lease/OutlivesTTL"},
	}, defect{
		name:    "waiting without the prefix",
		backend: func(_ *testing.T, c *client) locker.Backend { return newHears(c, key, locker.Request.Name) },
		caught:  []string{"waiting/EachNameWakes", "exclusion/PrefixAndKeyAreJoined"},
		fine:    []string{"exclusion/EveryByteCounts", "waiting/WakesOnRelease", "lease/OutlivesTTL"},
	})
}()
