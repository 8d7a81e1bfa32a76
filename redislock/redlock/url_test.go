package redlock_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	servers, err := redlock.ParseURL("redlocks://me:se%3Fcret@one,two:4001,[::1]/2?read_timeout=4s")
	if err != nil {
		t.Fatal(err)
	}
	for i, addr := range []string{"one:6379", "two:4001", "[::1]:6379"} {
		o := servers[i]
		if o.Addr != addr || o.Username != "me" || o.Password != "se?cret" || o.DB != 2 ||
			o.ReadTimeout != 4*time.Second ||
			o.TLSConfig.ServerName == "" {
			t.Errorf("server %d: %+v", i, o)
		}
	}
	for url, want := range map[string]string{
		"redis://one,two,three":    "redlock://",
		"redlock://one,two,one":    "one:6379 is there twice",
		"redlock://me:secret@a b":  "a host is wanted",
		"redlock://one?color=red":  "color",
		"redlock://one,two,/x?y=%": "parameters",
	} {
		if _, err := redlock.ParseURL(url); !errors.Is(err, locker.ErrInvalidOption) ||
			!strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := redislock.ParseURL("redlock://one,two,three"); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("ParseURL of a Redlock: %v", err)
	}
}

func FuzzParseURL(f *testing.F) {
	for _, url := range []string{
		"redlock://a,b,c", "redlocks://u:p@a:1,[::1]:2,c/3?read_timeout=3s", "redlock://a,,", "redlock://a,A", "redlock:///1",
		"redlock://%",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		servers, err := redlock.ParseURL(url)
		if err != nil {
			if !errors.Is(err, locker.ErrInvalidOption) {
				t.Errorf("ParseURL(%q): %v; want ErrInvalidOption", url, err)
			}
			return
		}
		seen := make(map[string]bool)
		for _, o := range servers {
			if _, _, err := net.SplitHostPort(o.Addr); err != nil || seen[o.Addr] {
				t.Errorf("ParseURL(%q): server %q, twice: %v", url, o.Addr, seen[o.Addr])
			}
			seen[o.Addr] = true
			if (o.TLSConfig != nil) != strings.HasPrefix(url, "redlocks:") {
				t.Errorf("ParseURL(%q): TLS %v", url, o.TLSConfig != nil)
			}
		}
		if len(servers) == 0 {
			t.Errorf("ParseURL(%q): no servers", url)
		}
	})
}
