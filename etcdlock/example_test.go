package etcdlock_test

import (
	"context"
	"fmt"
	"log"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
)

// These need a server, and are compiled only.

func Example() {
	ctx := context.Background()
	l, err := etcdlock.Open(ctx, "etcd://one,two,three") // the members of a cluster
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	lease, err := l.Lock(ctx, "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()
	fmt.Println("token", lease.Token())
}

// A Locker that shares the client of a program.
func ExampleNew() {
	client, err := clientv3.New(
		clientv3.Config{Endpoints: []string{"localhost:2379"}, DialKeepAliveTime: 10 * time.Second},
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	l := etcdlock.New(client, locker.TTL(15*time.Second), locker.Prefix("app/locks/"))
	defer l.Close()

	err = locker.Do(context.Background(), l, "migration", func(ctx context.Context) error {
		_, err := client.Put(ctx, "app/version", "2")
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A client as Open makes it, for what a program does besides locking.
func ExampleParseURL() {
	config, err := etcdlock.ParseURL("etcds://app:password@one,two,three?cacert=ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	client, err := clientv3.New(config)
	if err != nil {
		log.Fatal(err) // such as a wrong password
	}
	defer client.Close()
	l := etcdlock.New(client)
	defer l.Close()
}

// A holder that was paused for longer than its TTL does not know that it has lost the lock. It cannot write all the
// same, if what it writes is in the same etcd: etcd looks for the lock in the transaction that writes.
func ExampleGuard() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	l := etcdlock.New(client)
	defer l.Close()

	ctx := context.Background()
	lease, err := l.Lock(ctx, "accounts/7")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()
	resp, err := client.Txn(ctx).
		If(etcdlock.Guard(lease)). // and further conditions
		Then(clientv3.OpPut("accounts/7/balance", "100")).
		Commit()
	switch {
	case err != nil:
		log.Fatal(err) // it is unknown whether it was carried out
	case !resp.Succeeded:
		log.Fatal("the lock was lost, and nothing written")
	}
}

// What to look for with etcdctl get --prefix.
func ExampleKey() {
	fmt.Println(etcdlock.Key(etcdlock.DefaultPrefix + "orders/42"))
	fmt.Println(etcdlock.Key(etcdlock.DefaultPrefix + "50 % off"))
	// Output:
	// locker/orders/42@
	// locker/50%20%25%20off@
}
