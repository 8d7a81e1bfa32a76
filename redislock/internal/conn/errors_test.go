package conn

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
)

// FuzzError has errors of any text. What they mean is of one class at most, and never that somebody has the lock.
func FuzzError(f *testing.F) {
	for _, r := range replies {
		f.Add(r.code + "and so on")
	}
	f.Add("ERR Error running script (call to f_0): @user_script:14: NOPERM this user has no permissions")
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range []*Client{{Single: true}, {Cluster: true}} {
			err := c.Explain(ScriptError(text))
			if !errors.Is(err, ScriptError(text)) || !strings.Contains(err.Error(), text) {
				t.Errorf("%q is forgotten: %v", text, err)
			}
			classes := 0
			for _, class := range []error{locker.ErrUnavailable, locker.ErrDenied, locker.ErrUnfit, locker.ErrClosed} {
				if errors.Is(err, class) {
					classes++
				}
			}
			if classes > 1 || errors.Is(err, locker.ErrLocked) || errors.Is(err, locker.ErrLost) {
				t.Errorf("%q is of %d classes: %v", text, classes, err)
			}
		}
	})
}
