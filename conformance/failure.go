package conformance

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// problem is a failed check.
type problem struct {
	saw   string
	at    string        // file:line of the check
	wrong bool          // on any machine, however busy
	over  time.Duration // for something that took too long: by how much
	hangs bool          // a watchdog says so

	median bool // what took too long was the median of several
}

func (p problem) String() string { return fmt.Sprintf("%s (%s)", p.saw, p.at) }

// gap is what has not been proven although the rule's test has run.
type gap struct {
	what   string
	leaves outcome // inPart, or notProvable if it is all of the rule
}

// failure says what the author of a backend has to know. What the same check saw again and again is shown once.
func (r rule) failure(v verdict) string {
	var b strings.Builder
	line := func(label, text string) { fmt.Fprintf(&b, "\n%-5s %s", label, wrap(text)) }
	line("did:", r.did)
	for _, saw := range summary(v.problems) {
		line("saw:", saw)
	}
	line("rule:", r.text)
	line("hint:", r.hint)
	if v.drew {
		line("seed:", fmt.Sprintf("%d (%s=%d draws the same again)", v.seed, seedVariable, v.seed))
	}
	if v.attempts > 1 {
		line(
			"note:",
			fmt.Sprintf("it was tried %d times, as the machine may have been busy: it was late by %v at most",
				v.attempts, v.worst.Round(time.Millisecond)),
		)
	}
	return b.String()
}

// summary describes problems, those of the same check together.
func summary(problems []problem) (all []string) {
	times := make(map[string]int)
	for _, p := range problems {
		times[p.at]++
	}
	for _, p := range problems {
		n := times[p.at]
		delete(times, p.at)
		switch n {
		case 0: // shown
		case 1:
			all = append(all, p.String())
		default:
			all = append(all, fmt.Sprintf("%s (%s; and %d more like it)", p.saw, p.at, n-1))
		}
	}
	return all
}

// wrap breaks text into lines for a terminal, unless it has lines already.
func wrap(text string) string {
	const width = 100
	if strings.Contains(text, "\n") {
		return text
	}
	var b strings.Builder
	column := 0
	for i, word := range strings.Split(text, " ") { // spaces in a quoted key stay as they are
		switch n := utf8.RuneCountInString(word); {
		case i == 0:
			column = n
		case column+1+n > width:
			b.WriteString("\n      ")
			column = n
		default:
			b.WriteByte(' ')
			column += 1 + n
		}
		b.WriteString(word)
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
