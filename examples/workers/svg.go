package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// Sizes of the picture, in pixels.
const (
	width      = 800
	leftEdge   = 76  // where the time axis begins
	rightEdge  = 776 // and ends
	top        = 72
	barHeight  = 24
	noteHeight = 17
	rowGap     = 12

	// Of one letter: guesses on the safe side, as the font is the reader's.
	letter      = 7.3
	smallLetter = 6.7
	boldLetter  = 8.2
)

// style has colours for a ground of its own: the page may be light or dark.
const style = `
	text { font: 12px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: #334155 }
	.ground { fill: #ffffff; stroke: #cbd5e1 }
	.title { font-size: 17px; font-weight: 600; fill: #0f172a }
	.name { font-weight: 600; fill: #0f172a }
	.axis { fill: #64748b }
	.grid { stroke: #eef2f7 }
	.waits { stroke: #94a3b8; stroke-width: 2; stroke-dasharray: 5 4 }
	.frozen { stroke: #94a3b8; stroke-width: 2; stroke-dasharray: 1 5; stroke-linecap: round }
	.leads, .fence { fill-opacity: 0.22 }
	.job { fill-opacity: 0.95 }
	.dropped { fill-opacity: 0.45 }
	.number { fill: #ffffff; font-weight: 600; text-anchor: middle }
	.middle { text-anchor: middle }
	.small { font-size: 11px; fill: #475569 }
	.tick { stroke: #94a3b8 }
	.arrow { stroke: #475569; stroke-width: 1.5; fill: none; marker-end: url(#head) }
	.arrow.refused { stroke: #dc2626; marker-end: url(#refusal) }
	.cross { stroke: #dc2626; stroke-width: 3; stroke-linecap: round }
	text.crash, text.refused { fill: #b91c1c; font-weight: 600 }
	text.handover { fill: #0f172a }
	.accepted { fill: #334155 }
	.term0 { fill: #2563eb } .term1 { fill: #0f766e } .term2 { fill: #7c3aed } .term3 { fill: #b45309 }
	.runs-out { fill: #e2e8f0; stroke: #94a3b8; stroke-dasharray: 3 3 }
`

// drawing is a timeline on its way to an SVG.
type drawing struct {
	*timeline
	out    bytes.Buffer
	y      []int      // where the bars of the rows begin
	placed [][]placed // the notes of the rows
}

// placed is a note with its place above the bar: a lane, and on which side of its moment the text is.
type placed struct {
	note
	lane  int
	x     float64
	start bool // the text begins at x, else it ends there
	tick  bool // a line leads from the bar to the text
}

// svg draws the timeline.
func (tl *timeline) svg() []byte {
	d := &drawing{timeline: tl}
	height := top
	for i := range tl.rows {
		notes, lanes := d.place(i)
		d.placed = append(d.placed, notes)
		d.y = append(d.y, height+lanes*noteHeight)
		height = d.y[i] + barHeight + rowGap
	}
	d.frame(height)
	for i, r := range tl.rows {
		d.print(`<text class="name" x="16" y="%d">%s</text>`, d.y[i]+16, escape(r.name))
		for _, s := range r.spans {
			d.span(s, d.y[i])
		}
	}
	for i := range tl.rows {
		for _, n := range d.placed[i] {
			d.note(n, i)
		}
	}
	d.print("</svg>")
	return d.out.Bytes()
}

func (d *drawing) print(format string, args ...any) { fmt.Fprintf(&d.out, format+"\n", args...) }

func escape(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes everything
	return b.String()
}

// x is where a moment is.
func (d *drawing) x(at time.Duration) float64 {
	return leftEdge + (rightEdge-leftEdge)*at.Seconds()/max(d.end, time.Millisecond).Seconds()
}

// term is the class of the colour for a token.
func (d *drawing) term(token uint64) string {
	return fmt.Sprintf("term%d", max(0, slices.Index(d.terms, token))%4)
}

// frame draws everything but the rows.
func (d *drawing) frame(bottom int) {
	height := bottom + 30
	d.print(
		`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-labelledby="title story">`,
		width,
		height,
	)
	d.print("<title id=\"title\">%s</title>\n<desc id=\"story\">%s</desc>\n<style>%s</style>", headline,
		escape(d.about+"\n"+d.story), style)
	for _, head := range [][2]string{{"head", "#475569"}, {"refusal", "#dc2626"}} {
		d.print(
			`<marker id="%s" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="%s"/></marker>`,
			head[0],
			head[1],
		)
	}
	d.print(`<rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="8"/>`, width-1, height-1)
	d.print(`<text class="title" x="16" y="30">%s</text>`, headline)
	d.print(`<text x="16" y="50">%s</text>`, escape(d.about))
	step := step(d.end)
	for at := time.Duration(0); at <= d.end; at += step {
		d.print(`<path class="grid" d="M%.1f %dV%d"/>`, d.x(at), top, bottom)
		d.print(`<text class="axis" x="%.1f" y="%d" text-anchor="middle">%g s</text>`, d.x(at), bottom+16, at.Seconds())
	}
}

const headline = "Two handovers: after a crash, and after a polite goodbye"

// step is the distance of the marks on an axis, of which there are to be ten at the most.
func step(end time.Duration) time.Duration {
	for step := time.Millisecond; ; step *= 10 {
		for _, n := range []time.Duration{1, 2, 5} {
			if end/(n*step) <= 10 {
				return n * step
			}
		}
	}
}

// span draws what a row shows for a while.
func (d *drawing) span(s span, y int) {
	x, w := d.x(s.from), d.x(s.to)-d.x(s.from)
	const middle, baseline = barHeight / 2, barHeight/2 + 4
	switch s.class {
	case "waits", "frozen":
		d.print(`<path class="%s" d="M%.1f %dh%.1f"/>`, s.class, x, y+middle, w)
		d.within("small", s, x+6, y+middle-4)
	case "fence":
		d.rect(s, x, w, y, 0)
		d.within("small", s, x+6, y+middle)
	case "runs-out":
		d.rect(s, x, w, y, 0)
		d.within("middle", s, x+w/2, y+baseline)
	case "job", "dropped":
		d.rect(s, x+0.5, max(w-1, 1), y, 3)
		d.within("number", s, x+w/2, y+baseline)
	default:
		d.rect(s, x, w, y, 0)
	}
}

// rect draws a bar, less high at both sides by so much.
func (d *drawing) rect(s span, x, w float64, y, less int) {
	d.print(
		`<rect class="%s %s" x="%.1f" y="%d" width="%.1f" height="%d" rx="3"/>`,
		s.class,
		d.term(s.token),
		x,
		y+less,
		w,
		barHeight-2*less,
	)
}

// within writes the text of a span, or the brief one, if there is room.
func (d *drawing) within(class string, s span, x float64, y int) {
	each := letter
	if class == "small" {
		each = smallLetter
	}
	for _, text := range []string{s.text, s.brief} {
		if text != "" && textWidth(text, each)+8 <= d.x(s.to)-d.x(s.from) {
			d.print(`<text class="%s" x="%.1f" y="%d">%s</text>`, class, x, y, escape(text))
			return
		}
	}
}

func textWidth(text string, letter float64) float64 {
	return letter * float64(utf8.RuneCountInString(text))
}

// note draws a note, with what shows its moment.
func (d *drawing) note(n placed, i int) {
	y := d.y[i]
	switch n.class {
	case "accepted":
		d.print(`<circle class="accepted" cx="%.1f" cy="%d" r="2.5"/>`, n.x, y+barHeight-6)
		return
	case "crash":
		d.cross(n.class, n.x, y+barHeight/2)
	}
	baseline := y - 6 - n.lane*noteHeight
	if n.tick {
		d.print(`<path class="tick" d="M%.1f %dV%d"/>`, n.x, y, baseline-10)
	}
	switch from := slices.Index(d.rows, n.from); {
	case from < 0:
	case from < i:
		d.print(`<path class="arrow %s" d="M%.1f %dV%d"/>`, n.class, n.x, d.y[from]+barHeight, y)
	default: // it is turned away at the door
		d.print(`<path class="arrow %s" d="M%.1f %dV%d"/>`, n.class, n.x, d.y[from]+barHeight/2, y+barHeight+10)
		d.cross(n.class, n.x, y+barHeight+3)
	}
	anchor, x := "start", n.x+beside
	if !n.start {
		anchor, x = "end", n.x-beside
	}
	d.print(`<text class="%s" x="%.1f" y="%d" text-anchor="%s">%s</text>`, n.class, x, baseline, anchor, escape(n.text))
}

func (d *drawing) cross(class string, x float64, y int) {
	d.print(`<path class="cross %s" d="M%.1f %dl10 10m0 -10l-10 10"/>`, class, x-5, y-5)
}

// beside is how far a text is from the moment that it belongs to.
const beside = 8

// area is a part of one lane above a bar, or of all if that is negative.
type area struct {
	lane     int
	from, to float64
}

// place finds places for the notes of a row, and says how many lanes they take. No text covers another one, or a line.
func (d *drawing) place(i int) (notes []placed, lanes int) {
	var taken []area
	for j, r := range d.rows { // arrows cross the lanes of the lower row
		for _, n := range r.notes {
			if n.from != nil && max(slices.Index(d.rows, n.from), j) == i {
				taken = append(taken, area{-1, d.x(n.at) - beside/2, d.x(n.at) + beside/2})
			}
		}
	}
	free := func(a area) bool {
		return a.from >= leftEdge && a.to <= width-beside && !slices.ContainsFunc(taken, func(t area) bool {
			return (t.lane < 0 || t.lane == a.lane) && a.from < t.to && t.from < a.to
		})
	}
	for _, n := range slices.Backward(d.rows[i].notes) { // those further to the right have fewer places to go
		p := placed{note: n, x: d.x(n.at), start: true}
		if n.text != "" {
			from := slices.Index(d.rows, n.from)
			p.tick = from < 0 || from > i // else the arrow shows the moment
			for p.lane < len(d.rows[i].notes) && !free(p.area()) {
				if p.start = !p.start; p.start {
					p.tick = p.tick && free(area{p.lane, p.x - 1, p.x + 1})
					p.lane++
				}
			}
			lanes = max(lanes, p.lane+1)
			taken = append(taken, p.area())
			for lane := 0; p.tick && lane <= p.lane; lane++ {
				taken = append(taken, area{lane, p.x - 1, p.x + 1})
			}
		}
		notes = append(notes, p)
	}
	slices.Reverse(notes)
	return notes, lanes
}

// area is where the text is.
func (p *placed) area() area {
	w := textWidth(p.text, letter)
	if p.class == "crash" || p.class == "refused" {
		w = textWidth(p.text, boldLetter)
	}
	if p.start {
		return area{p.lane, p.x + beside, p.x + beside + w}
	}
	return area{p.lane, p.x - beside - w, p.x - beside}
}
