//go:build linux

package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

func proxied(t *testing.T) (*redistest.Server, *faultproxy.Proxy) {
	t.Helper()
	server := redistest.New(t, redistest.Options{})
	return server, faultproxy.New(t, server.Addr())
}

// trials is how often to repeat what depends on timing.
func trials() int {
	if n, err := strconv.Atoi(os.Getenv("LOCKER_TRIALS")); err == nil {
		return n
	}
	return 3
}

// stamping starts the program with a command that notes until when it lives, and ends for no signal but SIGKILL.
func stamping(t *testing.T, store, file string, args ...string) *process {
	t.Helper()
	p := command(t, store, args...)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Args = append(p.cmd.Args, "--", "env", actAs+"=stamps", self, file)
	p.start()
	p.says("up")
	return p
}

// lastStamp is when a command of stamping lived for the last time.
func lastStamp(t *testing.T, file string) int64 {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	stamp, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return stamp
}

// When the store cannot be reached for longer than the TTL, the command is dead before that of a rival starts, even one
// that ignores SIGTERM.
func TestDeadBeforeRival(t *testing.T) {
	t.Parallel()
	server, proxy := proxied(t)
	smallest := time.Hour
	for range trials() {
		key, file := locktest.Unique("key"), t.TempDir()+"/stamps"
		p := stamping(t, "redis://"+proxy.Addr(), file, "run", "--ttl", "4s", key)
		rival := lockerOn(t, "redis://"+server.Addr(), "run", key, "--", "sh", "-c", "echo up; read x")
		proxy.Set(faultproxy.BlackHole())
		rival.says("up")
		started := now()
		died := lastStamp(t, file)
		p.exits(exitLost)
		if after := lastStamp(t, file); after != died {
			t.Fatal("the command lived on when that of the rival had started")
		}
		smallest = min(smallest, time.Duration(started-died))
		proxy.Heal()
		p.tells("could not be renewed")
	}
	t.Logf("the smallest margin of %d is %v", trials(), smallest)
}

// A store that comes back before the TTL has passed is no loss: the command does not notice.
func TestShortOutage(t *testing.T) {
	t.Parallel()
	server, proxy := proxied(t)
	p := lockerOn(t, "redis://"+proxy.Addr(), "run", "-v", "--ttl", "10s", "k", "--",
		"sh", "-c", "echo up; read x; echo alive")
	p.says("up")
	proxy.Set(faultproxy.Refuse())
	p.tells("renewal failed")
	proxy.Heal()
	renewed := func() int { return strings.Count(p.stderr.String(), "renewed") }
	seen := renewed()
	locktest.Eventually(t, "it is renewed again", func() bool { return renewed() > seen })
	_ = p.stdin.Close()
	p.says("alive")
	p.exits(0)
	if held(t, observer(t, "redis://"+server.Addr()), "k") {
		t.Error("the key is still held")
	}
}

// The command has the grace to end by itself, from SIGTERM to SIGKILL.
func TestGrace(t *testing.T) {
	t.Parallel()
	_, proxy := proxied(t)
	p := lockerOn(t, "redis://"+proxy.Addr(), "run", "--ttl", "3s", "--grace", "1500ms", "k", "--", "sh", "-c",
		`trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	p.says("up")
	proxy.Set(faultproxy.BlackHole())
	p.says("told")
	p.exits(exitLost) // it has not done what it was to do, whatever it says
}

// All that the command has started is killed with it.
func TestKillsGrandchildren(t *testing.T) {
	t.Parallel()
	_, proxy := proxied(t)
	p := lockerOn(t, "redis://"+proxy.Addr(), "run", "--ttl", "3s", "k", "--", "sh", "-c", `trap '' TERM
		(trap '' TERM; sleep 1000) & echo $!
		setsid sh -c 'trap "" TERM; echo $$; sleep 1000' &
		while :; do sleep 0.01; done`)
	pids := []string{p.line(), p.line()}
	proxy.Set(faultproxy.BlackHole())
	p.exits(exitLost)
	for _, pid := range pids {
		if isAlive(pid) {
			t.Errorf("process %s lives on", pid)
		}
	}
}

// A program that was frozen for longer than its TTL ends its command when it goes on: a rival is at work by then.
func TestFrozen(t *testing.T) {
	t.Parallel()
	url, key, file := redisURL(t), locktest.Unique("key"), t.TempDir()+"/stamps"
	p := stamping(t, url, file, "run", "--ttl", "3s", key)
	p.signal(syscall.SIGSTOP)
	rival := lockerOn(t, url, "run", key, "--", "sh", "-c", "echo up; read x")
	rival.says("up")
	p.signal(syscall.SIGCONT)
	p.exits(exitLost)
	_ = rival.stdin.Close()
	rival.exits(1)
}

// -on-loss=term asks the command to end, and leaves the rest to it. -on-loss=warn leaves all to it.
func TestOnLoss(t *testing.T) {
	t.Parallel()
	server, proxy := proxied(t)
	c := observer(t, "redis://"+server.Addr())
	start := func(onLoss, key string) *process {
		return lockerOn(t, "redis://"+proxy.Addr(), "run", "--ttl", "3s", "--on-loss", onLoss, key, "--", "sh", "-c",
			"trap 'echo told' TERM; echo up; while ! read x; do :; done; echo $x; exit 4")
	}
	term, warn := start("term", "t"), start("warn", "w")
	term.says("up")
	warn.says("up")
	proxy.Set(faultproxy.BlackHole())
	term.says("told")
	warn.tells("works on without its lock")
	locktest.MustUnlock(t, locktest.MustLock(t, c, "t"))
	locktest.MustUnlock(t, locktest.MustLock(t, c, "w"))
	for _, p := range []*process{term, warn} {
		if _, err := p.stdin.Write([]byte("alive\n")); err != nil {
			t.Fatal(err)
		}
		p.says("alive")
	}
	term.exits(exitLost)
	warn.exits(4)
}

// Who is revoked is asked to end, with the grace; nobody gets the lock before it has ended. Who is broken is killed.
func TestTakenAway(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	p := lockerOn(t, url, "run", key, "--", "sh", "-c",
		`trap 'echo told; read x; echo $x; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	p.says("up")
	lockerOn(t, url, "revoke", "--reason", "a test", key).exits(0)
	p.says("told")
	rival := lockerOn(t, url, "run", "-n", key, "--", "true")
	rival.exits(exitLocked)
	if _, err := p.stdin.Write([]byte("last words\n")); err != nil {
		t.Fatal(err)
	}
	p.says("last words")
	p.exits(exitLost)
	p.tells("a test")
	lockerOn(t, url, "run", "-n", key, "--", "true").exits(0)
	lockerOn(t, url, "revoke", key).exits(exitProblem)

	p = lockerOn(t, url, "run", "-v", "--ttl", "3s", key, "--",
		"sh", "-c", `trap '' TERM; echo up; while :; do sleep 0.01; done`)
	p.says("up")
	p.tells("renewed") // from then on it is told why
	lockerOn(t, url, "break", key).exits(0)
	p.exits(exitLost)
	p.tells("broken")
}

// blocked returns the end of a pipe to which nothing can be written: nobody reads at the other end, and it is full.
func blocked(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			return w
		}
	}
}

// Messages that cannot be written, as to a terminal that Ctrl-S has stopped, keep nothing waiting: neither the end of
// the command on loss, nor that of the program.
func TestMessagesThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	url := redisURL(t)
	c := observer(t, url)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	test := func(t *testing.T, args ...string) {
		key, file := locktest.Unique("key"), t.TempDir()+"/stamps"
		args = append(args, "-ttl", "5s", key, "--", "env", actAs+"=stamps", self, file)
		p := command(t, url, args...)
		p.cmd.Stderr = blocked(t)
		p.start()
		p.says("up")
		rival := lockerOn(t, url, "run", key, "--", "sh", "-c", "echo up; read x")
		waiting(t, c, key, 1)
		lockerOn(t, url, "revoke", key).exits(0)
		rival.says("up")
		died := lastStamp(t, file)
		if args[0] == "run" {
			p.exits(exitLost)
		} else {
			p.signal(syscall.SIGTERM)
			p.exits(128 + int(syscall.SIGTERM))
		}
		if after := lastStamp(t, file); after != died {
			t.Fatalf("%v: the command lived on when that of the rival had started", args)
		}
		_ = rival.stdin.Close()
		rival.exits(1)
	}
	for _, args := range [][]string{{"run"}, {"run", "-v"}, {"run", "-json"}, {"lead"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			test(t, args...)
		})
	}
}
