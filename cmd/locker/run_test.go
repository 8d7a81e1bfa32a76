//go:build linux

package main

import (
	"fmt"
	"net"
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

// The exit code is that of the command, or says what has ended it, as that of a shell does.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	codes := []int{0, 1, 2, 63, 64, 69, 70, 75, 77, 78, 125, 126, 127, 128, 255}
	if os.Getenv("LOCKER_TEST_ALL") != "" {
		codes = nil
		for code := range 256 {
			codes = append(codes, code)
		}
	}
	for _, code := range codes {
		p := lockerOn(t, "", "run", "--store", "memory", "k", "--", "sh", "-c", fmt.Sprintf("exit %d", code))
		p.exits(code)
	}
	for _, s := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGKILL, syscall.SIGUSR1, syscall.SIGSEGV, syscall.SIGPIPE,
		syscall.SIGTERM,
	} {
		p := lockerOn(t, "", "run", "--store", "memory", "k", "--", "sh", "-c", fmt.Sprintf("kill -%d $$", int(s)))
		p.exits(128 + int(s))
	}
}

// What the program itself has to say is said by the codes of sysexits.h, and those of shells; the command does not run.
func TestExitCodesOfItsOwn(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	holder := locktest.MustLock(t, observer(t, url), key)
	defer locktest.MustUnlock(t, holder)
	denied := redistest.New(t, redistest.Options{})
	admin := redistest.Dial(t, denied.Addr())
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">secret", "~*", "+ping").Err(); err != nil {
		t.Fatal(err)
	}
	notExecutable := t.TempDir() + "/file"
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	noInterpreter := t.TempDir() + "/script"
	//nolint:gosec // it is to be run
	if err := os.WriteFile(noInterpreter, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	replica := redistest.New(t, redistest.Options{Args: []string{"--replicaof", "127.0.0.1 1"}})
	marker := t.TempDir() + "/has run"
	run := func(args ...string) []string { return append(append([]string{"run"}, args...), "--", "touch", marker) }
	for name, c := range map[string]struct {
		store string
		args  []string
		code  int
		says  string
	}{
		"no store":        {"", run(key), 64, "which store?"},
		"no such store":   {"mysql://localhost", run(key), 64, `"mysql"`},
		"no URL":          {"secret-host", run(key), 64, "not a URL"},
		"no command":      {url, []string{"run", key, "--"}, 64, "the command is missing"},
		"no dashes":       {url, []string{"run", key, "touch", marker}, 64, `"--" is missing`},
		"no key":          {url, run(), 64, "a key is missing"},
		"no such option":  {url, run("--nonsense", key), 64, "--nonsense"},
		"no such command": {url, []string{"nonsense"}, 64, `unknown command "nonsense"`},
		"TTL":             {url, run("--ttl", "1ms", key), 64, "TTL(1ms)"},
		"grace":           {url, run("--ttl", "2s", "--grace", "2s", key), 64, "-grace"},
		"on loss":         {url, run("--on-loss", "cry", key), 64, "-on-loss"},
		"modes":           {url, run("--shared", "--slots", "2", key), 64, "exclude each other"},
		"waits":           {url, run("-n", "--wait", "2s", key), 64, "exclude each other"},
		"long key":        {url, run(strings.Repeat("k", 1025)), 64, "1025 bytes"},
		"not offered":     {"memory", run("--store", "memory", "--slots", "20000", key), 64, "Slots(20000)"},
		"not there":       {"redis://127.0.0.1:1", run(key), 69, "refused"},
		"held, no wait":   {url, run("-n", key), 75, "locked, by the test"},
		"held, one dash":  {url, run("-no-wait", key), 75, "locked, by the test"},
		"held, wait":      {url, run("-wait=2s", key), 75, "still locked after 2s, by the test"},
		"held, for cron":  {url, run("-n", "-E", "0", key), 0, ""},
		"denied":          {"redis://app:secret@" + denied.Addr(), run(key), 77, "lacks a permission"},
		"password":        {"redis://app:wrong@" + denied.Addr(), run(key), 77, "authentication failed"},
		"a replica":       {"redis://" + replica.Addr(), run(key), 69, "READONLY"},
		"not a cluster":   {"redis+cluster://" + redistest.Address(t), run(key), 78, "cluster"},
		"not executable":  {url, []string{"run", key, "--", notExecutable}, 126, "permission denied"},
		"no interpreter":  {url, []string{"run", "free " + key, "--", noInterpreter}, 127, "no such file"},
		"not found":       {url, []string{"run", key, "--", "no-such-program"}, 127, "no-such-program"},
	} {
		p := lockerOn(t, c.store, c.args...)
		if code := p.code(); code != c.code || !strings.Contains(p.stderr.String(), c.says) {
			t.Errorf("%s: exit code %d, want %d with %q; it said:\n%s", name, code, c.code, c.says, p.stderr.String())
		}
		lines := 1
		if c.says == "" {
			lines = 0
		}
		text := p.stderr.String()
		lines += strings.Count(text, "waiting for ") // as it tells who waits for longer than a second
		if strings.Contains(text, "secret") || strings.Contains(text, "wrong@") || strings.Count(text, "\n") != lines {
			t.Errorf("%s: it shows a password, or says not so much as one line:\n%s", name, text)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a command has run without the lock")
	}
}

// What the command finds in its environment, and what not.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	before := locktest.MustLock(t, c, key)
	locktest.MustUnlock(t, before)
	show := `echo "$LOCKER_KEY,$LOCKER_TOKEN,$LOCKER_SLOT,$LOCKER_HOLDER,$LOCKER_STORE"`

	p := lockerOn(t, url, "run", "--name", "me", key, "--", "sh", "-c", show)
	fields := strings.Split(p.line(), ",")
	token, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil || token <= before.Token() || fields[0] != key || fields[2] != "" || fields[3] != "me" ||
		fields[4] != url {
		t.Errorf("the environment is %q, after token %d", fields, before.Token())
	}
	p.exits(0)

	protected := redistest.New(t, redistest.Options{Args: []string{"--requirepass", "s3cret"}})
	p = lockerOn(t, "redis://:s3cret@"+protected.Addr(), "run", "--slots", "3", "--name", "me", key, "--", "sh", "-c",
		show+"; env; cat /proc/$PPID/cmdline /proc/$$/cmdline")
	if fields = strings.Split(p.line(), ","); fields[2] != "0" || fields[4] != "" {
		t.Errorf("the environment is %q", fields)
	}
	p.exits(0)
	for line := range p.out {
		if strings.Contains(line, "s3cret") {
			t.Errorf("the password: %s", line)
		}
	}

	for _, store := range []string{
		"redis://:s3cret@" + protected.Addr(), "host=h password=s3cret", "host=h password = s3cret",
		`password='s3\'c ret'`,
	} {
		p = lockerOn(t, "", "run", "--store", store, key, "--", "true")
		p.exits(exitUsage)
		p.tells("is seen by every user")
	}

	// Of a lock that the program itself runs under, the command is told nothing: many take the first of two variables.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p = lockerOn(t, url, "run", "--slots", "2", "outer "+key, "--", self, "run", key, "--", "env")
	p.exits(0)
	seen := map[string]int{}
	for line := range p.out {
		name, value, _ := strings.Cut(line, "=")
		seen[name]++
		if name == "LOCKER_KEY" && value != key {
			t.Errorf("the key is %q", value)
		}
	}
	if seen["LOCKER_KEY"] != 1 || seen["LOCKER_TOKEN"] != 1 || seen["LOCKER_HOLDER"] != 1 || seen["LOCKER_SLOT"] != 0 {
		t.Errorf("the variables are there so often: %v", seen)
	}

	// Several keys: one in a line, as are their tokens.
	other := "another " + key
	p = lockerOn(t, url, "run", key, other, key, "--", "sh", "-c", `echo "$LOCKER_KEY"; echo "$LOCKER_TOKEN"; read x`)
	p.says(key)
	p.says(other)
	p.says(key)
	first, _, third := p.line(), p.line(), p.line()
	if first != third {
		t.Errorf("the tokens of one key: %s and %s", first, third)
	}
	locktest.IsLocked(t, c, key)
	locktest.IsLocked(t, c, other)
	_ = p.stdin.Close()
	p.exits(1) // of read
	if held(t, c, key) || held(t, c, other) {
		t.Error("the keys are still held")
	}
}

// The standard streams are those of the command. A command that closes them is still waited for.
func TestStreams(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	p := lockerOn(t, url, "run", key, "--", "cat")
	if _, err := fmt.Fprintln(p.stdin, "hello"); err != nil {
		t.Fatal(err)
	}
	p.says("hello")
	_ = p.stdin.Close()
	p.exits(0)

	c := observer(t, url)
	p = lockerOn(t, url, "run", key, "--", "sh", "-c", "echo $$; exec <&- >&- 2>&-; while :; do sleep 0.01; done")
	pid := p.line()
	if line, ok := <-p.out; ok {
		t.Errorf("it wrote %q", line)
	}
	locktest.IsLocked(t, c, key)
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(n, syscall.SIGKILL)
	p.exits(137)
}

// Somebody who reads its messages, and goes away, does not end it.
func TestMessagesThatNobodyReads(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	holder := locktest.MustLock(t, c, key)
	p := command(t, url, "run", "--json", key, "--", "true")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = w
	_ = r.Close()
	p.start()
	_ = w.Close()
	waiting(t, c, key, 1)
	time.Sleep(tellWaitAfter + 200*time.Millisecond) // until it wants to say for whom it waits; less proves less
	locktest.MustUnlock(t, holder)
	p.exits(0)
}

// A signal ends what the program waits for: the store, its turn. It leaves nothing in line.
func TestSignalBefore(t *testing.T) {
	t.Parallel()
	url := redisURL(t)
	c := observer(t, url)
	for _, s := range forCommands {
		if s == syscall.SIGWINCH { // which ends nothing
			continue
		}
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := lockerOn(t, "redis://"+silent.Addr().String(), "run", "k", "--", "echo", "ran")
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		p.signal(s)
		p.exits(128 + int(s))
		_ = conn.Close()
		_ = silent.Close()

		key := locktest.Unique("key")
		holder := locktest.MustLock(t, c, key)
		p = lockerOn(t, url, "run", key, "--", "echo", "ran")
		waiting(t, c, key, 1)
		p.signal(s)
		p.exits(128 + int(s))
		waiting(t, c, key, 0)
		locktest.MustUnlock(t, holder)
		if line, ok := <-p.out; ok {
			t.Errorf("the command has run: %s", line)
		}
	}
}

// While the command runs, signals are for it, and for all of its process group, but not for others.
func TestSignalDuring(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range forCommands {
		p := lockerOn(t, url, "run", key, "--", "env", actAs+"=heirs", self)
		lines := map[string]bool{p.line(): true, p.line(): true}
		p.signal(s)
		lines[p.line()], lines[p.line()] = true, true
		for _, want := range []string{"above up", "below up", "above " + s.String(), "below " + s.String()} {
			if !lines[want] {
				t.Errorf("%v: %v", s, lines)
			}
		}
		p.exits(5)
	}
}

// A command that ignores SIGTERM goes on, and keeps its lock.
func TestIgnoredSignal(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	p := lockerOn(t, url, "run", key, "--", "sh", "-c", "trap '' TERM; echo up; read x; echo $x")
	p.says("up")
	p.signal(syscall.SIGTERM)
	locktest.IsLocked(t, c, key)
	if _, err := fmt.Fprintln(p.stdin, "on"); err != nil {
		t.Fatal(err)
	}
	p.says("on")
	p.exits(0)
}

// A signal that is ignored from the start, as by nohup, is ignored.
func TestNohup(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	p := lockerOn(t, url, "run", key, "--", "true")
	self := p.cmd.Path
	p.exits(0)
	p = command(t, url)
	p.cmd.Path = "/bin/sh"
	p.cmd.Args = []string{"sh", "-c", `trap "" HUP; exec "$0" run "$1" -- sh -c "echo up; read x; echo \$x"`, self, key}
	p.start()
	p.says("up")
	p.signal(syscall.SIGHUP)
	if _, err := fmt.Fprintln(p.stdin, "on"); err != nil {
		t.Fatal(err)
	}
	p.says("on")
	p.exits(0)
}

// What the command leaves behind keeps the lock, wherever it has gone; the exit code is that of the command.
func TestGrandchildren(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	p := lockerOn(t, url, "run", key, "--", "sh", "-c",
		`(sleep 1000 & echo $!); (setsid sleep 1000 >&- 2>&- & echo $!); echo done; exit 7`)
	pids := []string{p.line(), p.line()}
	p.says("done")
	p.tells("2 processes")
	for _, pid := range pids {
		locktest.IsLocked(t, c, key)
		n, _ := strconv.Atoi(pid)
		_ = syscall.Kill(n, syscall.SIGTERM)
	}
	p.exits(7)
	if held(t, c, key) {
		t.Error("the key is still held")
	}
}

// Processes that a shell has started before it became the program are not waited for, nor ended with the command: one
// that reads what the program writes would wait for it in turn.
func TestStrangers(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	p := command(t, url, key)
	shell := func(script string) *process {
		q := command(t, url)
		q.cmd.Path, q.cmd.Args = "/bin/sh", []string{"sh", "-c", script, p.cmd.Path, key}
		return q.start()
	}
	q := shell(`sleep 1000 & echo $!; exec "$0" run "$1" -- sh -c 'sleep 1000 & echo $!; exit 7'`)
	stranger, left := q.line(), q.line()
	defer func() {
		n, _ := strconv.Atoi(stranger)
		_ = syscall.Kill(n, syscall.SIGKILL)
	}()
	q.tells("left 1 processes")
	locktest.IsLocked(t, c, key)
	n, err := strconv.Atoi(left)
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(n, syscall.SIGTERM)
	q.exits(7)

	q = shell(`sleep 1000 & echo $!; exec "$0" run -ttl 3s "$1" -- sh -c '
		trap "" TERM; setsid sleep 1000 & echo $!; sleep 1000'`)
	another, below := q.line(), q.line()
	lockerOn(t, url, "revoke", key).exits(0)
	q.exits(exitLost)
	if isAlive(below) || !isAlive(stranger) || !isAlive(another) {
		t.Error("it has ended what it has not started, or left what it has")
	}
	n, _ = strconv.Atoi(another)
	_ = syscall.Kill(n, syscall.SIGKILL)
}

// If the program is killed, so is the command, and the lock is free when the TTL has passed.
func TestKilled(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	p := lockerOn(t, url, "run", "--ttl", "3s", key, "--",
		"sh", "-c", "trap '' TERM HUP; echo $$; while :; do sleep 0.01; done")
	pid := p.line()
	p.signal(syscall.SIGKILL)
	<-p.ended
	locktest.Eventually(t, "the command is dead", func() bool { return !isAlive(pid) })
	locktest.MustUnlock(t, locktest.MustLock(t, c, key))
}

// -n and -wait return when they should, -shared and -slots let in whom they should.
func TestModes(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	hold := []string{"--", "sh", "-c", "echo $LOCKER_SLOT up; read x"}
	var readers, seekers []*process
	for range 2 {
		readers = append(readers, lockerOn(t, url, append([]string{"run", "--shared", key}, hold...)...))
		seekers = append(seekers, lockerOn(t, url, append([]string{"run", "--slots", "2", "s" + key}, hold...)...))
	}
	numbers := map[string]bool{}
	for i := range 2 {
		readers[i].says("up")
		numbers[seekers[i].line()] = true
	}
	if !numbers["0 up"] || !numbers["1 up"] {
		t.Errorf("the slots are %v", numbers)
	}
	lockerOn(t, url, "run", "-n", key, "--", "true").exits(exitLocked)
	lockerOn(t, url, "run", "-n", "--slots", "2", "s"+key, "--", "true").exits(exitLocked)
	lockerOn(t, url, "run", "-n", "--shared", key, "--", "true").exits(0)
	for _, p := range append(readers, seekers...) {
		_ = p.stdin.Close()
		p.exits(1)
	}
	lockerOn(t, url, "run", "-n", key, "s"+key, "--", "true").exits(0)
}

// -min-hold keeps the lock when the command has ended, and nobody waits for that but others.
func TestMinHold(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	start := time.Now()
	lockerOn(t, url, "run", "--min-hold", "2s", key, "--", "true").exits(0)
	another := lockerOn(t, url, "run", "-n", key, "--", "true")
	code := another.code()
	if took := time.Since(start); code != 0 || took < 2*time.Second { // else it may have begun late
		another.exits(exitLocked)
	}
	lockerOn(t, url, "run", key, "--", "true").exits(0)
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("the next one had it after %v", took)
	}
}

// Who waits for longer than a moment is told for whom.
func TestTellsWait(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	holder := locktest.MustLock(t, observer(t, url), key)
	p := lockerOn(t, url, "run", key, "--", "true")
	p.tells(fmt.Sprintf("waiting for %q, which is held by the test since", key))
	quiet := lockerOn(t, url, "run", "-q", "-wait", "1500ms", key, "--", "true")
	quiet.exits(exitLocked)
	if strings.Contains(quiet.stderr.String(), "waiting") {
		t.Error("it is not quiet")
	}
	locktest.MustUnlock(t, holder)
	p.exits(0)
}

// A store that does not answer at the end is told of, and keeps nobody waiting for long.
func TestStoreGoneAtTheEnd(t *testing.T) {
	t.Parallel()
	server, proxy := proxied(t)
	p := lockerOn(t, "redis://"+proxy.Addr(), "run", "--ttl", "1m", "k", "--", "sh", "-c", "echo up; read x; exit 3")
	p.says("up")
	proxy.Set(faultproxy.BlackHole())
	start := time.Now()
	_ = p.stdin.Close()
	p.exits(3)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v to end", took)
	}
	p.tells("the lock is free after 1m0s")
	if !held(t, observer(t, "redis://"+server.Addr()), "k") {
		t.Error("the store was told, after all")
	}
}
