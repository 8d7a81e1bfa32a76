package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// draw writes the file of -timeline, if there is one.
func (f *fleet) draw() error {
	if f.cfg.timeline == "" {
		return nil
	}
	about := fmt.Sprintf(
		"%d workers, %s; a lease that is not renewed ends after %v. Numbers are jobs, dots their results.",
		f.cfg.workers, f.stage.where, f.cfg.ttl)
	if err := os.WriteFile(f.cfg.timeline, newTimeline(about, f.events).svg(), 0o644); err != nil {
		return fmt.Errorf("-timeline: %w", err)
	}
	f.say("drawn in %s", f.cfg.timeline)
	return nil
}

// timeline is what has happened, as rows on a time axis: the queue first, then those who led in the order in which they
// did, then the others. So what goes from one to another crosses nothing.
type timeline struct {
	about string
	story string // the events that matter, a line for each
	rows  []*row
	terms []uint64 // the tokens
	end   time.Duration
}

// row is what the queue or a worker did.
type row struct {
	name  string
	now   span // what it is doing; with class "" nothing
	job   time.Duration
	spans []span
	notes []note
}

// span is what a row shows for a while.
type span struct {
	class    string
	from, to time.Duration
	token    uint64
	text     string
	brief    string // if there is no room for the text
}

var waits = span{class: "waits", text: "waits in line"}

// note is what a row shows of a moment.
type note struct {
	class string
	at    time.Duration
	text  string
	from  *row // an arrow comes from there, if set
}

func newTimeline(about string, events []event) *timeline {
	tl := &timeline{about: about, rows: []*row{{name: "queue"}}}
	for _, what := range []kind{leads, joins} {
		for _, e := range events {
			tl.end = max(tl.end, e.at)
			if e.what == leads && what == leads {
				tl.terms = append(tl.terms, e.token)
			}
			if e.what == what && tl.row(e.worker) == nil {
				tl.rows = append(tl.rows, &row{name: e.worker})
			}
		}
	}
	for _, e := range events {
		tl.add(e)
		if slices.Contains([]kind{leads, crashes, comesTo, lost, refused, isToStop, leaves}, e.what) {
			tl.story += fmt.Sprintf("%.3f s: %s %v.\n", e.at.Seconds(), e.worker, e)
		}
	}
	for _, r := range tl.rows {
		r.become(tl.end, span{})
	}
	return tl
}

func (tl *timeline) row(worker string) *row {
	if i := slices.IndexFunc(tl.rows, func(r *row) bool { return r.name == worker }); i > 0 {
		return tl.rows[i]
	}
	return nil
}

// become ends what the row is doing, and begins something else.
func (r *row) become(at time.Duration, next span) {
	if r.now.class != "" {
		r.now.to = at
		r.spans = append(r.spans, r.now)
	}
	next.from = at
	r.now = next
}

// worked ends a job.
func (r *row) worked(class string, e event, token uint64) {
	r.spans = append(r.spans,
		span{class: class, from: r.job, to: e.at, token: token, text: strconv.FormatInt(e.job, 10)})
}

func (r *row) note(class string, e event, from *row, format string, args ...any) {
	r.notes = append(r.notes, note{class, e.at, fmt.Sprintf(format, args...), from})
}

// add notes an event.
func (tl *timeline) add(e event) {
	queue, r := tl.rows[0], tl.row(e.worker)
	if r == nil {
		return // it has not joined
	}
	switch e.what {
	case joins:
		r.become(e.at, waits)
	case leads:
		tl.takeOver(e, r)
		r.become(e.at, span{class: "leads", token: e.token})
		token := "token " + tl.short(e.token)
		queue.become(e.at, span{class: "fence", token: e.token, text: "accepts only " + token, brief: token})
	case starts:
		r.job = e.at
	case done:
		r.worked("job", e, e.token)
		queue.note("accepted", e, nil, "")
	case drops:
		r.worked("dropped", e, e.token)
	case crashes:
		r.worked("dropped", e, r.now.token)
		r.become(e.at, span{class: "runs-out", text: "the lease runs out"})
		r.note("crash", e, nil, "crashes: nothing is unlocked")
	case comesTo:
		r.note("returns", e, nil, "comes back")
	case lost:
		r.become(e.at, waits) // as soon as the job is out of its hands
	case refused:
		queue.note("refused", e, r, "refuses job %d: token %s", e.job, tl.short(e.token))
	case isToStop:
		r.note("told", e, nil, "is told to stop")
	case leaves:
		r.become(e.at, span{})
	case insists, outage, finished:
	}
}

// takeOver notes from whom a leader takes over.
func (tl *timeline) takeOver(e event, r *row) {
	before, token := tl.row(e.before.From), tl.short(e.token)
	switch {
	case before == nil:
		r.note("first", e, nil, "leads with token %s", token)
	case before.now.class == "runs-out":
		r.note("handover", e, before, "leads with token %s, %s after the crash", token, short(e.at-before.now.from))
		before.become(e.at, span{class: "frozen", text: "stands still"})
	case e.before.Left:
		r.note("handover", e, before, "leads with token %s, %s after %s left", token, short(e.before.Ago), before.name)
	default: // a machine that was busy is not in the story, but may get into it
		r.note("handover", e, before, "leads with token %s: %v", token, e.before)
	}
}

// short leaves out of a token what all of them begin with. (Those of Redis are made of a clock.)
func (tl *timeline) short(token uint64) string {
	digits := strconv.FormatUint(token, 10)
	common := len(digits)
	for _, t := range tl.terms {
		other := strconv.FormatUint(t, 10)
		for len(other) == len(digits) && other[:common] != digits[:common] {
			common--
		}
		if len(other) != len(digits) {
			return digits
		}
	}
	if common < 4 || common == len(digits) {
		return digits
	}
	return "…" + digits[common:]
}
