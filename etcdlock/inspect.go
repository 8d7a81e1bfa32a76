package etcdlock

import (
	"context"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Inspect implements locker.Inspector. etcd keeps no time at which a key was made: LockInfo says nothing of that.
func (b *backend) Inspect(ctx context.Context, name string) (locker.LockInfo, error) {
	claims, err := b.readLine(ctx, Key(name))
	if err != nil {
		return locker.LockInfo{}, err
	}
	l := leases{backend: b, left: make(map[int64]time.Duration)}
	if err := l.ask(ctx, claims); err != nil {
		return locker.LockInfo{}, err
	}
	return l.describe(name, claims), nil
}

// pageSize is how many keys List reads at a time. A lock has one for each holder and waiter.
const pageSize = 500

// List implements locker.Inspector. What it yields of one lock is of one moment. For how long the etcd lease of a
// process lasts is asked once, and may be some pages old.
func (b *backend) List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		l := leases{backend: b, left: make(map[int64]time.Duration)}
		for rest := under(prefix); rest.from != ""; {
			lines, next, err := b.readPage(ctx, rest)
			if err == nil {
				err = l.ask(ctx, slices.Concat(lines...))
			}
			if err != nil {
				yield(locker.LockInfo{}, err)
				return
			}
			for _, claims := range lines {
				name, _ := nameIn(claims[0].kv)
				if info := l.describe(name, claims); len(info.Holders) > 0 && !yield(info, nil) {
					return
				}
			}
			rest.from = next
		}
	}
}

// under is the keys of locks whose names begin with a prefix.
func under(prefix string) span {
	if prefix == "" {
		return span{"\x00", "\x00"} // which are all
	}
	from := escape(prefix) // sign by sign: what begins with the one begins with the other
	return span{from, clientv3.GetPrefixRangeEnd(from)}
}

// nameIn returns the name of the lock in whose line a key is. Fences are in none, and mostly what other programs put
// there.
func nameIn(kv *mvccpb.KeyValue) (name string, ok bool) {
	text, _, ok := strings.Cut(string(kv.Key), string(endOfName))
	if !ok {
		return "", false
	}
	name, err := url.PathUnescape(text)
	return name, err == nil && name != "" && escape(name) == text
}

// readPage reads the next lines, all claims of each, and from where to go on, which is "" at the end. A line that the
// end of the page cuts off is left to the next page; one that may be longer than a page is read alone.
func (b *backend) readPage(ctx context.Context, rest span) (lines [][]claimed, next string, err error) {
	kvs, more, err := b.read(ctx, rest.get(clientv3.WithLimit(pageSize)))
	if err != nil {
		return nil, "", err
	}
	var last string // line
	for start := 0; start < len(kvs); {
		name, ok := nameIn(kvs[start])
		if !ok {
			start++
			continue
		}
		last = Key(name)
		end := start + 1
		for end < len(kvs) && strings.HasPrefix(string(kvs[end].Key), last) {
			end++
		}
		lines = append(lines, standing(kvs[start:end]))
		start = end
	}
	switch {
	case !more:
		return lines, "", nil
	case last == "":
		return nil, string(kvs[len(kvs)-1].Key) + "\x00", nil
	case len(lines) > 1:
		return lines[:len(lines)-1], last, nil
	}
	whole, err := b.readLine(ctx, last)
	return [][]claimed{whole}, afterLine(last), err
}

// readLine reads all claims in a line.
func (b *backend) readLine(ctx context.Context, line string) ([]claimed, error) {
	kvs, _, err := b.read(ctx, span{line, afterLine(line)}.get())
	return standing(kvs), err
}

// read reads keys. Those who want to see or take away locks need no session, and no step that others wait for, too.
func (b *backend) read(ctx context.Context, get clientv3.Op) (kvs []*mvccpb.KeyValue, more bool, err error) {
	resp, err := inquire(ctx, b, reading, func(ctx context.Context, l *link) (clientv3.OpResponse, error) {
		return l.kv.Do(ctx, get)
	})
	if err != nil {
		return nil, false, err
	}
	return resp.Get().Kvs, resp.Get().More, nil
}

// inquire makes a call by reading or writing that is about no lock of this Locker.
func inquire[T any](
	ctx context.Context, b *backend, by func(context.Context, *backend, time.Duration, call[T]) (T, error), f call[T],
) (answer T, err error) {
	ttl := locker.DefaultTTL
	if until, ok := ctx.Deadline(); ok {
		ttl = min(ttl, time.Until(until))
	}
	request, cancel := b.requestOf(ctx)
	defer cancel()
	if err = b.contact(request, ttl); err == nil {
		answer, err = by(request, b, ttl, f)
	}
	if err != nil {
		err = b.contactFailure(ctx, err)
	}
	return answer, err
}

// claimed is what is to be seen of a claim.
type claimed struct {
	kv      *mvccpb.KeyValue
	mode    locker.Mode
	strange bool // a key of another program: nobody who has put it there can be told anything
	holds   bool // the lock
	number  int  // of the slot that it has
}

// standing sorts what is in a line by age, and tells who has the lock: see rivalsOf, and slots.go.
func standing(line []*mvccpb.KeyValue) []claimed {
	slices.SortFunc(line, byAge)
	all := make([]claimed, len(line))
	readers := 0 // up to the first other
	for i, kv := range line {
		c := claimed{kv: kv, mode: modeIn(kv), strange: isStrange(kv), holds: i == 0}
		switch number, numbered := numberIn(kv); {
		case c.mode == locker.ModeShared && readers == i:
			c.holds = true
			readers++
		case c.mode == locker.ModeSlots && !c.strange:
			c.number, c.holds = number, numbered
		}
		all[i] = c
	}
	return all
}

// modeIn returns the mode of a claim, which its place in the line says.
func modeIn(kv *mvccpb.KeyValue) locker.Mode {
	_, claim, _ := strings.Cut(string(kv.Key), string(endOfName))
	switch {
	case strings.HasPrefix(claim, placeOf("", locker.ModeShared)):
		return locker.ModeShared
	case strings.HasPrefix(claim, placeOf("", locker.ModeSlots)):
		return locker.ModeSlots
	}
	return locker.ModeExclusive
}

// isStrange reports whether no Locker has made a key that is in a line.
func isStrange(kv *mvccpb.KeyValue) bool {
	mode := modeIn(kv)
	_, claim, _ := strings.Cut(string(kv.Key), placeOf(string(endOfName), mode))
	parts := strings.SplitN(claim, ".", 5)
	want := 3 // see claimKey
	if mode == locker.ModeSlots {
		want = 5
	}
	if len(parts) != want || kv.Lease == 0 {
		return true
	}
	for _, part := range parts[:3] {
		if _, err := strconv.ParseUint(part, 16, 64); err != nil {
			return true
		}
	}
	return false
}

// leases are for how long etcd leases last, each of which is asked for once.
type leases struct {
	backend *backend
	left    map[int64]time.Duration
}

// ask asks for the leases of those who hold a lock, some at a time.
func (l leases) ask(ctx context.Context, claims []claimed) error {
	const atOnce = 8
	var ids []int64
	for _, c := range claims {
		if _, known := l.left[c.kv.Lease]; c.holds && !known && c.kv.Lease != 0 {
			l.left[c.kv.Lease] = 0
			ids = append(ids, c.kv.Lease)
		}
	}
	for some := range slices.Chunk(ids, atOnce) {
		left, errs := make([]time.Duration, len(some)), make([]error, len(some))
		var all sync.WaitGroup
		for i, id := range some {
			all.Go(func() { left[i], errs[i] = l.backend.leftOf(ctx, id) })
		}
		all.Wait()
		for i, id := range some {
			if errs[i] != nil {
				return errs[i]
			}
			l.left[id] = left[i]
		}
	}
	return nil
}

// leftOf asks for how long an etcd lease lasts, which takes no permission.
func (b *backend) leftOf(ctx context.Context, lease int64) (time.Duration, error) {
	resp, err := inquire(ctx, b, reading, func(ctx context.Context, l *link) (*pb.LeaseTimeToLiveResponse, error) {
		resp, err := once(ctx, b.endpoints.logins, l.leases.LeaseTimeToLive, &pb.LeaseTimeToLiveRequest{ID: lease})
		return resp, rpctypes.Error(err)
	})
	return time.Duration(max(resp.GetTTL(), 0)) * time.Second, err
}

// describe tells who has the lock of a name, and who waits for it.
func (l leases) describe(name string, claims []claimed) locker.LockInfo {
	info := locker.LockInfo{Key: name}
	for _, c := range claims {
		who, session := holderIn(c.kv), fmt.Sprintf("lease %x", c.kv.Lease)
		token := uint64(c.kv.CreateRevision)
		if c.strange {
			who, session, token = "", "key "+string(c.kv.Key), 0
		}
		if c.holds {
			info.Holders = append(info.Holders, locker.HolderInfo{
				Name: who, Mode: c.mode, Slot: c.number, Token: token, Left: l.left[c.kv.Lease], Session: session,
			})
		} else {
			info.Waiters = append(info.Waiters, locker.WaiterInfo{Name: who, Mode: c.mode, Session: session})
		}
	}
	info.Waiting = len(info.Waiters)
	return info
}
