package modes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// Five crawlers fetch a site of three parts: each page once, and never two pages of a part at the same time.
func TestCrawl(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const parts, pages = 3, 100
		memory, site := memlock.New(), NewSite(parts, "0")
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		fetched, busy := make(map[string]int), make(map[*part]bool)
		fetch := func(_ context.Context, page string) []string {
			p := site.partOf(page)
			mu.Lock()
			if busy[p] {
				t.Error("two at work on a part")
			}
			busy[p] = true
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			fetched[page]++
			busy[p] = false
			var n int
			_, _ = fmt.Sscan(page, &n)
			return []string{fmt.Sprint((n + 1) % pages), fmt.Sprint((n + 7) % pages)}
		}
		var wg sync.WaitGroup
		for range parts + 2 {
			wg.Go(func() {
				if err := Crawl(ctx, memory.Peer(), site, fetch); !errors.Is(err, context.Canceled) {
					t.Errorf("a crawler: %v", err)
				}
			})
		}
		time.Sleep(2 * pages * time.Second) // of fake time; some part is always at work
		stop()
		wg.Wait()
		for page, times := range fetched {
			if times != 1 {
				t.Errorf("page %s was fetched %d times", page, times)
			}
		}
		if len(fetched) != pages {
			t.Errorf("%d pages of %d", len(fetched), pages)
		}
	})
}

// A crawler is cut off from the locks in the middle of a page. It hears of it, and another one fetches that page.
func TestCrawlCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		first := memlock.New(locker.TTL(time.Minute))
		site := NewSite(1, "page")
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = Crawl(ctx, first, site, func(ctx context.Context, _ string) []string {
				if ctx.Err() == nil {
					first.Cut()
				}
				<-ctx.Done()
				return []string{"not complete"}
			})
		})
		synctest.Wait()
		begun, got := time.Now(), ""
		wg.Go(func() {
			_ = Crawl(ctx, first.Peer(), site, func(_ context.Context, page string) []string {
				got = page
				stop()
				return nil
			})
		})
		wg.Wait()
		if took := time.Since(begun); got != "page" || took > time.Minute {
			t.Errorf("fetched %q after %v", got, took)
		}
		if site.known["not complete"] {
			t.Error("what the first one had fetched when it was cut off counts")
		}
	})
}

// Each part has a fence. Who had a slot before is refused, whatever the holders of the others do.
func TestSite(t *testing.T) {
	t.Parallel()
	site := NewSite(2)
	for _, page := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		site.add([]string{page})
	}
	next := func(part int, token uint64) string {
		t.Helper()
		page, err := site.Next(t.Context(), part, token)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	zero, one := next(0, 5), next(1, 9)
	if site.partOf(zero) != &site.parts[0] || site.partOf(one) != &site.parts[1] {
		t.Errorf("%s and %s are of other parts", zero, one)
	}
	for range 2 { // the answer gets lost
		if err := site.Done(0, 5, zero, nil); err != nil {
			t.Errorf("with the smaller token of another part: %v", err)
		}
	}
	left := len(site.parts[0].todo)
	again := next(0, 6)
	if err := site.Done(0, 5, again, nil); !errors.Is(err, ErrStale) {
		t.Errorf("the former holder: %v", err)
	}
	if _, err := site.Next(t.Context(), 0, 5); !errors.Is(err, ErrStale) {
		t.Errorf("the former holder asks for the next page: %v", err)
	}
	if again == zero || len(site.parts[0].todo) != left {
		t.Errorf("%s again, of %v", again, site.parts[0].todo)
	}
}
