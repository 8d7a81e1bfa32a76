package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
)

// write writes the log, the spans and a picture of both and the metrics, each a file.
func (r *recorded) write(t *testing.T, dir string) {
	var spans strings.Builder
	for _, s := range r.spans.Ended() {
		took := s.EndTime().Sub(s.StartTime())
		if took > time.Second || s.Status().Code == codes.Error {
			fmt.Fprintf(&spans, "%6.2fs +%5.2fs  %s  %s", s.StartTime().Sub(r.begin).Seconds(), took.Seconds(),
				s.Name(), s.Status().Code)
			for _, a := range s.Attributes() {
				fmt.Fprintf(&spans, "  %s=%s", a.Key, a.Value.String())
			}
			fmt.Fprintf(&spans, "  %s\n", s.Status().Description)
		}
	}
	for name, text := range map[string]string{
		"failover.log": r.log.String(), "failover.spans": spans.String(), "failover.svg": r.picture(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}

const (
	width, height = 760, 110
	left, top     = 60, 60
	gap           = 46
)

// picture is an SVG with a panel for each thing to look at, from some seconds before the master died on.
func (r *recorded) picture() string {
	var b strings.Builder
	from := r.down - 8*time.Second
	x := func(at time.Duration) float64 { return left + float64(at-from)/float64(r.end-from)*width }
	y := top
	panel := func(title string, most float64, unit string) func(v float64) float64 {
		fmt.Fprintf(&b, `<text x="12" y="%d" font-size="13" font-weight="bold" fill="#222">%s</text>`+"\n", y-8, title)
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#f3e3c8"/>`+"\n", x(r.down), y,
			x(r.recovered())-x(r.down), height)
		for i := range 3 {
			if most == 0 {
				break
			}
			v := float64(i) / 2
			at := float64(y) + (1-v)*height
			fmt.Fprintf(&b, `<path d="M%d %.1fh%d" stroke="#ddd"/>`, left, at, width)
			fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end" fill="#555">%.4g%s</text>`+"\n",
				left-5, at+4, v*most, unit)
		}
		for s := from.Truncate(5*time.Second) + 5*time.Second; s < r.end; s += 5 * time.Second {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555">%.0f s</text>`+"\n",
				x(s), y+height+13, s.Seconds())
		}
		at := float64(y)
		y += height + gap
		return func(v float64) float64 { return at + (1-min(v/most, 1))*height }
	}
	line := func(h func(float64) float64, color, name string, label int, v func(scraped) float64) {
		var points strings.Builder
		for _, s := range r.samples {
			if s.at >= from && s.at <= r.end {
				fmt.Fprintf(&points, "%.1f,%.1f ", x(s.at), h(v(s)))
			}
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.3"/>`+
			`<text x="%d" y="%.1f" fill="%s">%s</text>`+"\n",
			points.String(), color, left+width+8, h(0)-float64(14*label), color, name)
	}
	since := func(name, label string) func(scraped) float64 {
		var first scraped
		for _, s := range r.samples {
			if s.at < r.down {
				first = s
			}
		}
		return func(s scraped) float64 { return max(0, s.sum(name, label)-first.sum(name, label)) }
	}

	h := panel("Leases held, and calls of Lock that wait", 12, "")
	line(h, "#1f6fb4", "held", 1, func(s scraped) float64 { return s.sum("locker_leases", "") })
	line(h, "#b4501f", "waiting", 2, func(s scraped) float64 { return s.sum("locker_waiters", "") })

	h = panel("Left of the TTL when a renewal was answered", 100, " %")
	for i, s := range r.samples[1:] {
		n := s.sum("locker_renewal_slack_count", "") - r.samples[i].sum("locker_renewal_slack_count", "")
		slack := s.sum("locker_renewal_slack_sum", "") - r.samples[i].sum("locker_renewal_slack_sum", "")
		if n > 0 && s.at >= from && s.at <= r.end {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#1f6fb4"/>`+"\n", x(s.at), h(100*slack/n))
		}
	}

	h = panel("Counted since the master died", 100, "")
	line(h, "#b4501f", "retries", 2, since("locker_retries_total", "unavailable"))
	line(h, "#8a2be2", "calls failed", 3, since("locker_acquire_duration_seconds_count", `"unavailable"`))
	line(h, "#b01030", "leases lost", 1, since("locker_leases_lost_total", ""))
	line(h, "#4a8a2a", "unlocks failed", 4, since("locker_release_errors_total", ""))

	at := float64(y)
	panel("Spans of Lock, one below the other (red: an error)", 0, "")
	row := 0
	for _, s := range r.spans.Ended() {
		begin, end := max(s.StartTime().Sub(r.begin), from), min(s.EndTime().Sub(r.begin), r.end)
		if end < from || begin > r.end {
			continue
		}
		row++
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="1.8" fill="%s"/>`+"\n", x(begin),
			at+float64(row%(height/2))*2, max(1, x(end)-x(begin)), colorOf(s))
	}
	title := fmt.Sprintf("Three workers of examples/metrics on Redis with Sentinel, TTL 10 s. "+
		"The master is killed at %.1f s, and is back, as a replica, at %.1f s.", r.down.Seconds(), r.up.Seconds())
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" `+
		`font-family="Helvetica,Arial,sans-serif" font-size="11">`+"\n"+
		`<rect width="100%%" height="100%%" fill="#fff"/>`+"\n"+
		`<text x="12" y="20" font-size="12" fill="#333">%s</text>`+"\n%s</svg>\n",
		left+width+170, y-gap+30, title, b.String())
}

func colorOf(s trace.ReadOnlySpan) string {
	if s.Status().Code == codes.Error {
		return "#b01030"
	}
	return "#1f6fb4"
}

// recovered is when the first call succeeded that was begun when the master had died.
func (r *recorded) recovered() time.Duration {
	first := r.end
	for _, s := range r.spans.Ended() {
		if end := s.EndTime().Sub(r.begin); s.StartTime().Sub(r.begin) > r.down && s.Status().Code != codes.Error {
			first = min(first, end)
		}
	}
	return first
}
