package pglock_test

import (
	"strings"
	"testing"

	"github.com/lockerkit/locker/pglock"
)

// TestPasswordInBrokenString has connection strings that are not easy to cut into pieces, as people forget to escape
// what is in their passwords.
func TestPasswordInBrokenString(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://app:" + secret + "/x@127.0.0.1:1/db", "postgres://app:" + secret + "#x@127.0.0.1:1/db",
		"postgres://app:" + secret + "?x@127.0.0.1:1/db", "postgres://app:" + secret + "%x@127.0.0.1:1/db",
		"postgres://app:x:" + secret + "@127.0.0.1:none/db", "postgres://app:x@" + secret + "@127.0.0.1:none/db",
		"postgres://app:" + secret + "[@127.0.0.1:1/db", "host=127.0.0.1 port=none password = " + secret,
		"host=127.0.0.1 password='" + secret + " port=none", `host=127.0.0.1 port=none password=x\ ` + secret,
	} {
		_, err := pglock.Open(t.Context(), dsn)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("Open of %q: the password is in %v", dsn, err)
		}
	}
}
