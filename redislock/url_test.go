package redislock_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for url, check := range map[string]func(o *redis.UniversalOptions) bool{
		"redis://": func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"localhost:6379"}) && o.TLSConfig == nil
		},
		"redis://me:se%3Fcret@one:7/3?read_timeout=4s&pool_size=5": func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"one:7"}) && o.Username == "me" && o.Password == "se?cret" && o.DB == 3 &&
				o.ReadTimeout == 4*time.Second && o.PoolSize == 5 && !o.IsClusterMode && o.MasterName == ""
		},
		"rediss://one?skip_verify=true": func(o *redis.UniversalOptions) bool {
			return o.TLSConfig.ServerName == "one" && o.TLSConfig.InsecureSkipVerify
		},
		"unix://me:secret@/run/redis.sock?db=2": func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"/run/redis.sock"}) && o.DB == 2 && o.Password == "secret"
		},
		"redis+sentinel://me:secret@one,two:4001,[::1]:4002/main/2?sentinel_username=s&sentinel_password=p": func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"one:26379", "two:4001", "[::1]:4002"}) && o.MasterName == "main" && o.DB == 2 &&
				o.Username == "me" && o.Password == "secret" && o.SentinelUsername == "s" && o.SentinelPassword == "p"
		},
		"rediss+sentinel://one/main": func(o *redis.UniversalOptions) bool {
			return o.TLSConfig != nil && o.TLSConfig.ServerName == "" && o.DB == 0
		},
		"redis+cluster://:secret@one,two:4001?max_redirects=7&dial_timeout=1s": func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"one:6379", "two:4001"}) && o.IsClusterMode && o.MaxRedirects == 7 &&
				o.Password == "secret" && o.Username == "" && o.DialTimeout == time.Second
		},
		"rediss+cluster://one": func(o *redis.UniversalOptions) bool {
			return o.TLSConfig != nil && o.TLSConfig.ServerName == "" && o.IsClusterMode
		},
	} {
		o, err := redislock.ParseURL(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
		} else if !check(o) {
			t.Errorf("%s: %+v", url, o)
		}
	}
}

// Whatever is wrong with a URL, and wherever its password ends up, an error does not show it.
func TestParseURLHidesPassword(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"redis", "unix", "redis+cluster", "rediss+sentinel"} {
		for _, password := range []string{
			"secret", "secret#1", "1#secret", "secret/1", "1/secret", "secret?1", "1?secret", "1/secret?1", "1@1?secret", "secret%", "%secret",
			"secret:1", "1:secret", "secret,1", "1,secret", "1?secret=%", "1/2?secret=1",
		} {
			for _, rest := range []string{"@localhost?color=red", "@local host", "@localhost:1:2", "@localhost/a/b/c", "@localhost/x?pool_size=big", "@one/main/0?db=x"} {
				url := scheme + "://me:" + password + rest
				_, err := redislock.ParseURL(url)
				if err == nil && strings.HasPrefix(url, "unix") {
					continue // nearly anything is a path
				}
				if !errors.Is(err, locker.ErrInvalidOption) {
					t.Errorf("%s: %v", url, err)
				} else if strings.Contains(err.Error(), "secret") {
					t.Errorf("the password was printed: %v", err)
				}
			}
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "redis", "http://one", "redis+what://one", "unix+cluster:///x", "redis://one,two", "redis+sentinel://one", "redis+sentinel://one/",
		"redis+cluster://one/3", "redis+cluster://one?max_redirects=many", "redis://one?sentinel_username=x", "redis://one:port", "redis://one:99999",
		"unix://", "unix://relative", "redis+cluster://one?color=red", "redis://one/0#fragment",
	} {
		if _, err := redislock.ParseURL(url); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%q: %v; want ErrInvalidOption", url, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, url := range []string{
		"redis://u:p@h:1/2?read_timeout=3s", "rediss+cluster://a,b:2?max_redirects=1", "redis+sentinel://u:p@a,[::1]:2/m/3",
		"unix:///x?db=1", "redis://%",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		o, err := redislock.ParseURL(url)
		if err != nil {
			if !errors.Is(err, locker.ErrInvalidOption) {
				t.Errorf("ParseURL(%q): %v; want ErrInvalidOption", url, err)
			}
			return
		}
		if len(o.Addrs) == 0 || slices.Contains(o.Addrs, "") {
			t.Errorf("ParseURL(%q): addresses %q", url, o.Addrs)
		}
		if o.IsClusterMode && (o.DB != 0 || o.MasterName != "") {
			t.Errorf("ParseURL(%q): a cluster with database %d, master %q", url, o.DB, o.MasterName)
		}
		scheme, _, _ := strings.Cut(url, "://")
		if o.IsClusterMode != strings.HasSuffix(scheme, "+cluster") ||
			(o.MasterName != "") != strings.HasSuffix(scheme, "+sentinel") {
			t.Errorf("ParseURL(%q): cluster %v, master %q", url, o.IsClusterMode, o.MasterName)
		}
	})
}

// FuzzURLOfParts has URLs that are put together as they should be: what went in comes out.
func FuzzURLOfParts(f *testing.F) {
	f.Add("me", "secret", "one", uint16(6379), "two", uint16(1), "main", uint8(3))
	f.Add("a:b@c/d?e#f%", "@/?#%&=,;[]\x00\xff", "::1", uint16(0), "1.2.3.4", uint16(65535), "a/b c?@#%", uint8(0))
	f.Fuzz(func(
		t *testing.T, user, password, host1 string, port1 uint16, host2 string, port2 uint16, master string, db uint8,
	) {
		one, two := net.JoinHostPort(host1, strconv.Itoa(int(port1))), net.JoinHostPort(host2, strconv.Itoa(int(port2)))
		if master == "" || !locktest.IsHost(host1) || !locktest.IsHost(host2) || one == two {
			t.Skip("not what a URL can have")
		}
		login, number := url.UserPassword(user, password).String()+"@", "/"+strconv.Itoa(int(db))
		hosts := one + "," + two
		check := func(rawURL string, o *redis.UniversalOptions, err error, addrs ...string) {
			switch {
			case err != nil:
				t.Errorf("%q: %v", rawURL, err)
			case o.Username != user || o.Password != password || !slices.Equal(o.Addrs, addrs):
				t.Errorf("%q: %q, %q, %q", rawURL, o.Username, o.Password, o.Addrs)
			case o.IsClusterMode:
			case o.DB != int(db) || o.MasterName != "" && o.MasterName != master:
				t.Errorf("%q: database %d, master %q", rawURL, o.DB, o.MasterName)
			}
		}
		rawURL := "redis://" + login + one + number
		o, err := redislock.ParseURL(rawURL)
		check(rawURL, o, err, one)
		rawURL = "rediss+cluster://" + login + hosts
		o, err = redislock.ParseURL(rawURL)
		check(rawURL, o, err, one, two)
		name := strings.ReplaceAll(url.PathEscape(master), "@", "%40") // the last "@" is that before the hosts
		rawURL = "redis+sentinel://" + login + hosts + "/" + name + number
		o, err = redislock.ParseURL(rawURL)
		check(rawURL, o, err, one, two)
		rawURL = "redlock://" + login + hosts + number
		servers, err := redlock.ParseURL(rawURL)
		if err != nil || len(servers) != 2 {
			t.Fatalf("%q: %d servers, %v", rawURL, len(servers), err)
		}
		for i, s := range servers {
			o := &redis.UniversalOptions{Addrs: []string{s.Addr}, Username: s.Username, Password: s.Password, DB: s.DB}
			check(rawURL, o, nil, []string{one, two}[i])
		}
	})
}

// FuzzURLHidesPassword: no password is in an error, nor is it taken for another one.
func FuzzURLHidesPassword(f *testing.F) {
	rests := []string{"localhost?color=red", "local host/main", "localhost:1:2/main/2?db=x", "localhost/x?pool_size=big"}
	locktest.FuzzPassword(f, rests, func(t *testing.T, password, secret, rest string) {
		for _, scheme := range []string{"redis", "unix", "redis+cluster", "rediss+sentinel", "redlock"} {
			rawURL := scheme + "://me:" + password + "@" + rest
			_, err := redislock.ParseURL(rawURL)
			_, err2 := redlock.ParseURL(rawURL)
			if err = errors.Join(err, err2); err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the password in %q is shown: %v", rawURL, err)
			}
		}
		meant, bad := url.PathUnescape(password)
		rawURL := "redis://me:" + password + "@one"
		o, err := redislock.ParseURL(rawURL)
		if err != nil {
			return
		}
		if bad != nil || o.Username != "me" || o.Password != meant || !slices.Equal(o.Addrs, []string{"one:6379"}) {
			t.Errorf("ParseURL(%q): user %q, password %q, addresses %q", rawURL, o.Username, o.Password, o.Addrs)
		}
	})
}

func FuzzOpen(f *testing.F) {
	for _, url := range []string{"redis://localhost:6379/0", "rediss://u:p@h/1?read_timeout=3s", "unix:///tmp/x.sock", "http://x", "", "redis://h/x", "%"} {
		f.Add(url)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel() // so that it does not connect
	f.Fuzz(func(t *testing.T, url string) {
		if _, err := redislock.Open(ended, url); !errors.Is(err, locker.ErrInvalidOption) &&
			!errors.Is(err, context.Canceled) {
			t.Errorf("Open(%q): %v; want ErrInvalidOption, or the end of ctx", url, err)
		}
	})
}
