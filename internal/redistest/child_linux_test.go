package redistest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// Pdeathsig must not strike when just the thread ends that called Start.
func TestServerOutlivesTheThread(t *testing.T) {
	t.Parallel()
	New(t, Options{}) // skips if there is no server
	var s *Server
	var err error
	tid := make(chan int)
	start := func() {
		// A goroutine that ends without unlocking takes its thread with it.
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			s, err = Start(Options{})
		}
		tid <- syscall.Gettid()
	}
	go start()
	id := <-tid
	if id == os.Getpid() {
		// It got the main thread, which Go never ends, but does not use again.
		go start()
		id = <-tid
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	task := fmt.Sprintf("/proc/self/task/%d", id)
	await(t, "the end of the thread", func() bool {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist)
	})
	expectReply(t, s, "+PONG", "PING")
}

func TestPauseHasStoppedIt(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	for range 20 {
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.child.process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		// The state is the field after the name, which is in parentheses.
		_, rest, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(rest, "T ") {
			t.Fatalf("a paused server is in state %.1q", rest)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}
