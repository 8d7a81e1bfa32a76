package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// modesHold is for how long each holder has the key.
const modesHold = time.Millisecond

// printModes has readers and writers, and then contenders for slots, use one key of each store, from ten Lockers.
func printModes(stores string, long time.Duration) error {
	const lockers = 10
	fmt.Printf("100 readers and 10 writers, and 20 contenders for 5 slots, from %d Lockers, for %v each; a holder has the\n"+
		"key for %v. A turn is that of one holder; the longest wait is that from Lock to the lease.\n\n",
		lockers, long, modesHold)
	fmt.Println("| store | who | turns/s | of them writers' | most at once | longest wait of a reader | of a writer |")
	fmt.Println("|---|---|---:|---:|---:|---:|---:|")
	for store := range strings.SplitSeq(stores, ",") {
		open, ok := sites[store]
		if !ok {
			return fmt.Errorf("unknown store %q", store)
		}
		s, err := open()
		if err != nil {
			return err
		}
		err = s.printModes(lockers, long)
		s.close()
		if err != nil {
			return fmt.Errorf("%s: %w", store, err)
		}
	}
	return nil
}

func (s *site) printModes(lockers int, long time.Duration) error {
	var ls []locker.Locker
	defer func() {
		for _, l := range ls {
			_ = l.Close()
		}
	}()
	for range lockers {
		l, err := s.open()
		if err != nil {
			return err
		}
		ls = append(ls, l)
	}
	for _, scene := range []struct {
		name   string
		groups []group
	}{
		{"readers and writers", []group{{100, []locker.CallOption{locker.Shared()}}, {10, nil}}},
		{"slots", []group{{20, []locker.CallOption{locker.Slots(5)}}, {0, nil}}},
	} {
		turns, most, err := scramble(ls, scene.name, long, scene.groups)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			fmt.Printf("| %s | %s | not offered | | | | |\n", s.name, scene.name)
			continue
		case err != nil:
			return err
		}
		first, second := turns[0], turns[1]
		all := float64(first.n + second.n)
		share, wait := "", ""
		if second.n > 0 {
			share = fmt.Sprintf("%.0f %%", 100*float64(second.n)/all)
			wait = second.longest.Round(time.Millisecond).String()
		}
		fmt.Printf("| %s | %s | %.0f | %s | %d | %v | %s |\n", s.name, scene.name, all/long.Seconds(), share, most,
			first.longest.Round(time.Millisecond), wait)
	}
	return nil
}

// group are some who want a key in the same way.
type group struct {
	size int
	opts []locker.CallOption
}

// turns are those of a group.
type turns struct {
	n       int
	longest time.Duration // that one of them has waited
}

// scramble has groups, spread over Lockers, use a key for a while.
func scramble(ls []locker.Locker, key string, long time.Duration, groups []group) (of []turns, most int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	of = make([]turns, len(groups))
	var mu sync.Mutex
	inside := 0
	var all sync.WaitGroup
	for g, group := range groups {
		for i := range group.size {
			all.Go(func() {
				for ctx.Err() == nil {
					asked := time.Now()
					lease, failure := ls[i%len(ls)].Lock(ctx, key, group.opts...)
					if ctx.Err() == nil && failure != nil {
						mu.Lock()
						err = failure
						mu.Unlock()
						cancel()
					}
					if failure != nil {
						return
					}
					mu.Lock()
					of[g].n++
					of[g].longest = max(of[g].longest, time.Since(asked))
					inside++
					most = max(most, inside)
					mu.Unlock()
					time.Sleep(modesHold)
					mu.Lock()
					inside--
					mu.Unlock()
					_ = lease.Unlock()
				}
			})
		}
	}
	all.Wait()
	return of, most, err
}
