package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// benchEtcd compares etcdlock with the Mutex that comes with etcd's client.
func benchEtcd(rounds int, round time.Duration, hold int, holdFor time.Duration) error {
	cluster, err := etcdtest.Start(etcdtest.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = cluster.Close() }()
	client, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	l := etcdlock.New(client, locker.TTL(10*time.Second))
	defer func() { _ = l.Close() }()
	mutex := func(ctx context.Context, key string) error {
		m := concurrency.NewMutex(session, "mutex/"+key)
		if err := m.Lock(ctx); err != nil {
			return err
		}
		return m.Unlock(ctx)
	}

	fmt.Printf("\netcd %s\n", cluster.Member(0).URL())
	var rows []row
	for _, n := range []int{1, 4, 16, 64, 256} {
		rows = append(rows, row{n, mutex, ""})
	}
	if err := printTable("concurrency.Mutex", "etcdlock", l, rounds, round, rows); err != nil {
		return err
	}
	metrics := cluster.Member(0).URL() + "/metrics"
	for _, n := range []int{1, 256} {
		if err := printProposals(n, round, metrics, mutex, lockerLock(l)); err != nil {
			return err
		}
	}
	if hold == 0 {
		return nil
	}
	if err := session.Close(); err != nil { // and its keep-alives
		return err
	}
	before, err := metric(metrics, "process_resident_memory_bytes")
	if err != nil {
		return err
	}
	if err := holdMany(l, hold, holdFor, "keep-alives", func() (float64, error) {
		return metric(metrics, `grpc_server_msg_received_total{grpc_method="LeaseKeepAlive"`)
	}); err != nil {
		return err
	}
	after, err := metric(metrics, "process_resident_memory_bytes")
	if err != nil {
		return err
	}
	fmt.Printf("%.0f bytes of resident memory of the server per lease, with its history\n",
		(after-before)/float64(hold))
	return nil
}

// printProposals shows how many entries of the servers' log a pair takes.
func printProposals(goroutines int, round time.Duration, metrics string, plain, ours pair) error {
	var perPair [2]float64
	for i, p := range []pair{plain, ours} {
		if _, err := throughput(goroutines, round/10, p); err != nil { // has the sessions made
			return err
		}
		before, err := metric(metrics, "etcd_server_proposals_applied_total")
		if err != nil {
			return err
		}
		start := time.Now()
		perSecond, err := throughput(goroutines, round, p)
		if err != nil {
			return err
		}
		pairs := perSecond * time.Since(start).Seconds()
		after, err := metric(metrics, "etcd_server_proposals_applied_total")
		if err != nil {
			return err
		}
		perPair[i] = (after - before) / pairs
	}
	fmt.Printf("\nproposals for lock + unlock, %d goroutines: %.2f, with concurrency.Mutex %.2f\n", goroutines,
		perPair[1], perPair[0])
	return nil
}

// metric returns a number that the server publishes: the sum of those whose names with labels begin so.
func metric(url, name string) (sum float64, err error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	found := false
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, name) {
			continue
		}
		n, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", line, err)
		}
		sum += n
		found = true
	}
	if !found {
		return 0, fmt.Errorf("%s does not tell of %s", url, name)
	}
	return sum, lines.Err()
}
