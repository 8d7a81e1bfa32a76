//go:build linux

package main

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

// candidate starts the program to lead, with a command that says so, and ends with the number that it reads.
func candidate(t *testing.T, store, key string, args ...string) *process {
	t.Helper()
	args = append(append([]string{"lead", "-ttl", "5s"}, args...), key, "--",
		"sh", "-c", "echo leads; read code; exit $code")
	return lockerOn(t, store, args...)
}

// One of two leads. When it dies or ends, the other does; when it steps down, too, and it stands for election again.
func TestLead(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	a := candidate(t, url, key)
	a.says("leads")
	b := candidate(t, url, key)
	waiting(t, c, key, 1)

	if _, err := a.stdin.Write([]byte("0\n")); err != nil { // it steps down
		t.Fatal(err)
	}
	b.says("leads")
	waiting(t, c, key, 1)
	b.signal(syscall.SIGTERM) // it is shut down
	b.exits(128 + int(syscall.SIGTERM))
	a.says("leads")

	d := candidate(t, url, key)
	waiting(t, c, key, 1)
	a.signal(syscall.SIGKILL)
	d.says("leads")
	if _, err := d.stdin.Write([]byte("3\n")); err != nil { // its command fails
		t.Fatal(err)
	}
	d.exits(3)
	if held(t, c, key) {
		t.Error("the key is still held")
	}
}

// A signal ends a candidate that waits, and leaves nothing in line.
func TestCandidateEnds(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	holder := locktest.MustLock(t, c, key)
	p := candidate(t, url, key)
	p.tells("waiting for")
	waiting(t, c, key, 1)
	p.signal(syscall.SIGTERM)
	p.exits(128 + int(syscall.SIGTERM))
	waiting(t, c, key, 0)
	locktest.MustUnlock(t, holder)
}

// A leader that is cut off has its command ended before the next one leads, and stands for election again.
func TestLeaderCutOff(t *testing.T) {
	t.Parallel()
	server, proxy := proxied(t)
	a := candidate(t, "redis://"+proxy.Addr(), "k")
	a.says("leads")
	b := candidate(t, "redis://"+server.Addr(), "k")
	c := observer(t, "redis://"+server.Addr())
	waiting(t, c, "k", 1)
	proxy.Set(faultproxy.BlackHole())
	b.says("leads")
	a.tells("does not lead")
	proxy.Heal()
	waiting(t, c, "k", 1)
	if _, err := b.stdin.Write([]byte("0\n")); err != nil {
		t.Fatal(err)
	}
	// Its first command may have taken nothing from the standard input: the one that leads now reads it.
	a.says("leads")
	if _, err := a.stdin.Write([]byte("4\n")); err != nil {
		t.Fatal(err)
	}
	a.exits(4)
}

// A leader that is revoked steps down when its command has ended, and lets another lead.
func TestLeaderRevoked(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	a := candidate(t, url, key, "-v")
	a.says("leads")
	b := candidate(t, url, key)
	waiting(t, c, key, 1)
	a.tells("renewed") // from then on it is told at once
	lockerOn(t, url, "revoke", "-reason", "maintenance", key).exits(0)
	b.says("leads")
	a.tells("maintenance")
	waiting(t, c, key, 1)
}

// A leader whose command was sent SIGHUP, for it to read its files again, was not shut down by that: it is a candidate
// again when it has lost the lock.
func TestLeaderAfterReload(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	p := lockerOn(t, url, "lead", "-ttl", "5s", key, "--", "sh", "-c",
		`trap 'echo hup' HUP; trap 'echo usr1' USR1; trap 'exit 0' TERM; echo leads; while :; do sleep 0.01; done`)
	p.says("leads")
	p.signal(syscall.SIGHUP)
	p.says("hup")
	p.signal(syscall.SIGUSR1)
	p.says("usr1")
	lockerOn(t, url, "revoke", key).exits(0)
	p.says("leads")
	p.signal(syscall.SIGTERM)
	p.exits(0)
}

// A leader that is shut down does not wait for a store that does not answer, however long the TTL is.
func TestLeaderEndsWithoutTheStore(t *testing.T) {
	t.Parallel()
	_, proxy := proxied(t)
	p := candidate(t, "redis://"+proxy.Addr(), "k", "-ttl", "10m")
	failing := candidate(t, "redis://"+proxy.Addr(), "other", "-ttl", "10m")
	steps := candidate(t, "redis://"+proxy.Addr(), "third", "-ttl", "10m")
	p.says("leads")
	failing.says("leads")
	steps.says("leads")
	proxy.Set(faultproxy.BlackHole())
	p.signal(syscall.SIGTERM)
	_, _ = failing.stdin.Write([]byte("3\n"))
	_, _ = steps.stdin.Write([]byte("0\n"))
	p.exits(128 + int(syscall.SIGTERM))
	failing.exits(3)
	steps.tells("others may lead")
	steps.signal(syscall.SIGTERM) // while it waits for its unlock
	steps.exits(128 + int(syscall.SIGTERM))
	for _, q := range []*process{p, failing} {
		if said := q.stderr.String(); !strings.Contains(said, "free after 10m0s: store unavailable: no answer") {
			t.Errorf("it said: %s", said)
		}
	}
}

// A candidate waits for a store that is not there yet: machines are started in any order.
func TestLeadBeforeTheStore(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	proxy := faultproxy.New(t, server.Addr())
	proxy.Set(faultproxy.Refuse())
	p := candidate(t, "redis://"+proxy.Addr(), "k")
	p.tells("waiting for the store")
	proxy.Heal()
	p.says("leads")
	_ = p.stdin.Close()
	p.code()

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	p = candidate(t, "redis://"+silent.Addr().String(), "k")
	if _, err := silent.Accept(); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGINT)
	p.exits(128 + int(syscall.SIGINT))
	if strings.Contains(p.stderr.String(), "leads") {
		t.Error("it leads")
	}
}
