package fencing

import (
	"net/http"
	"strconv"
	"sync"

	"github.com/lockerkit/locker"
)

// tokenHeader is the header that a token travels in.
const tokenHeader = "Fencing-Token"

// Sender sends the token of a lease with every request.
type Sender struct {
	Lease *locker.Lease
	Next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (s Sender) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(tokenHeader, strconv.FormatUint(s.Lease.Token(), 10))
	return s.Next.RoundTrip(r)
}

// Fence is a middleware for what a single process keeps in its memory. It lets in one request at a time for each path,
// and none with a smaller token than one before it.
type Fence struct {
	Next http.Handler

	mu    sync.Mutex
	doors map[string]*door
}

type door struct {
	mu       sync.Mutex // held while a request is inside: a stale one must not be overtaken between the check and its write
	greatest uint64
}

func (f *Fence) door(path string) *door {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doors == nil {
		f.doors = make(map[string]*door)
	}
	if f.doors[path] == nil {
		f.doors[path] = new(door)
	}
	return f.doors[path]
}

// ServeHTTP implements http.Handler.
func (f *Fence) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, err := strconv.ParseUint(r.Header.Get(tokenHeader), 10, 64)
	if err != nil {
		http.Error(w, tokenHeader+" is missing, or no number", http.StatusPreconditionRequired)
		return
	}
	d := f.door(r.URL.Path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if token < d.greatest {
		http.Error(w, ErrStale.Error(), http.StatusConflict)
		return
	}
	d.greatest = token
	f.Next.ServeHTTP(w, r)
}
