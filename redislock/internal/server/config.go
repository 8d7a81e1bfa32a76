package server

import (
	"cmp"
	"fmt"
	"reflect"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker:"

// Config is what can be configured of a server. The zero value of each field stands for a default.
type Config struct {
	ChannelPrefix  string
	TokenRetention time.Duration
}

// New returns the backend for rdb, which is to be closed with it if there is a closeClient, or why there can be none.
func (c Config) New(rdb redis.UniversalClient, process string, closeClient func() error) (*Server, error) {
	if err := c.check(rdb); err != nil {
		return nil, err
	}
	prefix := cmp.Or(c.ChannelPrefix, scripts.DefaultChannelPrefix)
	set := scripts.For(prefix, cmp.Or(c.TokenRetention, scripts.DefaultTokenRetention))
	return WithScripts(rdb, set, prefix, process, closeClient), nil
}

// WithScripts returns the backend for rdb that uses these scripts, and channels with this prefix.
func WithScripts(
	rdb redis.UniversalClient, set *scripts.Set, channelPrefix, process string, closeClient func() error,
) *Server {
	b := &Server{Client: conn.New(rdb), Scripts: set, closeClient: closeClient}
	b.Outbox = newOutbox(b.Client, b.Scripts.Release)
	b.Line = newLine(b.Client, b.Scripts, channelPrefix, process)
	return b
}

// check returns why rdb cannot be used in this way, if so.
func (c Config) check(rdb redis.UniversalClient) error {
	if v := reflect.ValueOf(rdb); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return fmt.Errorf("%w: the redis client is nil", locker.ErrInvalidOption)
	}
	if _, ok := rdb.(*redis.Ring); ok {
		return errRing
	}
	switch {
	case len(c.ChannelPrefix) > locker.MaxKeyLen:
		return fmt.Errorf("%w: Config.ChannelPrefix of %d bytes, at most %d are accepted",
			locker.ErrInvalidOption, len(c.ChannelPrefix), locker.MaxKeyLen)
	case c.TokenRetention != 0 && c.TokenRetention < time.Second:
		return fmt.Errorf("%w: Config.TokenRetention(%v): at least one second, or zero for %v",
			locker.ErrInvalidOption, c.TokenRetention, scripts.DefaultTokenRetention)
	}
	return nil
}

// errRing is why a Ring cannot keep locks.
var errRing = fmt.Errorf("%w: a redis.Ring cannot keep locks: when a server does not answer for a moment, "+
	"it moves that server's keys to others, which then grant them to a second holder", locker.ErrInvalidOption)
