package redislock_test

import (
	"context"
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
	l, err := redislock.Open("redis://localhost:6379/0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	err = locker.Do(context.Background(), l, "migration", func(ctx context.Context) error {
		return ctx.Err() // the work
	})
	if err != nil {
		log.Fatal(err)
	}
}
