//go:build unix

package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// crew is a fleet of real processes.
type crew struct {
	t     *testing.T
	store testStore
	url   string
	key   string
	flags []string
	procs []*proc
}

func newCrew(t *testing.T, s testStore, url string, flags ...string) *crew {
	return &crew{t: t, store: s, url: url, key: t.Name() + "/" + rand.Text(), flags: flags}
}

// proc is a worker process.
type proc struct {
	c    *crew
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	lines []line
	more  chan struct{} // closed when there are more lines
	next  int           // the first line that await has not passed over yet
}

// line is a line that a process has printed, in two parts.
type line struct {
	at   time.Time
	text string
}

// start starts a worker.
func (c *crew) start(flags ...string) *proc {
	c.t.Helper()
	program, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	p := &proc{c: c, name: fmt.Sprintf("w%d", len(c.procs)+1), done: make(chan struct{}), more: make(chan struct{})}
	args := append([]string{"-backend", c.url, "-key", c.key, "-name", p.name}, c.flags...)
	p.cmd = exec.Command(program, append(args, flags...)...) // the last flag counts
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	out, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		out.Close()
		c.t.Fatal(err)
	}
	c.procs = append(c.procs, p)
	go p.read(out)
	c.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // if it still runs
		<-p.done
		if c.t.Failed() {
			c.t.Logf("the output of %s:\n%s", p.name, p.output())
		}
	})
	return p
}

// read takes note of what the process prints, until it ends.
func (p *proc) read(out *os.File) {
	defer out.Close()
	for scan := bufio.NewScanner(out); scan.Scan(); {
		l := parseLine(scan.Text())
		p.mu.Lock()
		p.lines = append(p.lines, l)
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	_ = p.cmd.Wait() // its result is in ProcessState
	close(p.done)
}

// parseLine separates the time of day, if the line begins with one, and the name.
func parseLine(s string) line {
	words := strings.Fields(s)
	if len(words) < 3 {
		return line{text: s}
	}
	clock, err := time.ParseInLocation("15:04:05", words[0], time.Local)
	if err != nil {
		return line{text: s}
	}
	now := time.Now()
	at := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), clock.Second(),
		clock.Nanosecond(), time.Local)
	if at.Sub(now) > 12*time.Hour { // it was before midnight
		at = at.AddDate(0, 0, -1)
	}
	return line{at: at, text: strings.Join(words[2:], " ")}
}

func (p *proc) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, l := range p.lines {
		fmt.Fprintf(&b, "%s  %s\n", l.at.Format("15:04:05.000000"), l.text)
	}
	return b.String()
}

// await waits for a line that matches the pattern, behind the one that it found last.
func (p *proc) await(pattern string) line {
	p.c.t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.After(patience)
	for ended := false; ; {
		p.mu.Lock()
		for p.next < len(p.lines) {
			l := p.lines[p.next]
			p.next++
			if re.MatchString(l.text) {
				p.mu.Unlock()
				return l
			}
		}
		more := p.more
		p.mu.Unlock()
		if ended {
			p.c.t.Fatalf("%s ended (%v) without a line that matches %q", p.name, p.cmd.ProcessState, pattern)
		}
		select {
		case <-more:
		case <-p.done:
			ended = true
		case <-timeout:
			p.c.t.Fatalf("%s has no line that matches %q after %v", p.name, pattern, patience)
		}
	}
}

// signal sends a signal, and returns when that was.
func (p *proc) signal(sig syscall.Signal) time.Time {
	p.c.t.Helper()
	now := time.Now()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.c.t.Fatalf("%v to %s: %v", sig, p.name, err)
	}
	return now
}

// expectExit waits for the end of the process, with one of the exit codes.
func (p *proc) expectExit(codes ...int) {
	p.c.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.c.t.Fatalf("%s still runs after %v", p.name, patience)
	}
	if !slices.Contains(codes, p.cmd.ProcessState.ExitCode()) {
		p.c.t.Errorf("%s: %v, want exit status %v", p.name, p.cmd.ProcessState, codes)
	}
}

// audit checks that the queue has accepted the results of jobs 1, 2, 3 ... and at least min of them, once each, by
// leaders who led one after the other. It knows only what is in the store.
func (c *crew) audit(min int64) {
	c.t.Helper()
	h := c.store.history(c.t, c.url, c.key)
	if h.done < min {
		c.t.Fatalf("the queue says that %d jobs are done; want at least %d", h.done, min)
	}
	last := uint64(0)
	for job := int64(1); job <= h.done; job++ {
		by := h.by[job]
		if by.Token == 0 || by.Token < last {
			c.t.Errorf("job %d was done by %v, after one with token %d", job, by, last)
		}
		last = by.Token
	}

	// What the processes have seen is in accordance. Who was killed may have done a job without having said so.
	said := make(map[int64]int)
	for _, p := range c.procs {
		for _, l := range p.lines {
			var job int64
			by := Leader{Name: p.name}
			if n, _ := fmt.Sscanf(l.text, "job %d done, token %d", &job, &by.Token); n < 2 {
				continue
			}
			said[job]++
			if h.by[job] != by {
				c.t.Errorf("%v says that it did job %d; the queue says it was %v", by, job, h.by[job])
			}
		}
	}
	for job, times := range said {
		if times != 1 {
			c.t.Errorf("job %d was done %d times", job, times)
		}
	}
}

// bestOf measures several times until the result is within the limit, as other processes of a busy machine may get
// in the way. The measurements are logged.
func bestOf(t *testing.T, what string, limit time.Duration, measure func() time.Duration) {
	t.Helper()
	const rounds = 30
	var took []time.Duration
	for range rounds {
		took = append(took, measure())
		if slices.Min(took) <= limit && len(took) >= 3 {
			break
		}
	}
	t.Logf("%s: %v", what, took)
	if best := slices.Min(took); best > limit {
		t.Errorf("%s took %v at best, want at most %v", what, best, limit)
	}
}

func TestAllJobsInOrder(t *testing.T) { onEachStore(t, testAllJobsInOrder) }

func testAllJobsInOrder(t *testing.T, s testStore) {
	c := newCrew(t, s, s.shared(t), "-jobs", "30", "-job", "10ms")
	first := c.start("-job", "100ms") // so that there are some left when the others have started
	first.await("leads, token .*: is the first leader")
	others := []*proc{c.start(), c.start()}
	for _, p := range others {
		p.await("joins")
	}
	// One job is in hand and is finished: there is time enough.
	first.await("job 3 done")
	first.signal(syscall.SIGINT)
	first.await("told to stop")
	first.await(`leaves: unlocks`)
	first.expectExit(0)
	for _, p := range others {
		p.expectExit(0)
		p.await("all jobs are done")
	}
	for _, l := range first.lines {
		if strings.Contains(l.text, "drops") {
			t.Errorf("the job in hand was not finished: %s", l.text)
		}
	}
	c.audit(30)
}

func TestJobInHand(t *testing.T) { onEachStore(t, testJobInHand) }

func testJobInHand(t *testing.T, s testStore) {
	for _, test := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"finishes within the grace", []string{"-job", "3s", "-grace", "1m"}, `^job 1 done`}, // longer than the next one takes to start
		{"is cancelled after the grace", []string{"-job", "1m", "-grace", "300ms"}, `^drops job 1: .*grace`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCrew(t, s, s.shared(t))
			p := c.start(test.flags...)
			p.await(`^job 1 \.\.\.`)
			next := c.start("-job", "10ms")
			next.await("joins")
			p.signal(syscall.SIGTERM)
			p.await(test.want)
			p.await("leaves")
			p.expectExit(0)
			next.await("leads, token .*: w1 left .* ago")
			next.await("job 2 done")
			if t.Failed() {
				return
			}
			next.signal(syscall.SIGTERM)
			next.expectExit(0)
			c.audit(2)
		})
	}
}

// A leader that is killed is replaced as soon as the store can tell. One that is stopped, when its TTL has run out.
func TestVanishedLeader(t *testing.T) { onEachStore(t, testVanishedLeader) }

func testVanishedLeader(t *testing.T, s testStore) {
	const ttl = time.Second
	for _, test := range []struct {
		name       string
		sig        syscall.Signal
		ttl, limit time.Duration
	}{
		{"kill -9", syscall.SIGKILL, s.ttl, s.killed},
		{"kill -STOP", syscall.SIGSTOP, ttl, ttl + slack},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCrew(t, s, s.shared(t), "-ttl", test.ttl.String(), "-job", "20ms")
			leader := c.start()
			leader.await("leads")
			bestOf(
				t,
				"from "+test.name+" to the next leader, with a TTL of "+test.ttl.String(),
				test.limit,
				func() time.Duration {
					next := c.start()
					next.await("joins")
					c.awaitWaiting()
					leader.await("job .* done")
					vanished := leader.signal(test.sig)
					led := next.await("leads, token .*: " + leader.name + " vanished")
					_ = leader.cmd.Process.Kill() // if it is only stopped
					leader.expectExit(-1)
					leader = next
					return led.at.Sub(vanished)
				},
			)
			leader.await("job .* done")
			leader.signal(syscall.SIGTERM)
			leader.expectExit(0)
			c.audit(4)
		})
	}
}

// A leader that leaves is replaced at once: counted from the signal, with everything in between.
func TestPoliteLeader(t *testing.T) { onEachStore(t, testPoliteLeader) }

func testPoliteLeader(t *testing.T, s testStore) {
	c := newCrew(t, s, s.shared(t), "-job", "1m", "-grace", "0s")
	leader := c.start()
	leader.await(`job 1 \.\.\.`)
	var gaps []string
	bestOf(t, "from SIGTERM to the next leader", s.left, func() time.Duration {
		next := c.start()
		next.await("joins")
		c.awaitWaiting()
		told := leader.signal(syscall.SIGTERM)
		led := next.await("leads, token .*: " + leader.name + ` left \S+ ago`)
		next.await(`job 1 \.\.\.`)
		leader.expectExit(0)
		leader = next
		gaps = append(gaps, strings.Fields(led.text)[5])
		return led.at.Sub(told)
	})
	t.Logf("from leaving to the next leader, as printed: %v", gaps)
	best := time.Hour
	for _, gap := range gaps {
		d, err := time.ParseDuration(gap)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, d)
	}
	if best > s.left {
		t.Errorf("the handover took %v at best, from leaving", best)
	}
	leader.signal(syscall.SIGTERM)
	leader.expectExit(0)
}

// awaitWaiting waits until somebody waits in the line of the lock, for which there is no line of output.
func (c *crew) awaitWaiting() {
	c.t.Helper()
	locktest.Eventually(c.t, "somebody waits in line", func() bool { return c.store.waiters(c.t, c.url, c.key) > 0 })
}

// A leader that is stopped for longer than its TTL, and goes on, sees that it has lost the lease before it can hand in
// a result. If it does so all the same, it is refused. Then it is a follower like any other.
func TestFrozenLeader(t *testing.T) { onEachStore(t, testFrozenLeader) }

func testFrozenLeader(t *testing.T, s testStore) {
	for _, careless := range []bool{false, true} {
		t.Run("insist="+strconv.FormatBool(careless), func(t *testing.T) {
			t.Parallel()
			c := newCrew(t, s, s.shared(t), "-ttl", "1s")
			frozen := c.start("-job", "700ms", "-insist="+strconv.FormatBool(careless))
			frozen.await("leads")
			next := c.start("-job", "50ms")
			next.await("joins")
			frozen.await(`^job 2 \.\.\.`)
			frozen.signal(syscall.SIGSTOP)
			next.await("leads, token .*: w1 vanished")
			next.await("job 3 done")
			resumed := frozen.signal(syscall.SIGCONT)

			gone := frozen.await("") // the next line, whatever it is
			if !strings.HasPrefix(gone.text, "has lost the lease") &&
				!strings.HasPrefix(gone.text, `logs level=ERROR msg="lease lost"`) {
				t.Errorf("the first that it says is %q, and not that it has lost the lease", gone.text)
			}
			if gone.at.Before(resumed) {
				t.Errorf("it was not frozen: it saw the loss %v before it was resumed", resumed.Sub(gone.at))
			}
			if careless {
				frozen.await("hands in job 2 all the same") // comes later, or await would not find it
				frozen.await("is refused by the queue: deposed by w2, token")
			} else {
				frozen.await("drops job 2: lease lost")
			}
			next.await("job .* done") // undisturbed
			next.signal(syscall.SIGTERM)
			next.expectExit(0)
			frozen.await("leads, token .*: w2 (left|vanished)") // the latter, if the store is slow to be told
			frozen.await("job .* done")
			frozen.signal(syscall.SIGTERM)
			frozen.expectExit(0)
			c.audit(4)
			for _, l := range frozen.lines {
				if !careless && (strings.Contains(l.text, "hands in") || strings.Contains(l.text, "refused")) {
					t.Errorf("it handed in a late result: %s", l.text)
				}
			}
		})
	}
}

func TestSecondSignal(t *testing.T) { onEachStore(t, testSecondSignal) }

func testSecondSignal(t *testing.T, s testStore) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			c := newCrew(t, s, s.shared(t), "-job", "5m", "-grace", "5m", "-stop-within", "5m")
			p := c.start()
			p.await(`job 1 \.\.\.`)
			p.signal(syscall.SIGTERM)
			p.await("told to stop")
			p.signal(sig)
			p.await("told to stop again .*: exit at once")
			p.expectExit(exitSignal + int(sig))
		})
	}
}

// A stop takes a bounded time, also when the server hangs and the lease still has minutes to run.
func TestStopIsBounded(t *testing.T) { onEachStore(t, testStopIsBounded) }

func testStopIsBounded(t *testing.T, s testStore) {
	url, proxy := behindProxy(t, s.shared(t))
	const within = time.Second
	c := newCrew(t, s, url, "-ttl", "5m", "-job", "50ms", "-stop-within", within.String())
	leader := c.start()
	leader.await("job 1 done")
	follower := c.start()
	follower.await("joins")
	c.awaitWaiting()
	proxy.Set(faultproxy.Hang())
	told := leader.signal(syscall.SIGTERM)
	follower.signal(syscall.SIGTERM)
	leader.await("still not stopped after 1s: exit at once")
	leader.expectExit(exitFailure)
	if took := time.Since(told); took < within || took > within+10*time.Second {
		t.Errorf("it took %v to stop, want %v and little more", took, within)
	}
	follower.expectExit(0, exitFailure) // it has nothing to unlock, but a place in line to give up
}

// While the server hangs for longer than the TTL, the leader stops working and everybody waits. Then they go on.
func TestOutage(t *testing.T) { onEachStore(t, testOutage) }

func testOutage(t *testing.T, s testStore) {
	url, proxy := behindProxy(t, s.shared(t))
	c := newCrew(t, s, url, "-ttl", "1s", "-job", "50ms")
	leader := c.start()
	leader.await("leads")
	follower := c.start()
	follower.await("joins")
	leader.await("job 1 done")
	proxy.Set(faultproxy.Hang())
	hangs := time.Now()
	loss := leader.await("has lost the lease")
	leader.await("meets an outage: ")
	leader.expectLog(hangs, `level=ERROR msg="lease lost"`)
	leader.expectLog(hangs, `level=WARN msg="lead rides out a failure"`)
	proxy.Heal()
	healed := time.Now()
	if l := findFirst("leads, token", healed, leader, follower); l.at.Before(loss.at) {
		t.Fatalf("nobody leads after the outage: %+v", l)
	}
	leader.signal(syscall.SIGTERM)
	leader.expectExit(0)
	follower.await("job .* done")
	follower.signal(syscall.SIGTERM)
	follower.expectExit(0)
	c.audit(2)
}

// A server that crashes, and comes back with its data, is waited for. Nobody gives up, and no job is lost or done
// twice.
func TestRestart(t *testing.T) { onEachStore(t, testRestart) }

func testRestart(t *testing.T, s testStore) {
	server := s.start(t)
	c := newCrew(t, s, server.url, "-ttl", "2s", "-job", "50ms")
	leader := c.start()
	leader.await("leads")
	follower := c.start()
	follower.await("joins")
	c.awaitWaiting()
	leader.await("job 2 done")
	server.crash()
	crashed := time.Now()
	if s.restartFrees {
		leader.await("has lost the lease")
		leader.await("meets an outage: ")
	}
	if err := server.restart(); err != nil {
		t.Fatal(err)
	}
	if s.restartFrees && findFirst("leads, token", crashed, leader, follower).text == "" {
		t.Fatal("nobody leads after the restart")
	}
	if l := findFirst(" done, token", crashed, leader, follower); l.text == "" {
		t.Fatal("nobody works after the restart")
	} else {
		t.Logf("from the crash to the first job done: %v", l.at.Sub(crashed))
	}
	// Both are well: each leads when the other leaves.
	again := c.start()
	again.await("joins")
	leader.signal(syscall.SIGTERM)
	leader.expectExit(0)
	follower.signal(syscall.SIGTERM)
	follower.expectExit(0)
	again.await("job .* done")
	again.signal(syscall.SIGTERM)
	again.expectExit(0)
	c.audit(4)
}

// findFirst waits for a line of any of the processes, as find does for one.
func findFirst(text string, after time.Time, procs ...*proc) line {
	found := make(chan line, len(procs))
	for _, p := range procs {
		go func() { found <- p.find(text, after) }()
	}
	return <-found
}

// expectLog waits until package locker has logged something since a moment.
func (p *proc) expectLog(since time.Time, record string) {
	p.c.t.Helper()
	if p.find("logs "+record, since).text == "" {
		p.c.t.Errorf("%s has not logged %s", p.name, record)
	}
}

// find waits for a line that is younger than a moment, and returns the zero line if there is none.
func (p *proc) find(text string, after time.Time) line {
	for timeout := time.After(patience); ; {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for _, l := range lines {
			if l.at.After(after) && strings.Contains(l.text, text) {
				return l
			}
		}
		select {
		case <-more:
		case <-p.done:
			return line{}
		case <-timeout:
			return line{}
		}
	}
}

// The server with the state answers, and connections to it delay neither unlock nor exit.
func TestStatus(t *testing.T) { onEachStore(t, testStatus) }

func testStatus(t *testing.T, s testStore) {
	c := newCrew(t, s, s.shared(t), "-job", "1m", "-grace", "0s")
	leader := c.start("-http", "127.0.0.1:0")
	url := strings.Fields(leader.await("serves its state at").text)[4]
	leader.await(`job 1 \.\.\.`)
	next := c.start()
	next.await("joins")
	c.awaitWaiting()

	reply, err := http.Get(url) // and keeps the connection
	if err != nil {
		t.Fatal(err)
	}
	body, err := bufio.NewReader(reply.Body).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	reply.Body.Close()
	if !regexp.MustCompile(`^{"worker":"w1","leads":true,"token":\d+,"job":1,"done":0}`).MatchString(body) {
		t.Errorf("it answered %s", body)
	}
	// A request that never ends.
	conn, err := net.Dial("tcp", strings.Trim(strings.TrimPrefix(url, "http:"), "/"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n")); err != nil {
		t.Fatal(err)
	}
	leader.signal(syscall.SIGTERM)
	led := next.await("leads, token .*: w1 left")
	// It gives the requests a second, and has unlocked before.
	if stopped := leader.await("has stopped"); led.at.After(stopped.at) {
		t.Errorf("the next one led %v after the first had stopped", led.at.Sub(stopped.at))
	}
	leader.expectExit(0)
	next.signal(syscall.SIGTERM)
	next.expectExit(0)
}
