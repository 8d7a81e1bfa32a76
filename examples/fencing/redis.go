package fencing

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// fence is what each script of a Cell begins with. Tokens have up to 64 bits, and Lua's numbers are exact up to 53
// only: so they are compared as what they are here, strings of digits.
const fence = `
local function less(a, b) return #a < #b or #a == #b and a < b end

local seen = redis.call('HGET', KEYS[1], 'fence')
if seen and less(ARGV[1], seen) then return redis.error_reply('STALE ' .. seen) end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
`

var (
	setScript = redis.NewScript(fence + `return redis.call('HSET', KEYS[1], 'value', ARGV[2])`)
	getScript = redis.NewScript(fence + `return redis.call('HGET', KEYS[1], 'value')`)
)

// Cell is a value in Redis: a hash with the fields value and fence. It must not expire or be evicted, as its fence
// would go too.
type Cell struct {
	Redis redis.Scripter
	Key   string
}

// Set writes the value.
func (c Cell) Set(ctx context.Context, value string, token uint64) error {
	err := setScript.Run(ctx, c.Redis, []string{c.Key}, token, value).Err()
	return stale(err)
}

// Get reads the value, which is "" at first, and raises the fence in the same step: from now on, nobody with a smaller
// token can change what was read.
func (c Cell) Get(ctx context.Context, token uint64) (string, error) {
	value, err := getScript.Run(ctx, c.Redis, []string{c.Key}, token).Text()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return value, stale(err)
}

// stale makes the error of a script that has refused a token an ErrStale.
func stale(err error) error {
	if redis.HasErrorPrefix(err, "STALE") {
		return ErrStale
	}
	return err
}
