package pglock

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker/internal/pgtest"
)

// TestTimeoutOnItsWay: what idle_session_timeout the server has depends on what was sent last, not on what it has
// confirmed.
func TestTimeoutOnItsWay(t *testing.T) {
	t.Parallel()
	const first, second = 10 * time.Second, 5 * time.Second
	pool, err := pgxpool.New(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	for name, tc := range map[string]struct {
		text string        // of the message that takes the second one along
		then time.Duration // is wanted, while that is on its way
	}{
		"back to the first": {"SELECT %d, pg_sleep(0.5)", first},
		"the same again":    {"SELECT %d, pg_sleep(0.5)", second},
		"and it fails":      {"SELECT %d, pg_sleep(0.5), 1/0", second},
	} {
		t.Run(name, func(t *testing.T) {
			b := Config{}.forPool(pool).(*backend)
			t.Cleanup(func() { _ = b.Close() })
			s, err := b.open(first, toLock)
			if err != nil {
				t.Fatal(err)
			}
			answers := make(chan answer, 2)
			ask := func(text string, timeout time.Duration) {
				b.mu.Lock()
				s.setTimeout(timeout)
				b.mu.Unlock()
				s.askText(&message{answered: func(a answer) { answers <- a }}, text)
			}
			ask(tc.text, second)
			ask("SELECT %d, setting FROM pg_settings WHERE name = 'idle_session_timeout'", tc.then)
			<-answers
			a := <-answers
			if a.err != nil {
				t.Fatal(a.err)
			}
			if got, want := a.rows[0][1], fmt.Sprint(tc.then.Milliseconds()); got != want {
				t.Errorf("the server has %s ms; want %s ms", got, want)
			}
			if least := s.idleTimeout(); least > tc.then {
				t.Errorf("the session takes it for %v", least)
			}
		})
	}
}

// TestTimeoutIsSetOnce, and not with each message.
func TestTimeoutIsSetOnce(t *testing.T) {
	t.Parallel()
	s := &wire{want: time.Second, timeout: time.Minute}
	if !s.needsTimeout() {
		t.Error("the server has another one, and is not told")
	}
	s.timeout = time.Second
	s.out = []*message{{timeout: time.Second}, {}}
	if s.needsTimeout() {
		t.Error("the server has that one, and is told again")
	}
	s.out[0].timeout = time.Minute
	if !s.needsTimeout() {
		t.Error("the server is about to have another one, and is not told")
	}
}
