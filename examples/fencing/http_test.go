package fencing

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// service keeps what was written last, as a service would whose state is in its memory.
type service struct {
	arrived chan struct{} // told of each request before the fence
	entered chan struct{} // told of each request that is let in
	hold    chan struct{} // if not nil, what a request waits for before it writes
	value   string
}

func (s *service) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.entered <- struct{}{}
	if s.hold != nil {
		<-s.hold
	}
	s.value = string(body)
}

// put returns the status of a request that a holder sends.
func put(ctx context.Context, url string, lease *locker.Lease, value string) (int, error) {
	client := &http.Client{Transport: Sender{Lease: lease, Next: http.DefaultTransport}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, url, strings.NewReader(value))
	if err != nil {
		return 0, err
	}
	response, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	memory := memlock.New()
	stale, fresh := handover(t, memory, memory.Peer(), "k")
	start := func(t *testing.T) (*service, string) {
		s := &service{arrived: make(chan struct{}, 8), entered: make(chan struct{}, 8)}
		fence := &Fence{Next: s}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.arrived <- struct{}{}
			fence.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		return s, server.URL + "/accounts/7"
	}
	want := func(t *testing.T, url string, lease *locker.Lease, value string, status int) {
		t.Helper()
		if got, err := put(t.Context(), url, lease, value); err != nil || got != status {
			t.Errorf("%q: status %d, %v; want %d", value, got, err, status)
		}
	}
	wantValue := func(t *testing.T, s *service, value string) {
		t.Helper()
		if s.value != value {
			t.Errorf("the value is %q; want %q", s.value, value)
		}
	}
	t.Run("the stale one comes late", func(t *testing.T) {
		s, url := start(t)
		want(t, url, stale, "old", http.StatusOK) // nobody else has been here
		want(t, url, fresh, "new", http.StatusOK)
		want(t, url, fresh, "new", http.StatusOK) // the answer got lost
		want(t, url, stale, "late", http.StatusConflict)
		wantValue(t, s, "new")
		want(t, url+"0", stale, "other", http.StatusOK) // another resource
		wantValue(t, s, "other")
	})
	t.Run("first request of all", func(t *testing.T) {
		s, url := start(t)
		want(t, url, fresh, "new", http.StatusOK)
		want(t, url, stale, "late", http.StatusConflict)
		wantValue(t, s, "new")
	})
	// Each of the two comes while the other has passed the check and not written yet.
	for _, c := range []struct {
		name          string
		first, second *locker.Lease
		status        int // of the second
		value         string
	}{
		{"the stale one comes while the new one is inside", fresh, stale, http.StatusConflict, "first"},
		{"the new one comes while the stale one is inside", stale, fresh, http.StatusOK, "second"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, url := start(t)
			s.hold = make(chan struct{})
			type result struct {
				status int
				err    error
			}
			send := func(lease *locker.Lease, value string) <-chan result {
				done := make(chan result, 1)
				go func() {
					status, err := put(t.Context(), url, lease, value)
					done <- result{status, err}
				}()
				return done
			}
			first := send(c.first, "first")
			<-s.entered
			<-s.arrived
			second := send(c.second, "second")
			<-s.arrived
			select {
			case <-s.entered:
				t.Error("both are inside")
			case <-time.After(50 * time.Millisecond): // to show that nothing happens takes some time
			}
			close(s.hold)
			if r := <-first; r.err != nil || r.status != http.StatusOK {
				t.Errorf("the first: %+v", r)
			}
			if r := <-second; r.err != nil || r.status != c.status {
				t.Errorf("the second: %+v", r)
			}
			wantValue(t, s, c.value)
		})
	}
	t.Run("no token", func(t *testing.T) {
		s, url := start(t)
		response, err := http.Post(url, "text/plain", strings.NewReader("without"))
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != http.StatusPreconditionRequired {
			t.Error(response.Status)
		}
		wantValue(t, s, "")
	})
}
