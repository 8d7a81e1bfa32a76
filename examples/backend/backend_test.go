//go:build linux

package filelock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
)

// TestConformance is the proof that the backend keeps the contract. Start yours with Open alone, and add the hooks one
// by one: each of them turns skips into tests.
func TestConformance(t *testing.T) {
	top := t.TempDir()
	// Each test has a directory of its own, as the turns of one directory are not fair: on a busy machine, renewals
	// would come late when the tests that run in parallel all want theirs.
	dir := func(t *testing.T) string { return filepath.Join(top, t.Name()) }
	open := func(t *testing.T) *backend {
		b, err := open(dir(t))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var cables sync.Map // of the Locker that each test opened last, for Cut: tests run in parallel

	conformance.Run(t, conformance.Harness{
		// Two Lockers in one process exclude one another just as two processes do, because flock belongs to what was
		// opened, not to the process that did. TestProcesses does it with processes.
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			c := &cable{backend: open(t)}
			cables.Store(t, c)
			return locker.New(c, opts...)
		},
		Backend: func(t *testing.T) locker.Backend { return open(t) },
		Features: conformance.Features{
			Unordered: "a directory has no waiting line: waiters poll",
		},
		Cut: func(t *testing.T, f conformance.Fault) func() {
			c, _ := cables.Load(t)
			return c.(*cable).cut(f)
		},
		// The store is a directory: it restarts when the machine does, and the worst that has to be expected then is a
		// power failure that loses everything written last. What stays is the wall clock.
		Restart: func(t *testing.T) {
			files, err := filepath.Glob(dir(t) + "/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range files {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		},
		// Taking the lock away must be as atomic as everything else, or it might hit a record that is being renewed.
		Break: func(t *testing.T, key string) {
			b := open(t)
			_, leave, err := b.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
			if err := os.Remove(b.file(locker.Request{Key: key})); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// cable is a backend that can be cut off from its directory, as a network store is from its client: the methods of the
// backend are the requests. A store that has a network is better tested with a proxy in front of it.
type cable struct {
	*backend
	mu     sync.Mutex
	fault  conformance.Fault
	healed chan struct{} // closed by heal; nil while the cable is whole
}

func (c *cable) cut(f conformance.Fault) (heal func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	healed := make(chan struct{})
	c.fault, c.healed = f, healed
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.healed = nil
		close(healed)
	}
}

var errCut = errors.New("the cable is cut")

// send does what becomes of a request that call carries out.
func (c *cable) send(ctx context.Context, call func(context.Context)) error {
	c.mu.Lock()
	fault, healed := c.fault, c.healed
	c.mu.Unlock()
	if healed == nil {
		call(ctx)
		return nil
	}
	switch fault {
	case conformance.Refuse:
		return errCut
	case conformance.Hang: // the request arrives when healed, whether or not anybody still waits for the answer
		select {
		case <-healed:
			call(ctx)
			return nil
		case <-ctx.Done():
			go func() { <-healed; call(ctx) }()
			return context.Cause(ctx)
		}
	case conformance.DelayReplies: // by a fifth of the TTL, which is a second
		call(ctx)
		return wait(ctx, time.Second/5)
	case conformance.LateRequests: // it arrives whether or not anybody still waits
		late, arrived := rand.N(time.Second/5), make(chan struct{})
		go func() { time.Sleep(late); call(context.WithoutCancel(ctx)); close(arrived) }()
		select {
		case <-arrived:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	case conformance.DropReplies:
		call(ctx)
	case conformance.BlackHole:
	}
	select { // the answer never comes; the client notices when the connection turns out to be broken, if not before
	case <-healed:
		return errCut
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *cable) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	type answer struct {
		g   locker.Grant
		err error
	}
	got := make(chan answer, 1)
	if err := c.send(ctx, func(ctx context.Context) {
		g, err := c.backend.Acquire(ctx, r)
		got <- answer{g, err}
	}); err != nil {
		return locker.Grant{}, err
	}
	a := <-got
	return a.g, a.err
}

func (c *cable) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i, g := range gs {
		got := make(chan locker.Renewal, 1)
		if err := c.send(ctx, func(ctx context.Context) {
			c.backend.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) { got <- r })
		}); err != nil {
			done(i, locker.Renewal{Err: err})
			continue
		}
		done(i, <-got)
	}
}

func (c *cable) Release(ctx context.Context, g locker.Grant) error {
	got := make(chan error, 1)
	if err := c.send(ctx, func(ctx context.Context) { got <- c.backend.Release(ctx, g) }); err != nil {
		return err
	}
	return <-got
}

// The example has to stay as small as it says.
func TestSize(t *testing.T) {
	source, err := os.ReadFile("backend.go")
	if err != nil {
		t.Fatal(err)
	}
	const most = 150
	code := 0
	for line := range strings.Lines(string(source)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			code++
		}
	}
	if code > most {
		t.Errorf("backend.go has %d lines of code; want %d at most", code, most)
	}
}

// A directory that this user may not use is a matter of permissions, which does not pass by itself.
func TestDenied(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("NOT PROVEN: root may use any directory")
	}
	dir := t.TempDir()
	l := newLocker(t, dir)
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrDenied) {
		t.Errorf("Lock returned %v, want ErrDenied", err)
	}
}

// A token is greater than the last one also when the clock has been set back since.
func TestTokenAheadOfClock(t *testing.T) {
	dir := t.TempDir()
	ahead := uint64(time.Now().Add(time.Hour).UnixNano())
	if err := os.WriteFile(dir+"/token", fmt.Append(nil, ahead), 0o600); err != nil {
		t.Fatal(err)
	}
	lease, err := newLocker(t, dir).TryLock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if lease.Token() <= ahead {
		t.Errorf("token %d, want more than %d", lease.Token(), ahead)
	}
}

// A request whose caller has given up must not be carried out afterwards, when whoever was in the way of it has left:
// here another process, or another goroutine of the same Locker.
func TestLateAcquireIsRefused(t *testing.T) {
	for _, test := range []string{"process", "goroutine"} {
		t.Run(test, func(t *testing.T) {
			dir := t.TempDir()
			b, err := open(dir)
			if err != nil {
				t.Fatal(err)
			}
			other := b
			if test == "process" {
				if other, err = open(dir); err != nil {
					t.Fatal(err)
				}
			}
			_, leave, err := other.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				_, err := b.Acquire(ctx, locker.Request{Key: "k", Owner: locker.Owner{1}, TTL: time.Hour})
				done <- err
			}()
			time.Sleep(20 * time.Millisecond) // for the goroutine to get there; without, the test proves less
			cancel()
			leave()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatalf("Acquire returned %v, want context.Canceled", err)
			}
			if _, err := newLocker(t, dir).TryLock(t.Context(), "k"); err != nil {
				t.Errorf("the key is not free: %v", err)
			}
		})
	}
}

// The same owner that asks again gets the same token, and a whole TTL from then on.
func TestSameOwnerAgain(t *testing.T) {
	b, err := open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := locker.Request{Key: "k", Owner: locker.Owner{1}, TTL: 500 * time.Millisecond}
	first, err := b.Acquire(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.TTL = time.Hour
	second, err := b.Acquire(t.Context(), r)
	if err != nil || second.Token != first.Token {
		t.Fatalf("got %d, %v; want %d, nil", second.Token, err, first.Token)
	}
	time.Sleep(600 * time.Millisecond)
	r.Owner = locker.Owner{2}
	if _, err := b.Acquire(t.Context(), r); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("Acquire for another owner returned %v, want ErrLocked", err)
	}
	if err := b.Release(t.Context(), locker.Grant{Request: r}); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Release for another owner returned %v, want ErrLost", err)
	}
	if _, err := b.Acquire(t.Context(), r); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("the Release for another owner freed the key: %v", err)
	}
}

// A file that is not a record is reported, and neither granted nor taken for a holder.
func TestSpoiltRecord(t *testing.T) {
	dir := t.TempDir()
	l := newLocker(t, dir)
	b, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	record := func(key string) string { return b.file(locker.Request{Key: key}) }
	if _, err := l.TryLock(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(record("other"), record("collides")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record("torn"), []byte(`{"Name":"dG9y`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"collides", "torn"} {
		if _, err := l.TryLock(t.Context(), key); err == nil || errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock(%q) returned %v, want an error that is not ErrLocked", key, err)
		}
	}
}

func newLocker(t *testing.T, dir string, opts ...locker.Option) *locker.Client {
	l, err := New(dir, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// The processes of the tests below are this test binary again, told what to do by the environment.
const (
	workers    = 4
	increments = 50
	childTTL   = 3 * time.Second // its renewals are in time also when the machine is busy
)

func TestMain(m *testing.M) {
	dir := os.Getenv("FILELOCK_DIR")
	var err error
	switch os.Getenv("FILELOCK_CHILD") {
	case "":
		os.Exit(m.Run())
	case "increment":
		err = increment(dir)
	case "hold":
		err = hold(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, what, dir string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "FILELOCK_CHILD="+what, "FILELOCK_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// increment adds to a number in a file, in a way that loses additions when two do it at once.
func increment(dir string) error {
	l, err := New(filepath.Join(dir, "locks"))
	if err != nil {
		return err
	}
	defer l.Close()
	for range increments {
		err := locker.Do(context.Background(), l, "counter", func(context.Context) error {
			name := filepath.Join(dir, "counter")
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(string(data))
			if err != nil {
				return err
			}
			return os.WriteFile(name, []byte(strconv.Itoa(n+1)), 0o600)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hold locks a key, says with which token, and never returns.
func hold(dir string) error {
	l, err := New(dir, locker.TTL(childTTL), locker.Holder("child"))
	if err != nil {
		return err
	}
	lease, err := l.Lock(context.Background(), "k")
	if err != nil {
		return err
	}
	fmt.Println(lease.Token())
	<-lease.Done()
	return lease.Err()
}

func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	counter := filepath.Join(dir, "counter")
	if err := os.WriteFile(counter, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	var children []*exec.Cmd
	for range workers {
		cmd := child(t, "increment", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, cmd)
	}
	for _, cmd := range children {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(counter)
	if err != nil {
		t.Fatal(err)
	}
	if want := strconv.Itoa(workers * increments); string(data) != want {
		t.Errorf("the counter is %s, want %s", data, want)
	}
}

func TestKilledHolder(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "hold", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	token, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
	if err != nil {
		t.Fatal(err)
	}

	// While the child lives it renews, however long that is.
	l := newLocker(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 2*childTTL)
	defer cancel()
	_, err = l.Lock(ctx, "k")
	var e *locker.Error
	if !errors.As(err, &e) || !errors.Is(err, context.DeadlineExceeded) || e.Holder != "child" {
		t.Fatalf("Lock returned %v, want a deadline exceeded while waiting for child", err)
	}

	killed := time.Now()
	if err := cmd.Process.Kill(); err != nil { // SIGKILL: nothing of the child runs any more
		t.Fatal(err)
	}
	cmd.Wait()
	ctx, cancel = context.WithTimeout(t.Context(), childTTL+10*time.Second)
	defer cancel()
	lease, err := l.Lock(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(killed)
	t.Logf("locked %v after the kill, with a TTL of %v", took, childTTL)
	if took < childTTL/4 { // it renewed at most a third of a TTL before, and some slack for a busy machine
		t.Errorf("locked %v after the kill: a TTL of %v cannot have run out", took, childTTL)
	}
	if lease.Token() <= token {
		t.Errorf("token %d is not greater than that of the killed holder, %d", lease.Token(), token)
	}
}

func Benchmark(b *testing.B) {
	dir := b.TempDir()
	conformance.Bench(b, conformance.Harness{
		TTL: 10 * time.Second, // renewed one by one, a thousand leases may take longer than the second that is usual
		OpenB: func(b *testing.B, opts ...locker.Option) locker.Locker {
			l, err := New(dir, opts...)
			if err != nil {
				b.Fatal(err)
			}
			return l
		},
	})
}
