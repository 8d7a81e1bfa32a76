package testserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// product is a product nobody has.
func product() *Product {
	return &Product{
		Name:       "Fake",
		Package:    "faketest",
		EnvProgram: "TESTSERVER_PROGRAM",
		Programs:   []string{"faked", "/no/such/faked"},
		NotFound:   errors.New("no fake found"),
	}
}

func TestFind(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	p := product()
	onPath := selftest.Program(t, t.TempDir(), "faked", "")
	usual := selftest.Program(t, t.TempDir(), "faked", "")
	named := selftest.Program(t, t.TempDir(), "my-fake", "")
	p.Programs[1] = usual
	expect := func(want string, wantErr ...error) {
		t.Helper()
		got, err := p.Find()
		if got != want || (err != nil) != (len(wantErr) > 0) {
			t.Errorf("Find = %q, %v; want %q", got, err, want)
		}
		for _, want := range wantErr {
			if !errors.Is(err, want) {
				t.Errorf("Find: %v, want %v", err, want)
			}
		}
	}
	t.Setenv("PATH", filepath.Dir(onPath))
	t.Setenv(p.EnvProgram, named)
	expect(named)
	t.Setenv(p.EnvProgram, "")
	expect(onPath)
	t.Setenv("PATH", "")
	expect(usual)
	p.Programs = p.Programs[:1]
	expect("", p.NotFound)
	// What the environment names is not replaced by something else.
	t.Setenv("PATH", filepath.Dir(onPath))
	t.Setenv(p.EnvProgram, filepath.Join(t.TempDir(), "missing"))
	expect("", p.NotFound, os.ErrNotExist)
}

func TestUnavailable(t *testing.T) {
	p := product()
	notFound := fmt.Errorf("%w: not even here", p.NotFound)
	for _, tc := range []struct {
		err              error
		program, require string
		want             string
	}{
		{notFound, "", "", "skip: NOT TESTED"},
		{notFound, "", "other", "skip: NOT TESTED"},
		{notFound, "", "fake", "fatal: "},
		{notFound, "", "other, Fake", "fatal: "},
		{notFound, "", "all", "fatal: "},
		{notFound, "", "1", "fatal: "},
		{notFound, "/missing", "", "fatal: "},
		{errBusy, "", "", "fatal: "},
	} {
		t.Setenv(p.EnvProgram, tc.program)
		t.Setenv(EnvRequire, tc.require)
		f := selftest.RunFake(func(tb testing.TB) { p.Unavailable(tb, tc.err) })
		if !strings.HasPrefix(f.Outcome, tc.want) || !strings.Contains(f.Outcome, tc.err.Error()) {
			t.Errorf("%+v: outcome %q", tc, f.Outcome)
		}
	}
}

// closer counts how often it is closed.
type closer struct {
	closed int
	err    error
}

func (c *closer) Close() error {
	c.closed++
	return c.err
}

func TestCloseAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []*closer{{}, {err: io.ErrClosedPipe}} {
		f := selftest.RunFake(func(tb testing.TB) { product().CloseAfter(tb, c) })
		if c.closed != 0 {
			t.Error("closed too early")
		}
		f.Cleanups()
		if c.closed != 1 || (c.err != nil) != strings.HasPrefix(f.Outcome, "error: faketest: close: ") {
			t.Errorf("closed %d times with %v: outcome %q", c.closed, c.err, f.Outcome)
		}
	}
}

func TestLazy(t *testing.T) {
	t.Parallel()
	started := 0
	l := Lazy[*closer]{Start: func() (*closer, error) {
		started++
		return new(closer), nil
	}}
	if err := l.Close(); err != nil || started > 0 {
		t.Errorf("Close of what was never needed: %v, started %d times", err, started)
	}
	var wg sync.WaitGroup
	servers := make([]*closer, 4)
	for i := range servers {
		wg.Go(func() {
			var err error
			if servers[i], err = l.Get(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range servers {
		if s != servers[0] {
			t.Error("there is more than one server")
		}
	}
	if started != 1 {
		t.Errorf("started %d times", started)
	}
	if err := l.Close(); err != nil || servers[0].closed != 1 {
		t.Errorf("Close = %v, closed %d times", err, servers[0].closed)
	}
}

// A server that did not start is not tried again, and not closed.
func TestLazyFailure(t *testing.T) {
	t.Parallel()
	started := 0
	l := Lazy[*closer]{Start: func() (*closer, error) {
		started++
		return nil, io.ErrUnexpectedEOF
	}}
	for range 2 {
		if _, err := l.Get(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
	if err := l.Close(); err != nil || started != 1 {
		t.Errorf("Close = %v, started %d times", err, started)
	}
}
