//go:build linux

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
)

// output is all that the program writes.
func output(t *testing.T, store string, args ...string) string {
	t.Helper()
	p := lockerOn(t, store, args...)
	p.exits(0)
	var text strings.Builder
	for line := range p.out {
		text.WriteString(line + "\n")
	}
	return text.String()
}

// Who holds a lock, and who waits for it, for people and for programs.
func TestShow(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	if got, want := output(t, url, "show", key), key+": free\n"; got != want {
		t.Errorf("it shows %q, want %q", got, want)
	}
	lease := locktest.MustLock(t, c, key)
	slot := locktest.MustLock(t, c, key+"/slots", locker.Slots(5))
	p := lockerOn(t, url, "run", key, "--", "true")
	waiting(t, c, key, 1)

	got := output(t, url, "show", key, key+"/slots")
	want := regexp.MustCompile(`(?m)^` + key + `: held, 1 waiting
  HOLDER +MODE +SINCE +LEFT +TOKEN +SESSION
  the test +exclusive +\d\d:\d\d:\d\d +[\d.]+s +\d+
  WAITER +MODE +SINCE +SESSION
  .* +exclusive +\d\d:\d\d:\d\d
` + key + `/slots: held, 0 waiting
  HOLDER.*
  the test +slot 0 `)
	if !want.MatchString(got) {
		t.Errorf("it shows\n%swant\n%v", got, want)
	}
	var o lockObject
	if err := json.Unmarshal([]byte(output(t, url, "show", "--json", key)), &o); err != nil {
		t.Fatal(err)
	}
	if o.Key != key || !o.Held || o.Waiting != 1 || len(o.Holders) != 1 || o.Holders[0].Token != lease.Token() ||
		o.Holders[0].Name != "the test" || o.Holders[0].Mode != "exclusive" || o.Holders[0].Slot != nil ||
		o.Holders[0].Left <= 0 {
		t.Errorf("it is %+v", o)
	}

	list := output(t, url, "list", key)
	for _, k := range []string{key, key + "/slots"} {
		if !regexp.MustCompile(`(?m)^` + k + ` +the test +`).MatchString(list) {
			t.Errorf("%s is not in the list:\n%s", k, list)
		}
	}
	if lines := strings.Split(strings.TrimSpace(output(t, url, "list", "--json", key)), "\n"); len(lines) != 2 {
		t.Errorf("the list has %d lines, want 2: %q", len(lines), lines)
	}
	if list := output(t, url, "list", "nothing "+key); strings.Count(list, "\n") != 1 {
		t.Errorf("the list of nothing:\n%s", list)
	}
	locktest.MustUnlock(t, slot)
	locktest.MustUnlock(t, lease)
	p.exits(0)
}

// Where there is no terminal, each change is a line.
func TestWatch(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	p := lockerOn(t, url, "watch", "-interval", "10ms", key)
	asObjects := lockerOn(t, url, "watch", "-json", "-interval", "10ms", key)
	next := func(want string, held bool) {
		t.Helper()
		if line := p.line(); !strings.Contains(line, key+": "+want) {
			t.Errorf("it says %q, want %q", line, want)
		}
		var o change
		if err := json.Unmarshal([]byte(asObjects.line()), &o); err != nil || o.Lock == nil || o.Lock.Held != held {
			t.Errorf("the object is %+v, %v", o, err)
		}
	}
	next("free", false)
	lease := locktest.MustLock(t, c, key)
	next("held by the test", true)
	locktest.MustUnlock(t, lease)
	next("free", false)
	p.signal(syscall.SIGINT)
	p.exits(128 + int(syscall.SIGINT))
}

// On a terminal, the picture is drawn again and again.
func TestWatchOnTerminal(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	c := observer(t, url)
	term := newTerminal(t, url, `$locker watch -interval 10ms `+key+`; echo ended=$?`)
	term.shows(key + ": free")
	lease := locktest.MustLock(t, c, key)
	term.shows(key + ": held")
	term.shows("the test")
	locktest.MustUnlock(t, lease)
	term.types("\x03")
	term.shows("ended=130")
}

func TestPing(t *testing.T) {
	t.Parallel()
	url := redisURL(t)
	if got := output(t, url, "ping"); !regexp.MustCompile(`^ok, [\d.]+.?s\n$`).MatchString(got) {
		t.Errorf("it says %q", got)
	}
	if got := output(t, url, "ping", "-json"); !strings.HasPrefix(got, `{"ok":true,"seconds":0.`) {
		t.Errorf("it says %q", got)
	}
	lockerOn(t, "redis://127.0.0.1:1", "ping").exits(exitUnavailable)
	if got := output(t, "", "version"); !strings.HasPrefix(got, "locker ") {
		t.Errorf("it says %q", got)
	}
}

// help is what a command prints that asks no store.
func help(t *testing.T, args ...string) string {
	t.Helper()
	var text strings.Builder
	root := (&app{stdout: &text, stderr: &text}).command()
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		t.Fatalf("locker %v: %v", args, err)
	}
	return text.String()
}

// Help fits a screen.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"-h", "help", "run -h", "lead -h", "show -h", "list -h", "watch -h", "revoke -h", "break -h", "ping -h",
		"doctor -h",
	} {
		text := help(t, strings.Fields(args)...)
		lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
		if len(lines) > 30 {
			t.Errorf("locker %s has %d lines", args, len(lines))
		}
		for _, line := range lines {
			if len(line) > 80 {
				t.Errorf("locker %s has a line of %d characters: %s", args, len(line), line)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if text := help(t, "completion", shell); !strings.Contains(text, "locker") {
			t.Errorf("no completion for %s", shell)
		}
	}
}

// The manual pages are made from the help.
func TestManual(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", "-tags", "man", ".", "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	page, err := os.ReadFile(dir + "/locker-run.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Run a command while holding a lock", "\\fB--ttl\\fP", "75 somebody else has it"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page about run has no %q:\n%s", want, page)
		}
	}
}

// What somebody else has written into the store, as a name or a reason, is no command for a terminal.
func TestVisible(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	evil := "\x1b[2J\nlocker: \u202eevil"
	p := lockerOn(t, url, "run", "-name", evil, key, "--", "sh", "-c", "echo up; read x")
	p.says("up")
	q := lockerOn(t, url, "show", key)
	q.exits(0)
	l := lockerOn(t, url, "list", key)
	l.exits(0)
	lockerOn(t, url, "revoke", "-reason", evil, key).exits(0)
	p.exits(exitLost)
	texts := p.stderr.String()
	for line := range q.out {
		texts += line + "\n"
	}
	for line := range l.out {
		texts += line + "\n"
	}
	if strings.ContainsAny(texts, "\x1b\u202e") || strings.Count(texts, "evil") != 3 {
		t.Errorf("it shows %q", texts)
	}
}
