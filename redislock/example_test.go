package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
)

// These need a server, and are compiled only.

func ExampleNew() {
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	defer rdb.Close()
	l := redislock.New(rdb, locker.TTL(15*time.Second), locker.Holder("worker-7"))
	defer l.Close() // before the client

	lease, err := l.Lock(context.Background(), "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()
	fmt.Println("token", lease.Token())
}

func ExampleOpen() {
	ctx := context.Background()
	l, err := redislock.Open(ctx, "redis://localhost:6379/0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	err = locker.Do(ctx, l, "migration", func(ctx context.Context) error {
		return ctx.Err() // the work
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A program that does more with its client than to lock.
func ExampleParseURL() {
	options, err := redislock.ParseURL("redis+sentinel://app:password@one,two,three/mymaster/0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(options.MasterName, options.Addrs)
	rdb := redis.NewUniversalClient(options) // which has not connected yet
	defer rdb.Close()
	l := redislock.New(rdb)
	defer l.Close()
	// Output: mymaster [one:26379 two:26379 three:26379]
}

// A lock that two of three replicas have to confirm within a quarter of a second.
func ExampleConfig_New() {
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName:    "mymaster",
		SentinelAddrs: []string{"one:26379", "two:26379", "three:26379"},
	})
	defer rdb.Close()
	l := redislock.Config{Replicas: 2, ReplicasWithin: 250 * time.Millisecond}.New(rdb)
	defer l.Close()

	lease, err := l.TryLock(context.Background(), "orders/42")
	switch {
	case errors.Is(err, redislock.ErrReplicas):
		log.Print("the replicas are behind, and nothing is locked: ", err)
	case err != nil:
		log.Fatal(err)
	default:
		defer lease.Unlock()
		fmt.Println("token", lease.Token())
	}
}
