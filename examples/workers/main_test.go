package main

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/testserver"
)

// asProgram makes the test binary run as the program itself: real processes, built with or without -race as the test
// is.
const asProgram = "WORKERS_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, signals))
	}
	os.Exit(testserver.Main(m, redistest.Main, pgtest.Main, etcdtest.Main))
}

// patience bounds every wait for something that should happen soon.
const patience = 30 * time.Second

// watched is a buffer that calls a function when a text has been written for the first time.
type watched struct {
	mu   sync.Mutex
	all  bytes.Buffer
	text string
	then func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(p)
	if w.then != nil && strings.Contains(w.all.String(), w.text) {
		w.then()
		w.then = nil
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

func TestStory(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		nil, // as people will start it
		{"-workers", "2", "-job", "20ms", "-ttl", "500ms"},
		{"-workers", "7", "-job", "5ms", "-ttl", "500ms", "-grace", "1s"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			t.Parallel()
			out := tellStory(t, flags)
			story := regexp.MustCompile(`(?s)` + strings.Join([]string{
				`^\s+\S+s +fleet +\d workers, one queue, no server: .* crashes in job 4, .* told to stop in job 10; this takes about \S+s\n`,
				`(w\d) +leads, token 1: is the first leader`,
				`job 1 done, token 1`,
				`job 3 done, token 1`,
				`w\d +crashes in the middle of job 4`,
				`w\d +leads, token 2: w\d vanished`,
				`job 4 done, token 2`,
				`w\d +comes back`,
				`w\d +is told to stop, in the middle of job 10`,
				`job 10 done, token 2`,
				`leaves: unlocks`,
				`leads, token 3: w\d left \S+ ago`,
				`job 13 done, token 3`,
				`handover after the crash: .*handover after leaving politely: .*jobs 1 to 13 processed in order, none lost, none twice`,
			}, `.*`))
			if !story.MatchString(out) {
				t.Errorf("that is not the story %v", story)
			}
			late := regexp.MustCompile(
				`(?s)has lost the lease: .*hands in job 4 all the same, token 1.*is refused by the queue: deposed by w\d, token 2`,
			)
			if !late.MatchString(out) {
				t.Errorf("nothing is told of the late result: %v", late)
			}
			log := regexp.MustCompile( // the loss is logged by another goroutine than that of the next leader
				`(?s)crashes in the middle of job 4.*logs level=WARN msg="renewal failed" key=jobs` +
					`.*logs level=ERROR msg="lease lost" key=jobs store=memory token=1`,
			)
			if !log.MatchString(out) {
				t.Errorf("the loss is not in the log: %v", log)
			}
		})
	}
}

// tellStory runs a whole fleet, and returns what it prints.
func tellStory(t *testing.T, flags []string) string {
	t.Helper()
	var out, problems bytes.Buffer
	code := run(flags, &out, &problems, nil)
	for attempt := 1; attempt < 3 && strings.Contains(out.String()+problems.String(), "this process was paused"); attempt++ {
		t.Logf("a busy machine has got into the story:\n%s%s", out.String(), problems.String())
		out.Reset()
		problems.Reset()
		code = run(flags, &out, &problems, nil)
	}
	t.Logf("the output:\n%s%s", out.String(), problems.String())
	if code != 0 || problems.Len() > 0 {
		t.Fatalf("exit status %d", code)
	}
	return out.String()
}

func TestStoryInterrupted(t *testing.T) {
	t.Parallel()
	for _, moment := range []string{"joins", "job 2 done", "crashes", "vanished", "comes back", "is told to stop,", "token 3"} {
		t.Run(moment, func(t *testing.T) {
			t.Parallel()
			signals := make(chan os.Signal, 2)
			out := &watched{text: moment, then: func() { signals <- os.Interrupt }}
			var problems bytes.Buffer
			start := time.Now()
			code := run([]string{"-job", "20ms", "-ttl", "500ms"}, out, &problems, signals)
			if code != exitFailure || !strings.Contains(problems.String(), "stopped before the end of the story") {
				t.Errorf("exit status %d, %s", code, problems.String())
			}
			if took := time.Since(start); took > patience {
				t.Errorf("took %v", took)
			}
			if t.Failed() {
				t.Log("the output:\n" + out.String())
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2000)
	server := []string{"-backend", "redis://127.0.0.1:1/0"} // is never reached
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-nonsense"}, "-nonsense"},
		{[]string{"leftover"}, `unexpected argument "leftover"`},
		{[]string{"-job", "soon"}, `"soon"`},
		{[]string{"-job", "0s"}, "-job 0s"},
		{[]string{"-grace", "-1s"}, "-grace -1s"},
		{[]string{"-stop-within", "0s"}, "-stop-within 0s"},
		{[]string{"-workers", "1"}, "-workers 1"},
		{[]string{"-ttl", "0s"}, "-ttl 0s"},
		{[]string{"-ttl", "1ms"}, "TTL(1ms) is not within"},
		{[]string{"-key", long}, "2000 bytes long"},
		{[]string{"-key", ""}, "0 bytes long"},
		{[]string{"-name", "me"}, "-name is for a worker with a server"},
		{[]string{"-jobs", "3"}, "-jobs is for a worker with a server"},
		{append(server, "-workers", "3"), "-workers is for the fleet in memory"},
		{[]string{"-timeline", "t.svg", "-insist"}, "-insist is for a worker with a server"},
		{[]string{"-timeline", "t.svg", "-backend", "etcd://localhost"}, `not of "etcd"`},
		{[]string{"-timeline", "t.svg", "-backend", "redis://me:secret@local host/"}, "a host is wanted"},
		{append(server, "-jobs", "-1"), "-jobs -1"},
		{append(server, "-name", long), "is longer than"},
		{[]string{"-backend", "mysql://localhost/db"}, `"mysql" is not a known kind of store`},
		{[]string{"-backend", "localhost:6379"}, `that is no URL`},
		{[]string{"-backend", "redis://localhost/one"}, `invalid database number: "one"`},
		{[]string{"-backend", "redis://local host/"}, "a host is wanted"},
		{[]string{"-backend", "redis://me:secret@local host/"}, "a host is wanted"},
		{[]string{"-backend", "redis://me:secret#1@localhost/"}, "write special characters as %XX"},
		{[]string{"-backend", "redis+sentinel://me:secret@localhost/"}, "the name of the master is missing"},
		{[]string{"-backend", "redis+cluster://me:secret@one,two/3"}, "a cluster has no database but 0"},
		{[]string{"-backend", "postgres://me:secret@localhost/db?sslmode=maybe"}, "sslmode is invalid"},
		{[]string{"-backend", "postgres://me:secret@localhost/db?pool_max_conns=0"}, "pool_max_conns too small"},
		{[]string{"-backend", "postgresql://localhost/db?connect_timeout=soon"}, "connect_timeout"},
		{[]string{"-backend", "postgres://me:secret/1@localhost/db"}, "not a valid URL"},
		{[]string{"-backend", "postgres://me:secret#1@local host/db"}, "not a valid URL"},
		{[]string{"-backend", "postgres://me:secret%@localhost/db"}, "not a valid URL"},
		{[]string{"-backend", "postgres://localhost/db", "-key", "\xff"}, "not UTF-8"},
		{[]string{"-backend", "postgres://localhost/db", "-ttl", "1500500us"}, "whole number of milliseconds"},
		{[]string{"-backend", "etcd://"}, "is not a host"},
		{[]string{"-backend", "etcd://me:secret@local host"}, "is not a host"},
		{[]string{"-backend", "etcd://me@localhost"}, "a user needs a password"},
		{[]string{"-backend", "etcd://me:secret#1@localhost"}, "cannot be parsed"},
		{[]string{"-backend", "etcd://me:secret/1@localhost"}, "cannot be parsed"},
		{[]string{"-backend", "etcd://me:secret%@localhost"}, "cannot be parsed"},
		{[]string{"-backend", "etcd://me:1?secret@localhost"}, `write "?" as %3F`},
		{[]string{"-backend", "etcd://me:1/secret?1@localhost"}, `write "?" as %3F`},
		{[]string{"-backend", "etcd://me:secret@localhost?color=red"}, `unknown parameter "color"`},
		{[]string{"-backend", "etcds://localhost?cacert=missing.pem"}, "cacert: open missing.pem"},
		{[]string{"-backend", "etcd://localhost", "-ttl", "1500ms"}, "whole number of seconds"},
	} {
		t.Run(strings.Join(test.args, " ")[:min(40, len(strings.Join(test.args, " ")))], func(t *testing.T) {
			t.Parallel()
			var problems bytes.Buffer
			code := run(test.args, io.Discard, &problems, nil)
			if code != exitUsage || !strings.Contains(problems.String(), test.want) {
				t.Errorf("exit status %d, %s\nwant status %d and %q", code, problems.String(), exitUsage, test.want)
			}
			if strings.Contains(problems.String(), "secret") {
				t.Error("the password was printed")
			}
		})
	}
	var out, problems bytes.Buffer
	if code := run([]string{"-h"}, &out, &problems, nil); code != 0 || !strings.Contains(out.String(), "-stop-within") {
		t.Errorf("-h: exit status %d, %s%s", code, out.String(), problems.String())
	}
}

func TestWebAddressTaken(t *testing.T) {
	t.Parallel()
	var problems bytes.Buffer
	code := run([]string{"-backend", "redis://127.0.0.1:1/0", "-http", "256.0.0.1:x"}, io.Discard, &problems, nil)
	if code != exitFailure || !strings.Contains(problems.String(), "-http: ") {
		t.Errorf("exit status %d, %s", code, problems.String())
	}
}

// A server that cannot be reached is waited for, until the worker is told to stop. Its password is not printed.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"redis://:secret@127.0.0.1:1/0",
		"redis+cluster://:secret@127.0.0.1:1,127.0.0.1:2",
		"redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:2/mymaster/0",
		"postgres://me:secret@127.0.0.1:1/db", // is tried with TLS and without, which makes for long errors
		"postgresql://me:secret@127.0.0.1:1,127.0.0.1:2/db",
		"etcd://127.0.0.1:1,127.0.0.1:2",
	} {
		scheme, _, _ := strings.Cut(url, ":")
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			signals := make(chan os.Signal, 2)
			out := &watched{text: "meets an outage", then: func() { signals <- os.Interrupt }}
			var problems bytes.Buffer
			// If the signal comes in the middle of an attempt, Lead says that the attempt failed, too.
			code := run([]string{"-backend", url, "-name", "w"}, out, &problems, signals)
			if code != 0 && (code != exitFailure || !strings.Contains(problems.String(), "told to stop")) {
				t.Errorf("exit status %d, %s", code, problems.String())
			}
			if strings.Contains(out.String()+problems.String(), "secret") {
				t.Error("the password was printed")
			}
			for line := range strings.Lines(out.String()) {
				if !regexp.MustCompile(`^[\d:.]+  w  \w`).MatchString(line) {
					t.Errorf("not a line of its own: %s", line)
				}
			}
			t.Log(out.String())
		})
	}
}

// With a user, a worker asks etcd who that is before anything else.
func TestLogin(t *testing.T) {
	t.Parallel()
	var out, problems bytes.Buffer
	code := run([]string{"-backend", "etcd://me:secret@127.0.0.1:1?timeout=300ms"}, &out, &problems, nil)
	if code != exitFailure || !strings.Contains(problems.String(), "cannot log in") || out.Len() > 0 {
		t.Errorf("exit status %d, %s%s", code, out.String(), problems.String())
	}
	if strings.Contains(problems.String(), "secret") {
		t.Error("the password was printed")
	}
}
