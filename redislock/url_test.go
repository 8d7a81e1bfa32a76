package redislock_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
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

func TestParseRedlockURL(t *testing.T) {
	t.Parallel()
	servers, err := redislock.ParseRedlockURL("redlocks://me:se%3Fcret@one,two:4001,[::1]/2?read_timeout=4s")
	if err != nil {
		t.Fatal(err)
	}
	for i, addr := range []string{"one:6379", "two:4001", "[::1]:6379"} {
		o := servers[i]
		if o.Addr != addr || o.Username != "me" || o.Password != "se?cret" || o.DB != 2 || o.ReadTimeout != 4*time.Second || o.TLSConfig.ServerName == "" {
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
		if _, err := redislock.ParseRedlockURL(url); !errors.Is(err, locker.ErrInvalidOption) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := redislock.ParseURL("redlock://one,two,three"); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("ParseURL of a Redlock: %v", err)
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
		"redis://u:p@h:1/2?read_timeout=3s", "rediss+cluster://a,b:2?max_redirects=1", "redis+sentinel://u:p@a,[::1]:2/m/3", "unix:///x?db=1", "redis://%",
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
	})
}
