package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/redistest"
)

// element is one of an SVG.
type element struct {
	name, class, text string
	attr              map[string]string
}

// number is an attribute that is one.
func (e element) number(t *testing.T, name string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(e.attr[name], 64)
	if err != nil {
		t.Errorf("%s of a %s: %v", name, e.name, err)
	}
	return n
}

// parseSVG returns the elements that have a given class, and all of a given name.
func parseSVG(t *testing.T, svg []byte) (class, named func(string) []element) {
	t.Helper()
	var all []element
	var open []int
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attr: make(map[string]string)}
			for _, a := range token.Attr {
				e.attr[a.Name.Local] = a.Value
			}
			e.class = e.attr["class"]
			open = append(open, len(all))
			all = append(all, e)
		case xml.CharData:
			if len(open) > 0 {
				all[open[len(open)-1]].text += string(token)
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		}
	}
	choose := func(ok func(element) bool) (chosen []element) {
		for _, e := range all {
			if ok(e) {
				chosen = append(chosen, e)
			}
		}
		return chosen
	}
	return func(class string) []element {
			return choose(func(e element) bool { return slices.Contains(strings.Fields(e.class), class) })
		}, func(name string) []element {
			return choose(func(e element) bool { return e.name == name })
		}
}

// fixed is a story of three workers, with jobs of 100 ms: one crashes at 0.25 s, and the next one leads a second later.
func fixed() []event {
	const ms = time.Millisecond
	var events []event
	add := func(at time.Duration, e event) {
		e.at = at
		events = append(events, e)
	}
	work := func(from time.Duration, e event, jobs ...int64) {
		for i, job := range jobs {
			e.job, e.what = job, starts
			add(from+time.Duration(i)*100*ms, e)
			e.what = done
			add(from+time.Duration(i+1)*100*ms, e)
		}
	}
	a, b, c := event{
		worker: "a",
		token:  123450011,
	}, event{
		worker: "<b&>",
		token:  123450022,
	}, event{
		worker: "c",
		token:  123450033,
	}
	as := func(e event, what kind) event { e.what = what; return e }
	add(0, as(c, joins))
	add(0, as(a, joins))
	add(0, as(b, joins))
	add(0, as(a, leads))
	work(0, a, 1, 2)
	add(200*ms, event{worker: "a", what: starts, job: 3, token: a.token})
	add(250*ms, event{worker: "a", what: crashes, job: 3})
	add(1250*ms, event{worker: "<b&>", what: leads, token: b.token, before: Handover{From: "a", Ago: 1050 * ms}})
	work(1250*ms, b, 3, 4)
	add(1400*ms, event{worker: "a", what: comesTo, job: 3})
	add(1450*ms, event{worker: "a", what: lost, token: a.token, err: errors.New("cut off")})
	add(1450*ms, event{worker: "a", what: insists, job: 3, token: a.token})
	add(1450*ms, event{worker: "a", what: refused, job: 3, token: a.token, err: ErrDeposed})
	add(1450*ms, as(b, isToStop))
	add(1450*ms, as(b, leaves))
	add(1451*ms, event{worker: "c", what: leads, token: c.token, before: Handover{From: "<b&>", Left: true, Ago: ms}})
	work(1451*ms, c, 5)
	add(2000*ms, as(c, leaves))
	return events
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	class, named := parseSVG(t, newTimeline("a & b.", fixed()).svg())
	x := func(seconds float64) float64 { return leftEdge + (rightEdge-leftEdge)*seconds/2 }
	at := func(what string, es []element, attr string, want ...float64) {
		t.Helper()
		var got []float64
		for _, e := range es {
			got = append(got, e.number(t, attr))
		}
		if !slices.EqualFunc(got, want, func(a, b float64) bool { return a-b < 0.1 && b-a < 0.1 }) {
			t.Errorf("%s: %s is %.1f; want %.1f", what, attr, got, want)
		}
	}
	texts := func(what string, es []element, want ...string) {
		t.Helper()
		var got []string
		for _, e := range es {
			if e.name == "text" {
				got = append(got, e.text)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q; want %q", what, got, want)
		}
	}
	texts("the rows, by who leads first", class("name"), "queue", "a", "<b&>", "c")
	at("terms", class("leads"), "x", x(0), x(1.25), x(1.451))
	at("terms", class("leads"), "width", x(0.25)-x(0), x(1.45)-x(1.25), x(2)-x(1.451))
	at("the lease of the dead", class("runs-out"), "x", x(0.25))
	at("the lease of the dead", class("runs-out"), "width", x(1.25)-x(0.25))
	at("what the queue accepts", class("fence"), "x", x(0), x(1.25), x(1.451))
	at("results", class("accepted"), "cx", x(0.1), x(0.2), x(1.35), x(1.45), x(1.551))
	if jobs, cut := class("job"), class("dropped"); len(jobs) != 5 || len(cut) != 1 {
		t.Errorf("%d jobs done and %d cut; want 5 and 1", len(jobs), len(cut))
	}
	texts("crash", class("crash"), "crashes: nothing is unlocked")
	texts("refusal", class("refused"), "refuses job 3: token …11")
	texts("handovers", class("handover"), "leads with token …22, 1s after the crash",
		"leads with token …33, 1ms after <b&> left")
	for _, c := range []struct {
		class string
		paths int
	}{{"crash", 1}, {"refused", 2}, {"handover", 2}} { // a cross, a cross and an arrow, arrows
		paths := slices.DeleteFunc(class(c.class), func(e element) bool { return e.name != "path" })
		if len(paths) != c.paths {
			t.Errorf("%d lines for %s; want %d", len(paths), c.class, c.paths)
		}
	}
	texts("axis", class("axis"), "0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1 s", "1.2 s", "1.4 s", "1.6 s", "1.8 s",
		"2 s")
	if desc := named("desc"); len(desc) != 1 || !strings.HasPrefix(desc[0].text, "a & b.\n") ||
		!strings.Contains(desc[0].text, "1.450 s: a is refused by the queue: deposed.\n") {
		t.Errorf("the description: %v", desc)
	}
	overlaps(t, named("text"))
}

// overlaps looks for texts that are beyond the edge, or cover one another.
func overlaps(t *testing.T, texts []element) {
	t.Helper()
	type box struct{ x1, x2, y1, y2 float64 }
	var boxes []box
	for _, e := range texts {
		x, y, w := e.number(t, "x"), e.number(t, "y"), 6*float64(len([]rune(e.text))) // a font that is not the widest
		switch {
		case e.attr["text-anchor"] == "end":
			x -= w
		case e.attr["text-anchor"] == "middle" || slices.Contains([]string{"number", "middle"}, e.class):
			x -= w / 2
		}
		b := box{x, x + w, y - 9, y + 2}
		if b.x1 < 0 || b.x2 > width {
			t.Errorf("%q reaches from %.0f to %.0f", e.text, b.x1, b.x2)
		}
		for i, o := range boxes {
			if b.x1 < o.x2 && o.x1 < b.x2 && b.y1 < o.y2 && o.y1 < b.y2 {
				t.Errorf("%q covers %q", e.text, texts[i].text)
			}
		}
		boxes = append(boxes, b)
	}
}

// A story that ends early, or never began, is drawn as far as it goes.
func TestTimelineOfPart(t *testing.T) {
	t.Parallel()
	events := fixed()
	for n := range events {
		class, _ := parseSVG(t, newTimeline("part", events[:n]).svg())
		if len(class("name")) == 0 {
			t.Errorf("after %d events there is not even a queue", n)
		}
	}
}

// TestStoryDrawn draws real ones.
func TestStoryDrawn(t *testing.T) {
	t.Parallel()
	for backend, flags := range map[string][]string{
		memory:  {"-workers", "5"},
		"redis": {"-backend", "redis://" + redistest.Address(t) + "/0"},
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "story.svg")
			tellStory(t, append(flags, "-timeline", file, "-job", "20ms", "-ttl", "500ms"))
			svg, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			class, named := parseSVG(t, svg)
			for what, want := range map[string]int{
				"leads": 3, "fence": 3, "runs-out": 1, "job": lastJob, "accepted": lastJob, "dropped": 1,
				"arrow": 3, "cross": 2, "crash": 2, "refused": 3, "handover": 4,
			} {
				if got := len(class(what)); got != want {
					t.Errorf("%d times %s; want %d", got, what, want)
				}
			}
			if !strings.Contains(fmt.Sprint(named("desc")), "is refused by the queue: deposed by w") {
				t.Errorf("the description: %v", named("desc"))
			}
			overlaps(t, named("text"))
		})
	}
}

func TestTimelineNotWritten(t *testing.T) {
	t.Parallel()
	var problems strings.Builder
	code := run([]string{"-timeline", t.TempDir(), "-job", "5ms", "-ttl", "500ms"}, io.Discard, &problems, nil)
	if code != exitFailure || !strings.Contains(problems.String(), "-timeline: ") {
		t.Errorf("exit status %d, %s", code, problems.String())
	}
}
