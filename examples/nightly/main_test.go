package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

const day = "2026-11-21"

// orders of the day, with something that happens while they are read, half-way.
type orders struct {
	fs.FS
	halfway func()
}

func ordersOfTheDay(halfway func()) orders {
	return orders{fstest.MapFS{day: {Data: []byte("100\n250\n")}}, halfway}
}

func (o orders) Open(name string) (fs.File, error) {
	f, err := o.FS.Open(name)
	return &slowFile{File: f, halfway: o.halfway}, err
}

type slowFile struct {
	fs.File
	halfway func()
	started bool
}

func (f *slowFile) Read(p []byte) (int, error) {
	if f.started {
		f.halfway()
	}
	f.started = true
	return f.File.Read(p[:4]) // "100\n"
}

// Two instances: the second one finds the first at work; a third, later, finds the work done.
func TestOneInstance(t *testing.T) {
	t.Parallel()
	l, done := memlock.New(), totals(t.TempDir())
	var halfway int
	total, err := addUp(t.Context(), l, ordersOfTheDay(func() {
		halfway++
		_, err := addUp(t.Context(), l.Peer(), ordersOfTheDay(func() { t.Error("two at work") }), done, day)
		if !errors.Is(err, locker.ErrLocked) {
			t.Errorf("the second one: %v", err)
		}
	}), done, day)
	if total != 350 || err != nil || halfway == 0 {
		t.Errorf("the first one: %d, %v", total, err)
	}
	total, err = addUp(t.Context(), l.Peer(), ordersOfTheDay(func() { t.Error("done twice") }), done, day)
	if total != 350 || err != nil {
		t.Errorf("the third one: %d, %v", total, err)
	}
}

// What happens when the lock is lost? The work stops, nothing is stored, the program fails; the next instance does it
// all.
func TestLockLost(t *testing.T) {
	t.Parallel()
	l, done := memlock.New(), totals(t.TempDir())
	_, err := addUp(t.Context(), l, ordersOfTheDay(func() { _ = l.Break(t.Context(), "nightly/"+day) }), done, day)
	if !errors.Is(err, locker.ErrLost) {
		t.Errorf("the lock was taken away, and it says: %v", err)
	}
	if _, err := done.read(day); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was stored: %v", err)
	}
	if total, err := addUp(t.Context(), l, ordersOfTheDay(func() {}), done, day); total != 350 || err != nil {
		t.Errorf("the next instance: %d, %v", total, err)
	}
}

// What happens when the network fails? The same, when the lease has run out, in fake time; and only then can another do
// it.
func TestCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, done := memlock.New(locker.TTL(time.Minute)), totals(t.TempDir())
		other := l.Peer()
		var heal func()
		begun := time.Now()
		_, err := addUp(t.Context(), l, ordersOfTheDay(func() {
			heal = l.Cut()
			if _, err := addUp(t.Context(), other, ordersOfTheDay(func() {}), done, day); !errors.Is(err, locker.ErrLocked) {
				t.Errorf("another, at once: %v", err)
			}
			time.Sleep(time.Minute) // the work goes on, without asking
		}), done, day)
		if !errors.Is(err, locker.ErrLost) {
			t.Errorf("cut off for %v, it says: %v", time.Since(begun), err)
		}
		if total, err := addUp(t.Context(), other, ordersOfTheDay(func() {}), done, day); total != 350 || err != nil {
			t.Errorf("another, then: %d, %v", total, err)
		}
		heal()
	})
}

// What happens when the program is paused after its last look at the lock, and writes when another has it? It has the
// smaller token.
func TestLateWriter(t *testing.T) {
	t.Parallel()
	l, done := memlock.New(), totals(t.TempDir())
	var tokens []uint64
	for range 2 {
		lease, err := l.TryLock(t.Context(), day)
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, lease.Token())
		_ = l.Break(t.Context(), day)
	}
	if err := errors.Join(done.write(day, tokens[1], 350), done.write(day, tokens[0], 100)); err != nil {
		t.Fatal(err)
	}
	if total, err := done.read(day); total != 350 || err != nil {
		t.Errorf("read %d, %v", total, err)
	}
}

// The same program on Redis: of many instances that start at the same time, at least one does it, and never two.
func TestRedis(t *testing.T) {
	t.Parallel()
	url := "redis://" + redistest.Address(t)
	done := totals(t.TempDir())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l, err := open(t.Context(), url, locker.Prefix(t.Name()))
			if err != nil {
				t.Error(err)
				return
			}
			total, err := addUp(t.Context(), l, ordersOfTheDay(func() {}), done, day)
			if !errors.Is(err, locker.ErrLocked) && (err != nil || total != 350) {
				t.Errorf("%d, %v", total, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if files, err := os.ReadDir(string(done)); len(files) != 1 {
		t.Errorf("stored %v, %v", files, err)
	}
}

// The whole program, in memory and on Redis.
func TestRun(t *testing.T) {
	for _, url := range []string{"", "memory://", "redis://" + redistest.Address(t)} {
		t.Chdir(t.TempDir())
		if err := errors.Join(os.Mkdir("orders", 0o777), os.WriteFile(filepath.Join("orders", day), []byte("1\n2\n"), 0o666)); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := run(t.Context(), url, []string{day}, &out); err != nil || out.String() != day+": 3 cents\n" {
			t.Errorf("%q: %q, %v", url, &out, err)
		}
	}
}

// Every kind of URL leads to the store of its kind, which open asks whether locks can be had.
func TestOpen(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for url, store := range map[string]string{
		"redis://localhost":               "redis",
		"rediss://localhost":              "redis",
		"redis+sentinel://localhost/name": "redis",
		"redis+cluster://localhost":       "redis",
		"redlock://one,two,three":         "redlock",
		"postgres://localhost":            "postgres",
		"etcd://one,two,three":            "etcd",
	} {
		if _, err := open(ended, url); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), store) {
			t.Errorf("%s, with a ctx that has ended: %v; want that from %s", url, err, store)
		}
	}
	if l, err := open(ended, "memory://"); err != nil {
		t.Error(err)
	} else if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"mysql://localhost", "localhost:6379", "redis://%"} {
		if _, err := open(ended, url); err == nil {
			t.Errorf("%s was taken", url)
		}
	}
}

// FuzzOpen has what may be in LOCKER_URL. Whatever is wrong with it, whichever the store, the password is not shown.
func FuzzOpen(f *testing.F) {
	schemes := []string{"redis", "redlock", "redis+cluster", "redis+sentinel", "postgres", "etcd", "mysql", ""}
	for _, scheme := range schemes {
		f.Add(scheme, "", "", "localhost:1/0")
		f.Add(scheme, "#", "?", "local host:x/")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel() // so that it does not connect
	f.Fuzz(func(t *testing.T, scheme, before, after, rest string) {
		const secret = "hunter2"
		if scheme == "memory" || strings.Contains(scheme+rest, secret) {
			t.Skip("has no password, or two of them")
		}
		for _, colon := range []string{"://", ":/", ":", ""} { // people forget a lot
			url := scheme + colon + "me:" + before + secret + after + "@" + rest
			switch l, err := open(ended, url); {
			case err == nil:
				t.Errorf("%s is open: %v", url, l)
			case strings.Contains(err.Error(), secret) && colon != "://" && strings.Contains(before+after+rest, "://"):
				// The password is before that, where the scheme should be.
			case strings.Contains(err.Error(), secret):
				t.Errorf("the password in %s is shown: %v", url, err)
			}
		}
	})
}
