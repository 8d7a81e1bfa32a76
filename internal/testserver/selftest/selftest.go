// Package selftest is for the tests of testserver itself and of the packages
// built on it.
package selftest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/locktest"
)

// Connect returns a connection that ends with the test.
func Connect(tb testing.TB, addr string) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(locktest.Patience))
	return conn
}

// ExpectEnd reads until the connection ends, by FIN or by a reset.
func ExpectEnd(tb testing.TB, conn net.Conn) {
	tb.Helper()
	_, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		tb.Fatal("the connection did not end: the server is still there")
	}
}

// ExpectRefused checks that nobody listens at the address.
func ExpectRefused(tb testing.TB, addr string) {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		tb.Fatalf("Dial = %v, want connection refused", err)
	}
}

// Program makes an executable file, a shell script, in a directory.
func Program(tb testing.TB, dir, name, script string) (path string) {
	tb.Helper()
	path = filepath.Join(dir, name)
	// A child that is being forked would have the file open for writing, too,
	// for a moment in which it cannot be executed.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		tb.Fatal(err)
	}
	return path
}

// fakeTB notes how a test helper ends its test.
type fakeTB struct {
	testing.TB
	Outcome  string // "", or how the test ended, and why
	Logged   string
	cleanups []func()
}

func (f *fakeTB) Helper()                        {}
func (f *fakeTB) Cleanup(c func())               { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Failed() bool                   { return f.Outcome != "" && !strings.HasPrefix(f.Outcome, "skip: ") }
func (f *fakeTB) Logf(form string, a ...any)     { f.Logged += fmt.Sprintf(form, a...) + "\n" }
func (f *fakeTB) Errorf(form string, a ...any)   { f.Outcome = "error: " + fmt.Sprintf(form, a...) }
func (f *fakeTB) Fatal(args ...any)              { f.end("fatal: " + fmt.Sprint(args...)) }
func (f *fakeTB) Fatalf(form string, a ...any)   { f.end("fatal: " + fmt.Sprintf(form, a...)) }
func (f *fakeTB) Skipf(form string, args ...any) { f.end("skip: " + fmt.Sprintf(form, args...)) }

// stopTest is what a fake test panics with where a real one ends its goroutine.
type stopTest struct{}

func (f *fakeTB) end(outcome string) {
	f.Outcome = outcome
	panic(stopTest{})
}

// RunFake runs a test helper and returns how it ended.
func RunFake(helper func(tb testing.TB)) (f *fakeTB) {
	f = new(fakeTB)
	defer func() {
		if r := recover(); r != nil && r != (stopTest{}) {
			panic(r)
		}
	}()
	helper(f)
	return f
}

// Cleanups does what a real test does when it is over.
func (f *fakeTB) Cleanups() {
	for len(f.cleanups) > 0 {
		last := len(f.cleanups) - 1
		c := f.cleanups[last]
		f.cleanups = f.cleanups[:last]
		c()
	}
}

// envHelper makes TestHelperProcess do something, in a process of its own.
const envHelper = "SELFTEST_HELPER"

// HelperProcess is all of a test named TestHelperProcess, which is not a test
// by itself but for StartHelper. There it starts a server, tells its address,
// and goes on until its standard input ends.
func HelperProcess(t *testing.T, start func() (addr string)) {
	if os.Getenv(envHelper) == "" {
		t.Skip("only for use by other tests")
	}
	fmt.Printf("\naddress %s\n", start())
	io.Copy(io.Discard, os.Stdin)
}

// Helper is a process that runs TestHelperProcess.
type Helper struct {
	Cmd  *exec.Cmd
	Addr string // of the server
	Tmp  string // the directory for temporary files

	stdin io.Closer
}

// StartHelper runs TestHelperProcess of the present test program in a process
// of its own, with additions to the environment. Its temporary files are in a
// directory in tmp, or in the usual place if that is empty.
func StartHelper(t *testing.T, tmp string, env ...string) *Helper {
	t.Helper()
	h := new(Helper)
	var err error
	if h.Tmp, err = os.MkdirTemp(tmp, "selftest-"); err != nil { //nolint:usetesting // t.TempDir is not where we want it
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(h.Tmp) })
	// Let servers in that run as somebody else.
	if err := os.Chmod(h.Tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Cmd = exec.Command(os.Args[0], "-test.run=^TestHelperProcess$", "-test.count=1")
	h.Cmd.Env = append(append(os.Environ(), envHelper+"=1", "TMPDIR="+h.Tmp), env...)
	h.Cmd.Stderr = os.Stderr
	if h.stdin, err = h.Cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := h.Cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Cmd.Process.Kill()
		h.Cmd.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if addr, ok := strings.CutPrefix(lines.Text(), "address "); ok {
			h.Addr = addr
			go io.Copy(io.Discard, stdout) // ends with the helper
			return h
		}
	}
	t.Fatal("the helper process did not tell an address")
	return nil
}

// Finish lets the process end, in order.
func (h *Helper) Finish(t *testing.T) {
	t.Helper()
	h.stdin.Close()
	if err := h.Cmd.Wait(); err != nil {
		t.Error("the helper process:", err)
	}
}

// Kill kills the process.
func (h *Helper) Kill(t *testing.T) {
	t.Helper()
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.Cmd.Wait()
}
