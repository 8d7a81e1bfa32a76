package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/redislock"
)

// stage is where a whole fleet plays in one process.
type stage struct {
	where string // the server, for people

	// join returns what one worker has, as if it were a process of its own, and what cuts it off.
	join func(*slog.Logger) (s store, cut func() (heal func()))

	// terms returns the tokens with which jobs 1, 2 and so on were done, as the queue has it. It is called once, in the
	// end.
	terms func() ([]uint64, error)
}

func newStage(cfg config, scheme string) (stage, error) {
	switch scheme {
	case memory:
		return memoryStage(cfg), nil
	case "redis":
		return redisStage(cfg)
	}
	return stage{}, fmt.Errorf("-timeline: a whole fleet plays in memory, or on a server of redis://, not of %q", scheme)
}

func memoryStage(cfg config) stage {
	locks, queue := memlock.New(), new(memoryQueue)
	return stage{
		where: "no server",
		join: func(log *slog.Logger) (store, func() func()) {
			cfg := cfg
			cfg.log = log
			s, opts := newStore(cfg)
			own := locks.Peer(opts...)
			s.locks, s.queue, s.close = own, queue, func() error { return nil }
			return s, own.Cut
		},
		terms: func() (terms []uint64, err error) {
			for _, l := range queue.results {
				terms = append(terms, l.Token)
			}
			return terms, nil
		},
	}
}

// redisStage needs a key that nobody else uses: the story begins with job 1.
func redisStage(cfg config) (stage, error) {
	o, err := redislock.ParseURL(cfg.backend)
	if err != nil {
		return stage{}, fmt.Errorf("-backend: %w", err)
	}
	return stage{
		where: "Redis",
		join: func(log *slog.Logger) (store, func() func()) {
			own, cable := *o, new(cable)
			own.Dialer = cable.connect
			cfg := cfg
			cfg.log = log
			return newRedisStore(&own, cfg), cable.pull
		},
		terms: func() ([]uint64, error) {
			rdb := redis.NewUniversalClient(o)
			defer func() { _ = rdb.Close() }() // nothing is left to be lost
			ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
			defer cancel()
			queue := queuePrefix + cfg.key
			fields, err := rdb.HGetAll(ctx, queue).Result()
			var terms []uint64
			for job := 1; err == nil && fields[strconv.Itoa(job)] != ""; job++ {
				token, _, _ := strings.Cut(fields[strconv.Itoa(job)], " ")
				var term uint64
				term, err = strconv.ParseUint(token, 10, 64)
				terms = append(terms, term)
			}
			return terms, cmp.Or(err, rdb.Del(ctx, queue).Err())
		},
	}, nil
}

// cable is what connects one worker. When it is pulled, its connections break, and no others can be made.
type cable struct {
	mu     sync.Mutex
	pulled bool
	conns  []net.Conn
}

var errPulled = errors.New("the cable is pulled")

// connect dials.
func (c *cable) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pulled {
		_ = conn.Close()
		return nil, errPulled
	}
	c.conns = append(c.conns, conn)
	return conn, nil
}

// pull breaks the connections until heal is called.
func (c *cable) pull() (heal func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pulled = true
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pulled, c.conns = false, nil
	}
}
