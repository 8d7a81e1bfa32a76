package main

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// now reads CLOCK_MONOTONIC, in nanoseconds: all processes have the same.
func now() int64 {
	const clockMonotonic = 1
	var t syscall.Timespec
	if _, _, e := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0); e != 0 {
		panic(e)
	}
	return t.Nano()
}

// pulse measures how late the timers of this process are, which excuses what it does late.
type pulse struct {
	mu   sync.Mutex
	due  int64
	late []lateness // the last ones
}

type lateness struct{ due, woke int64 }

func (p *pulse) run() {
	const beat, most = 2 * time.Millisecond, 4096
	for {
		p.mu.Lock()
		p.due = now() + int64(beat)
		p.mu.Unlock()
		time.Sleep(beat)
		if woke := now(); woke-p.due > int64(200*time.Microsecond) {
			p.mu.Lock()
			if len(p.late) == most {
				p.late = append(p.late[:0], p.late[most/2:]...)
			}
			p.late = append(p.late, lateness{p.due, woke})
			p.mu.Unlock()
		}
	}
}

// since returns by how much timers were overdue at most since a moment. If goroutines run on several threads, the
// system may let one of them wait, and not the one with the pulse: all of the time then counts as overdue.
func (p *pulse) since(from int64) time.Duration {
	if runtime.GOMAXPROCS(0) > 1 {
		return time.Duration(max(now()-from, 0))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	most := max(now()-p.due, 0) // under way
	for i := len(p.late) - 1; i >= 0 && p.late[i].woke >= from; i-- {
		most = max(most, p.late[i].woke-p.late[i].due)
	}
	return time.Duration(most)
}

//go:embed shim/clock.c
var shim []byte

// envClock names the file with a server's clock: by how many seconds it is wrong.
const envClock = "LOCKER_SOAK_CLOCK"

// compileClock compiles what sets the clocks of servers, and returns why that is not possible, or "".
func compileClock(dir, store string) (skipped string) {
	switch store {
	case storeEtcd:
		return "leases of etcd go by the monotonic clock"
	case storeSentinel, storeCluster:
		return "the clocks of master and replica have to agree, as the documentation says"
	}
	source := filepath.Join(dir, "clock.c")
	err := os.WriteFile(source, shim, 0o600)
	if err == nil {
		var out []byte
		out, err = exec.Command("cc", "-shared", "-fPIC", "-o", filepath.Join(dir, "clock.so"), source).CombinedOutput()
		skipped = string(out)
	}
	if err != nil {
		return fmt.Sprintf("there is no C compiler: %v %s", err, skipped)
	}
	return ""
}

// clockEnv is the environment of a server whose clock can be set, if there is what it takes. dir is that of this run.
func clockEnv(dir, server string) (env []string, err error) {
	library := filepath.Join(dir, "clock.so")
	if _, err := os.Stat(library); err != nil {
		return nil, nil
	}
	file := filepath.Join(dir, "clock-"+server)
	if _, err := os.Stat(file); err != nil {
		if err := os.WriteFile(file, make([]byte, 8), 0o644); err != nil {
			return nil, err
		}
	}
	return []string{"LD_PRELOAD=" + library, envClock + "=" + file}, nil
}

// furthestBehind is by how much a server's clock is set back in all.
const furthestBehind = 10 * time.Second

// longestStep is by how much it is set back at once, at the most.
const longestStep = 3 * time.Second

// setClock sets the clock of a server back. It never goes forward again, as that would end leases early.
func (s *soak) setClock(server string, rng *rand.Rand) error {
	file, err := os.OpenFile(filepath.Join(s.dir, "clock-"+server), os.O_RDWR, 0)
	if err != nil {
		return errNotNow
	}
	defer func() { _ = file.Close() }()
	// It must not go back behind the last token that a server has forgotten.
	behind := max(0, time.Until(s.caughtUp)) + longestStep
	if s.behind > furthestBehind-longestStep || time.Since(s.lostData) <= behind {
		return errNotNow
	}
	var offset [8]byte
	if _, err := file.ReadAt(offset[:], 0); err != nil {
		return err
	}
	step := 1 + rng.Int64N(int64(longestStep/time.Second))
	seconds := int64(binary.NativeEndian.Uint64(offset[:])) - step
	binary.NativeEndian.PutUint64(offset[:], uint64(seconds))
	if _, err := file.WriteAt(offset[:], 0); err != nil {
		return err
	}
	s.behind = max(s.behind, time.Duration(-seconds)*time.Second)
	if time.Now().After(s.caughtUp) {
		s.caughtUp = time.Now()
	}
	s.caughtUp = s.caughtUp.Add(time.Duration(step) * time.Second)
	return nil
}
