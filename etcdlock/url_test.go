package etcdlock_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	config, err := etcdlock.ParseURL("etcds://me:se%3Fcret@one,two:4001,[::1]:4002?timeout=2s")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(config.Endpoints, []string{"one:2379", "two:4001", "[::1]:4002"}) ||
		config.Username != "me" || config.Password != "se?cret" {
		t.Errorf("%+v", config)
	}
}

// Whatever is wrong with a URL, and wherever its password ends up, an error does not show it.
func TestParseURLHidesPassword(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"secret", "secret#1", "1#secret", "secret/1", "1/secret", "secret?1", "1?secret", "1/secret?1",
		"1@1?secret", "secret%", "%secret", "secret:1", "1:secret", "secret,1", "1,secret", "1?secret=%"} {
		for _, rest := range []string{"@localhost?color=red", "@local host", "@localhost:1:2", "@", "@localhost/db?timeout=soon"} {
			_, err := etcdlock.ParseURL("etcd://me:" + password + rest)
			if !errors.Is(err, locker.ErrInvalidOption) {
				t.Errorf("%s%s: %v", password, rest, err)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("the password was printed: %v", err)
			}
		}
	}
}
