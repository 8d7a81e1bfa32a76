package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// benchRedis compares redislock with SET NX PX and a script that compares and deletes.
func benchRedis(rounds int, round time.Duration, hold int, holdFor time.Duration) error {
	server, err := redistest.Start(redistest.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 64})
	defer func() { _ = rdb.Close() }()
	l := redislock.New(rdb, locker.TTL(10*time.Second))
	defer func() { _ = l.Close() }()
	fmt.Printf("\nRedis\n")
	var rows []row
	for _, n := range []int{1, 4, 16, 64, 256} {
		rows = append(rows, row{goroutines: n, plain: plainLock(rdb)})
	}
	err = printTable("SET NX + compare-and-delete", "redislock", l, rounds, round, rows)
	if err != nil || hold == 0 {
		return err
	}
	return holdMany(l, hold, holdFor, "scripts", func() (float64, error) { return evalshas(context.Background(), rdb) })
}

// plainLock is what people write by hand.
func plainLock(rdb *redis.Client) pair {
	unlock := redis.NewScript(
		`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`,
	)
	return func(ctx context.Context, key string) error {
		if ok, err := rdb.SetNX(ctx, key, "token", 10*time.Second).Result(); err != nil || !ok {
			return fmt.Errorf("SET NX: %v, %w", ok, err)
		}
		return unlock.Run(ctx, rdb, []string{key}, "token").Err()
	}
}

// evalshas returns how many scripts the server has run.
func evalshas(ctx context.Context, rdb *redis.Client) (n float64, err error) {
	_, err = fmt.Sscanf(rdb.InfoMap(ctx, "commandstats").Item("Commandstats", "cmdstat_evalsha"), "calls=%g,", &n)
	return n, err
}
