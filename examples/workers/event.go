package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// event is something that happens to a worker.
type event struct {
	at     time.Duration // since the beginning; known to a fleet only
	worker string
	what   kind
	token  uint64   // of its lease, while it leads
	job    int64    // which the event concerns, if any
	before Handover // for leads
	err    error    // why
}

// kind is what happens.
type kind int

const (
	joins    kind = iota // from now on, the worker waits for its turn to lead
	leads                // it has the lease, and has claimed the queue
	starts               // a job
	done                 // a job: the queue has accepted the result
	drops                // a job that was cancelled, or whose result the queue did not take
	lost                 // the lease
	insists              // on handing in the result of a job though the lease is lost
	refused              // by the queue
	outage               // the locks or the queue cannot be reached
	leaves               // ceases to lead of its own accord, and unlocks
	finished             // all jobs are done

	// What the story does to workers.
	crashes  // in the middle of a job: its connection is cut, and its work stands still
	comesTo  // goes on where it was
	isToStop // as by a signal
)

// String describes the event in a line, without the worker's name.
func (e event) String() string {
	switch e.what {
	case joins:
		return "joins the fleet"
	case leads:
		return fmt.Sprintf("leads, token %d: %v", e.token, e.before)
	case starts:
		return fmt.Sprintf("job %d ...", e.job)
	case done:
		return fmt.Sprintf("job %d done, token %d", e.job, e.token)
	case drops:
		return fmt.Sprintf("drops job %d: %v", e.job, e.err)
	case lost:
		return fmt.Sprintf("has lost the lease: %v", e.err)
	case insists:
		return fmt.Sprintf("hands in job %d all the same, token %d", e.job, e.token)
	case refused:
		return fmt.Sprintf("is refused by the queue: %v", e.err)
	case outage:
		return fmt.Sprintf("meets an outage: %v", e.err)
	case leaves:
		return "leaves: unlocks"
	case finished:
		return "all jobs are done"
	case crashes:
		return fmt.Sprintf("crashes in the middle of job %d; nothing is unlocked", e.job)
	case comesTo:
		return fmt.Sprintf("comes back, as a process that was only frozen; it has job %d in hand", e.job)
	case isToStop:
		return fmt.Sprintf("is told to stop, in the middle of job %d", e.job)
	}
	return fmt.Sprintf("event %d", e.what)
}

// String says from whom a leader takes over.
func (h Handover) String() string {
	switch {
	case h.From == "":
		return "is the first leader"
	case h.Left:
		return fmt.Sprintf("%s left %s ago", h.From, short(h.Ago))
	}
	return fmt.Sprintf("%s vanished, was last heard of %s ago", h.From, short(h.Ago))
}

// short rounds a duration to what matters.
func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// console prints lines, each with the time and who it is about.
type console struct {
	mu    sync.Mutex
	out   io.Writer
	clock func() string
	width int // of the column of names
}

func (c *console) say(who, format string, args ...any) {
	text := oneLine.Replace(fmt.Sprintf(format, args...))
	c.mu.Lock()
	defer c.mu.Unlock()
	// There is nobody to tell if this fails.
	_, _ = fmt.Fprintf(c.out, "%s  %-*s  %s\n", c.clock(), c.width, who, text)
}

// logger returns one whose records are lines of the console, in which who is said to log them.
func (c *console) logger(who string) *slog.Logger {
	untimed := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(logLines{c, who}, &slog.HandlerOptions{ReplaceAttr: untimed}))
}

// logLines is where a logger writes to.
type logLines struct {
	console *console
	who     string
}

func (l logLines) Write(p []byte) (int, error) {
	l.console.say(l.who, "logs %s", bytes.TrimSpace(p))
	return len(p), nil
}

// oneLine folds an error of several lines, as those of pgx are that tried several addresses.
var oneLine = strings.NewReplacer("\n\t", " ", "\n", " ")
