package backends

import (
	"strings"
	"testing"
)

// FuzzAnswers has what a server may say to the questions of Speaks. It is taken for what it says it is, if anything.
func FuzzAnswers(f *testing.F) {
	for _, answer := range []string{
		"S", "N", "+PONG\r\n", "-NOAUTH x", "-ERR unknown", "HTTP/1.1 400", "\x00\x00\x12\x04\x00\x00\x00\x00\x00", "E", "",
	} {
		f.Add([]byte(answer))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		text := string(answer)
		if got, want := ofPostgres(answer) != "", text == "S" || text == "N"; got != want {
			t.Errorf("%q is of Postgres: %v", answer, got)
		}
		switch kind := ofText(answer); kind {
		case "Redis":
			if !strings.HasPrefix(text, "+PONG") && !strings.HasPrefix(text, "-") {
				t.Errorf("%q is of Redis", answer)
			}
		case "an HTTP server":
			settings := len(answer) >= 9 && answer[3] == 4 // the first frame of HTTP/2
			if !strings.HasPrefix(text, "HTTP/") && !settings {
				t.Errorf("%q is of HTTP", answer)
			}
		case "":
			for _, known := range []string{"+PONG", "-NOAUTH", "-LOADING", "-DENIED", "-ERR", "HTTP/"} {
				if strings.HasPrefix(text, known) {
					t.Errorf("%q is of nothing that is known", answer)
				}
			}
		default:
			t.Errorf("%q is of %q", answer, kind)
		}
	})
}
