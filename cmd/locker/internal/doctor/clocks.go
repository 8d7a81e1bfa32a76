package doctor

import (
	"context"
	"slices"
	"time"
)

// samples is how often something is measured.
const samples = 9

// roundTrips measures how long a request takes that does nothing.
func roundTrips(ctx context.Context, ttl time.Duration, request func(context.Context) error) finding {
	var took []time.Duration
	for range samples {
		start := time.Now()
		if err := request(ctx); err != nil {
			if len(took) == 0 {
				return unknown("%v", err)
			}
			break // out of time: what was measured is the answer
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	median, most := took[len(took)/2], took[len(took)-1]
	const text = "median %s, at most %s, of %d; the TTL is %v"
	args := []any{short(median), short(most), len(took), ttl}
	const do = "Look at the network and the load of the server, or use a longer TTL."
	switch {
	case median > ttl/3:
		return fail(text, args...).remedy(do)
	case most > ttl/10:
		return warn(text, args...).remedy(do)
	}
	return ok(text, args...)
}

const whyRoundTrip = "A lease is renewed each third of its TTL, and lost if no renewal is answered in time. " +
	"Each Lock and Unlock takes a round trip, too."

// reading is what a server's clock shows, compared with the clock here.
type reading struct {
	ahead time.Duration
	error time.Duration // by so much the difference may be wrong: nobody knows when in between the server looked
}

// readClock reads the clock of a server, a few times: what took the shortest time is the best.
func readClock(ctx context.Context, read func(context.Context) (time.Time, error)) (best reading, err error) {
	for i := range 3 {
		start := time.Now()
		there, err := read(ctx)
		if err != nil {
			return best, err
		}
		half := time.Since(start) / 2
		if i == 0 || half < best.error {
			best = reading{ahead: there.Sub(start.Add(half)), error: half}
		}
	}
	return best, nil
}

// certain returns by how much the clocks differ at least.
func (r reading) certain() time.Duration { return max(r.ahead.Abs()-r.error, 0) }

// text says by how much the clock of a server differs from ours.
func (r reading) text() string {
	switch {
	case r.certain() == 0:
		return "the same time as here, to " + short(r.error)
	case r.ahead > 0:
		return "ahead of the clock here by " + short(r.ahead)
	}
	return "behind the clock here by " + short(-r.ahead)
}

// clockDifference is what people tolerate when they read times.
const clockDifference = time.Second

// compareClocks compares the clock of a server with ours.
func compareClocks(ctx context.Context, read func(context.Context) (time.Time, error)) finding {
	r, err := readClock(ctx, read)
	switch {
	case err != nil:
		return unknown("%v", err)
	case r.certain() > clockDifference:
		return warn("%s", r.text()).remedy("Have NTP set the clocks of both machines, by slewing and not by steps.")
	}
	return ok("%s", r.text())
}
