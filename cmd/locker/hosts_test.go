//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

// hosts are network namespaces: one with a Redis server, and two others that have a cable to it each.
type hosts struct {
	t      *testing.T
	prefix string
}

func newHosts(t *testing.T) *hosts {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT PROVEN: network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("NOT PROVEN: the program ip is missing (package iproute2)")
	}
	h := &hosts{t: t, prefix: fmt.Sprintf("lk%d", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", h.name("s")).CombinedOutput(); err != nil {
		t.Skipf("NOT PROVEN: this machine lets nobody make network namespaces: %s", out)
	}
	t.Cleanup(func() { h.ip("netns", "del", h.name("s")) })
	h.on("s", "ip", "link", "set", "lo", "up")
	for i, host := range []string{"a", "b"} {
		h.ip("netns", "add", h.name(host))
		t.Cleanup(func() { h.ip("netns", "del", h.name(host)) })
		cable, socket := h.name("c"+host), h.name("k"+host)
		h.ip("link", "add", cable, "netns", h.name("s"), "type", "veth", "peer", "name", socket, "netns", h.name(host))
		h.on("s", "ip", "addr", "add", fmt.Sprintf("10.201.%d.1/24", i), "dev", cable)
		h.on("s", "ip", "link", "set", cable, "up")
		h.on(host, "ip", "addr", "add", fmt.Sprintf("10.201.%d.2/24", i), "dev", socket)
		h.on(host, "ip", "link", "set", socket, "up")
		h.on(host, "ip", "link", "set", "lo", "up")
	}
	return h
}

func (h *hosts) name(of string) string { return h.prefix + of }

func (h *hosts) ip(args ...string) { h.command("ip", args...) }

// on runs a command on a host.
func (h *hosts) on(host string, args ...string) {
	h.command("ip", append([]string{"netns", "exec", h.name(host)}, args...)...)
}

func (h *hosts) command(name string, args ...string) {
	h.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		h.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// locker prepares the program on a host.
func (h *hosts) locker(host, store string, args ...string) *process {
	p := command(h.t, store, args...)
	self := p.cmd.Path
	path, err := exec.LookPath("ip")
	if err != nil {
		h.t.Fatal(err)
	}
	p.cmd.Path = path
	p.cmd.Args = append([]string{"ip", "netns", "exec", h.name(host), self}, args...)
	return p
}

// serve starts a Redis server on the host s.
func (h *hosts) serve() {
	h.t.Helper()
	server, err := redistest.Find()
	if err != nil {
		h.t.Skipf("NOT PROVEN: %v", err)
	}
	p := exec.Command("ip", "netns", "exec", h.name("s"), server, "--port", "6379", "--protected-mode", "no",
		"--save", "", "--dir", h.t.TempDir())
	if err := p.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
}

// Two hosts want the same lock. The cable of the one that has it is pulled: its command is dead before the other's
// starts.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	redistest.Address(t) // the test is skipped where there is no server
	h := newHosts(t)
	h.serve()
	stores := map[string]string{"a": "redis://10.201.0.1:6379", "b": "redis://10.201.1.1:6379"}
	locktest.Eventually(t, "the server is up", func() bool {
		p := h.locker("a", stores["a"], "ping").start()
		return p.code() == 0
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	smallest := time.Hour
	for i := range trials() {
		key, file := locktest.Unique("key"), t.TempDir()+"/stamps"
		one, other := "a", "b"
		if i%2 == 1 {
			one, other = other, one
		}
		p := h.locker(one, stores[one], "run", "-ttl", "8s", key, "--", "env", actAs+"=stamps", self, file).start()
		p.says("up")
		rival := h.locker(other, stores[other], "run", key, "--", "sh", "-c", "echo up; read x").start()
		rival.tells("waiting")
		h.on("s", "ip", "link", "set", h.name("c"+one), "down")
		rival.says("up")
		started, died := now(), lastStamp(t, file)
		p.exits(exitLost)
		if after := lastStamp(t, file); after != died {
			t.Fatal("the command lived on when that of the rival had started")
		}
		smallest = min(smallest, time.Duration(started-died))
		_ = rival.stdin.Close()
		rival.exits(1)
		h.on("s", "ip", "link", "set", h.name("c"+one), "up")
	}
	t.Logf("the smallest margin of %d is %v", trials(), smallest)
}
