package redlock_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock/redlock"
)

// Three servers that know nothing of one another: any one of them may fail. (It needs servers, and is compiled only.)
func ExampleNew() {
	var clients []redis.UniversalClient
	for _, addr := range []string{"one:6379", "two:6379", "three:6379"} {
		rdb := redis.NewClient(&redis.Options{Addr: addr})
		defer rdb.Close()
		clients = append(clients, rdb)
	}
	l := redlock.New(clients)
	defer l.Close() // before the clients

	lease, err := l.Lock(context.Background(), "payments/7")
	switch {
	case errors.Is(err, redlock.ErrNoQuorum):
		log.Print("two servers of three do not answer: ", err)
	case err != nil:
		log.Fatal(err)
	default:
		defer lease.Unlock()
		fmt.Println("token", lease.Token())
	}
}
