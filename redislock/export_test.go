package redislock

import (
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// NewBackend returns the Backend behind New, for the conformance suite.
func NewBackend(rdb redis.UniversalClient) locker.Backend {
	b, err := server.Config{}.New(rdb, server.NewProcess(), nil)
	if err != nil {
		panic(err)
	}
	return b
}

// NamesOf returns the names of a lock and of its companions.
func NamesOf(prefix, key string) []string {
	n := scripts.NamesOf(locker.Request{Prefix: prefix, Key: key}, "")
	return []string{n.Lock, n.Fence, n.Queue, n.Alive, n.Tombstone, n.Holders, n.Slots}
}

// NewWithClock is New with scripts for which the server's clock is ahead by the microseconds in a key, behind if they
// are negative. Only what the scripts do follows that clock: the expiry of keys does not.
func NewWithClock(rdb redis.UniversalClient, ahead string, opts ...locker.Option) *locker.Client {
	clock := `(function()
local t = redis.call('TIME')
local us = t[1] * 1000000 + t[2] + (redis.call('GET', ` + scripts.QuoteLua(ahead) + `) or 0)
return {string.format('%.0f', math.floor(us / 1000000)), string.format('%.0f', us % 1000000)}
end)()`
	text := strings.NewReplacer("redis.call('TIME')", clock)
	lying := func(s *scripts.Script) *scripts.Script { return s.Changed(text) }
	s := *scripts.Default()
	s.Take, s.Acquire, s.Release = lying(s.Take), lying(s.Acquire), lying(s.Release)
	s.Poll, s.LineUp = lying(s.Poll), lying(s.LineUp)
	b := server.WithScripts(rdb, &s, scripts.DefaultChannelPrefix, server.NewProcess(), nil)
	return server.ClientOf(b, opts)
}
