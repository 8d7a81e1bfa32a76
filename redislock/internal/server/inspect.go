package server

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

const (
	// describeMost is of how many holders, and of how many waiters, Inspect tells. Readers and slots may be more.
	describeMost = 10_000

	// listedMost is the same for each key of a List.
	listedMost = 100

	// scanTogether is how many keys of the server one SCAN looks at, about.
	scanTogether = 250

	// inspectTogether is how many keys are inspected in one round trip. The server does nothing else meanwhile.
	inspectTogether = 50
)

// names returns what a lock of a name is called in Redis.
func (b *Server) names(name string) (scripts.Names, error) {
	return scripts.NamesOf(locker.Request{Key: name}, b.Line.Process), scripts.CheckName(name)
}

// Inspect implements locker.Inspector.
func (b *Server) Inspect(ctx context.Context, name string) (locker.LockInfo, error) {
	n, err := b.names(name)
	if err != nil {
		return locker.LockInfo{}, err
	}
	reply, err := b.ask(ctx, b.Scripts.Inspect, n.InspectWords(describeMost))
	if err != nil {
		return locker.LockInfo{}, err
	}
	return parseInfo(name, reply)
}

// List implements locker.Inspector, by SCAN, of each master of a cluster in turn.
func (b *Server) List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		masters, err := b.Client.Masters(ctx)
		if err != nil {
			yield(locker.LockInfo{}, b.Client.Explain(err))
			return
		}
		seen := make(map[string]bool) // a key may come twice, from SCAN, or while its slot moves
		for _, master := range masters {
			if !b.listOn(ctx, master, prefix, seen, yield) {
				return
			}
		}
	}
}

// listOn yields what is on one server, and reports whether to go on.
func (b *Server) listOn(
	ctx context.Context, master *conn.Client, prefix string, seen map[string]bool,
	yield func(locker.LockInfo, error) bool,
) bool {
	var names []string
	for cursor := uint64(0); ; {
		keys, next, err := master.ScanType(ctx, cursor, pattern(prefix), scanTogether, "string").Result()
		if err != nil {
			yield(locker.LockInfo{}, b.Client.Explain(err))
			return false
		}
		for _, key := range keys {
			if !seen[key] && strings.HasPrefix(key, prefix) && scripts.CheckName(key) == nil {
				seen[key] = true
				names = append(names, key)
			}
		}
		for len(names) > 0 && (len(names) >= inspectTogether || next == 0) {
			n := min(len(names), inspectTogether)
			if !b.inspectAll(ctx, names[:n], yield) {
				return false
			}
			names = names[n:]
		}
		if cursor = next; cursor == 0 {
			return true
		}
	}
}

// pattern returns what SCAN takes for all that begins with a prefix.
func pattern(prefix string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`).Replace(prefix) + "*"
}

// inspectAll yields those of some locks that are held, and reports whether to go on. What others keep in this Redis is
// left out.
func (b *Server) inspectAll(ctx context.Context, names []string, yield func(locker.LockInfo, error) bool) bool {
	work := &conn.Batch{Script: b.Scripts.Inspect}
	for _, name := range names {
		n, _ := b.names(name)
		work.Add(ctx, n.InspectWords(listedMost))
	}
	_ = b.Client.RunBatch(ctx, work)
	for i, name := range names {
		reply, err := work.Cmds[i].Result()
		if err != nil {
			yield(locker.LockInfo{}, b.Client.Explain(err))
			return false
		}
		info, err := parseInfo(name, reply)
		switch {
		case err != nil:
			yield(locker.LockInfo{}, err)
			return false
		case len(info.Holders) == 0 || info.Holders[0].Session != "":
		case !yield(info, nil):
			return false
		}
	}
	return true
}

// parseInfo returns what a reply of inspect.lua says.
func parseInfo(name string, reply any) (locker.LockInfo, error) {
	info := locker.LockInfo{Key: name}
	all, _ := reply.([]any)
	if len(all) != 7 {
		return info, fmt.Errorf("redis: unexpected reply %v", reply)
	}
	value, ok1 := all[0].(string)
	left, ok2 := all[1].(int64)
	token, ok3 := all[2].(string)
	clock, ok4 := all[3].(string)
	found, ok5 := all[4].([]any)
	waiting, ok6 := all[5].(int64)
	waiters, ok7 := all[6].([]any)
	now, err := strconv.ParseUint(clock, 10, 64)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 || err != nil || len(found)%3 != 0 || len(waiters)%2 != 0 {
		return info, fmt.Errorf("redis: unexpected reply %v", reply)
	}
	switch mode := scripts.ModeOfValue(value); {
	case value == "":
	case mode == locker.ModeExclusive:
		info.Holders = []locker.HolderInfo{holderOf(value, leftOf(left), token, now)}
	default:
		for i := 0; i < len(found); i += 3 {
			value, _ := found[i].(string)
			left, _ := found[i+1].(int64)
			slot, _ := found[i+2].(string)
			h := locker.HolderInfo{Mode: mode, Left: leftOf(left)}
			h.Name, _ = scripts.ParseValue(value)
			h.Slot, _ = strconv.Atoi(slot) // 0 if there is none
			info.Holders = append(info.Holders, h)
		}
	}
	for i := 0; i < len(waiters); i += 2 {
		member, _ := waiters[i].(string)
		arrival, _ := waiters[i+1].(string)
		at, _ := strconv.ParseFloat(arrival, 64)
		info.Waiters = append(info.Waiters, locker.WaiterInfo{
			Mode: scripts.ModeOfMember(member), Since: time.UnixMicro(int64(at)),
		})
	}
	info.Waiting = max(int(waiting), len(info.Waiters))
	return info, nil
}

// leftOf turns a PTTL into what is left of a lease: never more than that.
func leftOf(pttl int64) time.Duration { return max(0, remainingOf(pttl)-time.Millisecond) }

// holderOf describes the one who has a lock alone. The token is the server's clock at the grant, in microseconds,
// unless that has been set back since an earlier one: then it says nothing of when that was.
func holderOf(value string, left time.Duration, token string, now uint64) locker.HolderInfo {
	h := locker.HolderInfo{Left: left}
	ours := false
	if h.Name, ours = scripts.ParseValue(value); !ours {
		h.Session = value
		return h
	}
	h.Token, _ = strconv.ParseUint(token, 10, 64)
	if h.Token <= now {
		h.Since = time.UnixMicro(int64(h.Token)) //nolint:gosec // not after now
	}
	return h
}
