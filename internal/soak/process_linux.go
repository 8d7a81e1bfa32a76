package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/soak/history"
)

// slot is one worker, which has many lives, and the proxies between it and the servers.
type slot struct {
	soak    *soak
	number  int
	proxies []*faultproxy.Proxy
	via     map[string]string

	mu     sync.Mutex // held by who does something to the process
	life   int
	cmd    *exec.Cmd
	exited chan struct{} // closed when the present life is over
}

func (s *soak) newSlot(number int) (*slot, error) {
	w := &slot{soak: s, number: number, via: make(map[string]string)}
	for _, addr := range s.store.reachable() {
		proxy, err := faultproxy.Start(addr)
		if err != nil {
			return nil, err
		}
		w.proxies = append(w.proxies, proxy)
		w.via[addr] = proxy.Addr()
	}
	return w, nil
}

func (w *slot) close() {
	if w.cmd != nil {
		_ = w.cmd.Process.Kill() // if it still runs
	}
	for _, proxy := range w.proxies {
		_ = proxy.Close()
	}
}

// id names the present life.
func (w *slot) id() string { return fmt.Sprintf("%d.%d", w.number, w.life) }

// file is one of the files of the present life.
func (w *slot) file(kind string) string { return filepath.Join(w.soak.dir, kind+"-"+w.id()) }

// forks starts processes on a thread that does not end: they die with that.
var forks = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// start begins a new life.
func (w *slot) start() error {
	w.life++
	spec, err := json.Marshal(workerSpec{
		Store: w.soak.config.store, ID: w.id(), Servers: w.soak.store.addrs(), Via: w.via, Records: w.file("records"),
		Goroutines: w.soak.goroutines, Keys: w.soak.keys, Seed: w.soak.seed + uint64(w.number)<<32 + uint64(w.life),
	})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(w.file("log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own descriptor
	cmd := exec.Command(self)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "LD_PRELOAD=") { // the clock is for servers
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, envWorker+"="+string(spec))
	if w.number%2 == 1 { // what these do late can be judged: see pulse
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // no ^C of the terminal
	started, exited := make(chan error), make(chan struct{})
	forks() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	w.cmd, w.exited = cmd, exited
	go func() {
		_ = cmd.Wait() // cmd.ProcessState tells
		close(exited)
	}()
	for _, err := os.Stat(w.file("records")); err != nil; _, err = os.Stat(w.file("records")) {
		select {
		case <-exited:
			return fmt.Errorf("process %s ended at once: see %s", w.id(), log.Name())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// kill ends the present life at once.
func (w *slot) kill() {
	ended := w.soak.began(history.Killed, w.id(), "")
	if w.cmd.Process.Kill() != nil { // it has ended by itself
		<-w.exited
		w.endedBadly()
		return
	}
	<-w.exited
	ended()
}

// endedBadly reports a process that has ended by itself, or did not end in order.
func (w *slot) endedBadly() {
	log, _ := os.ReadFile(w.file("log"))
	log = log[:min(len(log), 20_000)]
	w.soak.violation("a process has not ended in order", fmt.Sprintf("%s: %v\n%s", w.id(), w.cmd.ProcessState, log))
}

// stop ends the present life in order.
func (w *slot) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.soak.began("process ended in order", w.id(), "")()
	_ = w.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended already
	select {
	case <-w.exited:
	case <-time.After(time.Minute):
		_ = w.cmd.Process.Signal(syscall.SIGQUIT) // it prints its goroutines
		<-w.exited
	}
	if !w.cmd.ProcessState.Success() {
		w.endedBadly()
	}
}

// processFaults kills, freezes and ends processes.
func (s *soak) processFaults(ctx context.Context, rng *rand.Rand) error {
	var frozen sync.WaitGroup
	defer frozen.Wait()
	for sleep(ctx, below(rng, time.Second)); ctx.Err() == nil; sleep(ctx, below(rng, time.Second)) {
		w := s.workers[rng.IntN(len(s.workers))]
		if !w.mu.TryLock() {
			continue // it is frozen
		}
		switch what, pause := rng.IntN(5), mostlyShort(2*longestTTL(s.config.store), rng); what {
		case 0, 1:
			ended := s.began(history.Frozen, w.id(), "")
			_ = w.cmd.Process.Signal(syscall.SIGSTOP)
			frozen.Go(func() {
				defer w.mu.Unlock()
				sleep(ctx, pause)
				_ = w.cmd.Process.Signal(syscall.SIGCONT)
				ended()
			})
			continue
		case 2:
			w.mu.Unlock()
			w.stop()
			w.mu.Lock()
		default:
			w.kill()
		}
		time.Sleep(below(rng, 200*time.Millisecond))
		err := w.start()
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// What happens to the network between a worker and the servers.
const (
	linkReset    = "link: connections reset"
	linkRefused  = "link: refused"
	linkHole     = "link: black hole"
	linkHang     = "link: hang"
	linkReplies  = "link: replies lost"
	linkRequests = "link: requests lost"
	linkSlow     = "link: slow"
)

// linkFaults has the network between a worker and the servers fail: all servers, some, or one.
func (s *soak) linkFaults(ctx context.Context, w *slot, rng *rand.Rand) {
	for sleep(ctx, below(rng, 4*time.Second)); ctx.Err() == nil; sleep(ctx, below(rng, 4*time.Second)) {
		links := w.proxies
		switch n := rng.IntN(len(links)); rng.IntN(3) {
		case 0:
			links = links[n : n+1]
		case 1:
			links = links[:n+1]
		}
		delay := below(rng, 300*time.Millisecond)
		slow := faultproxy.Flow{Delay: delay, Jitter: delay}
		kinds := []struct {
			what string
			faultproxy.Fault
		}{
			{linkReset, faultproxy.Fault{}}, {linkRefused, faultproxy.Refuse()}, {linkHole, faultproxy.BlackHole()},
			{linkHang, faultproxy.Hang()}, {linkReplies, faultproxy.DropReplies()},
			{linkRequests, faultproxy.DropRequests()}, {linkSlow, faultproxy.Fault{ToServer: slow, ToClient: slow}},
		}
		kind := kinds[rng.IntN(len(kinds))]
		ended := s.began(kind.what, fmt.Sprint(w.number), fmt.Sprintf("%d of %d servers", len(links), len(w.proxies)))
		for _, link := range links {
			if kind.what == linkReset {
				link.ResetAll()
			} else {
				link.Set(kind.Fault)
			}
		}
		if kind.what != linkReset {
			sleep(ctx, mostlyShort(longestTTL(s.config.store)*3/2, rng))
		}
		for _, link := range links {
			link.Heal()
		}
		ended()
	}
}
