package testserver

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Instance is a server, or several that belong together.
type Instance interface {
	io.Closer
	LogTail() string
}

// New starts a server for one test (or benchmark), and closes it when the test is over. Where there is no program, it
// does as Unavailable. What the server has logged is in the log of a test that fails.
func New[S Instance](tb testing.TB, p *Product, start func() (S, error)) S {
	tb.Helper()
	server, err := start()
	if err != nil {
		p.Unavailable(tb, err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the end of what %s has logged:\n%s", p.Name, server.LogTail())
		}
		if err := server.Close(); err != nil {
			tb.Errorf("%s: close: %v", p.Package, err)
		}
	})
	return server
}

// Lazy is a server that starts when it is first needed.
type Lazy[S io.Closer] struct {
	Start func() (S, error)

	mu      sync.Mutex
	started bool
	server  S
	err     error
}

// Get returns the server, or why it did not start.
func (l *Lazy[S]) Get() (S, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.started = true
		l.server, l.err = l.Start()
	}
	return l.server, l.err
}

// For returns the server for a test. Where there is no program, it does as Unavailable.
func (l *Lazy[S]) For(tb testing.TB, p *Product) S {
	tb.Helper()
	server, err := l.Get()
	if err != nil {
		p.Unavailable(tb, err)
	}
	return server
}

// Close closes the server, if it was ever needed.
func (l *Lazy[S]) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started || l.err != nil {
		return nil
	}
	return l.server.Close()
}

// Address returns the host:port of a running server that the environment names, or "". The variable may have it as
// such, or as a URL that says no more than that: what an address could not convey, such as a password, fails the
// test.
func (p *Product) Address(tb testing.TB) string {
	tb.Helper()
	value := os.Getenv(p.EnvAddress)
	if value == "" {
		return ""
	}
	addr, err := p.parse(value)
	if err != nil {
		tb.Fatalf("%s: $%s: %v", p.Package, p.EnvAddress, err)
	}
	return addr
}

// parse shows nothing of a value that it refuses, which may have a password in it.
func (p *Product) parse(value string) (hostPort string, err error) {
	if !strings.Contains(value, "://") {
		if _, _, err := net.SplitHostPort(value); err != nil {
			return "", fmt.Errorf("want host:port, or a URL like %s", p.URL)
		}
		return value, nil
	}
	usual, err := url.Parse(p.URL)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(value)
	if err != nil {
		return "", fmt.Errorf("want host:port, or a URL like %s", p.URL)
	}
	plain := u.User == nil && u.RawQuery == "" && slices.Contains([]string{"", "/", usual.Path}, u.Path)
	if u.Scheme != usual.Scheme || u.Hostname() == "" || !plain {
		return "", fmt.Errorf("want a URL like %s, without password or options", p.URL)
	}
	port := u.Port()
	if port == "" {
		port = usual.Port()
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Tests are those of a package: a *testing.M, or what runs it.
type Tests = interface{ Run() int }

// Main runs the tests, then closes the server that they share, and removes the directory in memory. It says in one line
// how many tests were left out, which go test shows with -v, or in the directory of the package.
func (p *Product) Main(m Tests, shared io.Closer) int {
	code := m.Run()
	if n := p.skipped.Load(); n > 0 {
		fmt.Printf("NOT TESTED: %d tests or parts of tests that need %s: run scripts/test\n", n, p.Name)
	}
	if err := shared.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: close: %v\n", p.Package, err)
	}
	p.memory.remove()
	return code
}

// Main is for tests with several kinds of servers. It runs them with the Main of each:
//
//	func TestMain(m *testing.M) { os.Exit(testserver.Main(m, redistest.Main, pgtest.Main)) }
func Main(m Tests, mains ...func(Tests) int) int {
	for _, around := range mains {
		within := m
		m = tests(func() int { return around(within) })
	}
	return m.Run()
}

type tests func() int

func (f tests) Run() int { return f() }
