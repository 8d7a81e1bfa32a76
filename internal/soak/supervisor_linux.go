package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/soak/history"
)

// store is the servers of a run.
type store interface {
	addrs() []string               // what clients are given
	reachable() []string           // all addresses that a client may connect to
	faults() []fault               // of the servers
	healthy(context.Context) error // nil if all servers are well
	leftovers() ([]string, error)  // what there is when nobody holds or waits for anything
	rules() history.Rules          // what the documentation does not promise
	close() error
}

// The stores.
const (
	storeRedis    = "redis"
	storeRedlock  = "redlock"
	storeSentinel = "sentinel"
	storeCluster  = "cluster"
	storePostgres = "postgres"
	storeEtcd     = "etcd"
)

// openStore starts the servers.
func openStore(s *soak) (store, error) {
	switch s.config.store {
	case storePostgres:
		return newPostgresStore(s)
	case storeEtcd:
		return newEtcdStore(s)
	}
	return newRedisStore(s)
}

// openLocker makes the Locker of a process. It does not connect.
func openLocker(spec workerSpec, rng *rand.Rand, opts ...locker.Option) (locker.Locker, func(), error) {
	switch spec.Store {
	case storePostgres:
		return openPostgres(spec, rng, opts)
	case storeEtcd:
		return openEtcd(spec, opts)
	}
	return openRedis(spec, rng, opts)
}

// soak is the supervisor of one run.
type soak struct {
	config
	dir     string
	store   store
	workers []*slot

	behind   time.Duration // by how much a server's clock was set back at most
	caughtUp time.Time     // when clocks show again what they had shown before they were set back
	lostData time.Time     // when a server has begun again without its data

	mu     sync.Mutex
	events []history.Event
	broken []history.Violation // what was seen while it happened
}

// rng returns the random numbers of one part of the run.
func (s *soak) rng(part uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, part)) }

// began notes the beginning of an event, and the function that it returns the end.
func (s *soak) began(what, process, server string) (ended func()) {
	e := history.Event{What: what, From: now(), Process: process, Server: server}
	return func() {
		e.To = now()
		s.note(e)
	}
}

func (s *soak) note(e history.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func (s *soak) violation(rule string, evidence ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, history.Violation{Rule: rule, Evidence: evidence})
}

// run runs the workers and the faults to their end.
func (s *soak) run(ctx context.Context) error {
	for i := range s.processes {
		w, err := s.newSlot(i + 1)
		if err != nil {
			return err
		}
		defer w.close()
		s.workers = append(s.workers, w)
		if err := w.start(); err != nil {
			return err
		}
	}
	chaos, cancel := context.WithTimeout(ctx, s.lasts)
	defer cancel()
	var faults sync.WaitGroup
	for i, w := range s.workers {
		faults.Go(func() { s.linkFaults(chaos, w, s.rng(uint64(100+i))) })
	}
	var errs [2]error
	faults.Go(func() { errs[0] = s.processFaults(chaos, s.rng(1)); cancel() })
	faults.Go(func() { errs[1] = s.serverFaults(chaos, s.rng(2)); cancel() })
	s.progress(chaos)
	faults.Wait()         // each ends by healing what it has done
	if ctx.Err() != nil { // ^C has ended servers, too
		fmt.Println("interrupted: what was recorded is checked, and not what is left behind")
		for _, w := range s.workers {
			w.kill()
		}
		return nil
	}
	if err := errors.Join(errs[0], errs[1]); err != nil {
		return err
	}
	if err := s.await(); err != nil {
		return fmt.Errorf("the servers do not recover: %w", err)
	}
	time.Sleep(longestTTL(s.config.store) + s.behind) // the leases of processes that were killed end
	s.note(history.Event{What: history.Calm, From: now(), To: now()})
	fmt.Printf("the faults are over\n")
	time.Sleep(s.calm)
	for _, w := range s.workers {
		w.stop()
	}
	s.checkFree()
	return nil
}

// progress says how far the run is.
func (s *soak) progress(ctx context.Context) {
	start := time.Now()
	for sleep(ctx, 15*time.Second); ctx.Err() == nil; sleep(ctx, 15*time.Second) {
		s.mu.Lock()
		n := len(s.events)
		s.mu.Unlock()
		var size int64
		files, _ := filepath.Glob(filepath.Join(s.dir, "records-*"))
		for _, file := range files {
			if info, err := os.Stat(file); err == nil {
				size += info.Size()
			}
		}
		fmt.Printf("%v: %d events, %d kB of records\n", time.Since(start).Round(time.Second), n, size>>10)
	}
}

// checkFree checks that nothing is left when all processes have ended in order. Who was killed was so a TTL ago.
func (s *soak) checkFree() {
	l, closeClient, err := openLocker(workerSpec{Store: s.config.store, ID: "end", Servers: s.store.addrs()}, s.rng(3))
	if err != nil {
		s.violation("the store cannot be used at the end", err.Error())
		return
	}
	defer closeClient()
	longest := longestTTL(s.config.store)
	start := time.Now()
	for i := range s.keys {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		lease, err := l.Lock(ctx, fmt.Sprintf("soak-%d", i), locker.TTL(longest))
		cancel()
		if took := time.Since(start); took > longest+2*time.Second { // etcd, and a busy machine, take a moment more
			s.violation("a key is not free when nobody holds it", fmt.Sprintf("soak-%d, after %v", i, took))
		}
		if err == nil {
			err = lease.Unlock()
		}
		if err != nil {
			s.violation("a key cannot be locked and unlocked at the end", err.Error())
		}
	}
	fmt.Printf("at the end, all keys were locked and unlocked in %v\n", time.Since(start).Round(time.Millisecond))
	if err := l.Close(); err != nil {
		s.violation("Close failed at the end", err.Error())
	}
	if left, err := s.store.leftovers(); err != nil {
		s.violation("the store cannot be searched at the end", err.Error())
	} else if len(left) > 0 {
		s.violation("something is left behind", left...)
	}
}

// records reads what the workers have written down.
func (s *soak) records() iter.Seq[history.Record] {
	files, _ := filepath.Glob(filepath.Join(s.dir, "records-*"))
	return func(yield func(history.Record) bool) {
		for _, name := range files {
			text, err := os.ReadFile(name)
			fail(err)
			for line := range bytes.Lines(text) {
				var r history.Record
				if !bytes.HasSuffix(line, []byte("\n")) {
					break // the process was killed meanwhile
				}
				fail(json.Unmarshal(line, &r))
				if !yield(r) {
					return
				}
			}
		}
	}
}
