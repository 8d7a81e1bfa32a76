package etcdlock_test

import (
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/locktest"
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

// FuzzParseURL holds whatever can be used to what the client needs, and everything else to its class.
func FuzzParseURL(f *testing.F) {
	for _, url := range []string{
		"etcd://h", "etcd://u:p@a,b:1,[::1]:2?timeout=2s", "etcds://u:p@a/?cacert=x&cert=y&key=z", "etcd://a/b", "etcd://%",
		"etcd://[", "http://a", "",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		config, err := etcdlock.ParseURL(url)
		if err != nil {
			if !errors.Is(err, locker.ErrInvalidOption) {
				t.Errorf("ParseURL(%q): %v; want ErrInvalidOption", url, err)
			}
			return
		}
		if len(config.Endpoints) == 0 || config.DialTimeout <= 0 {
			t.Errorf("ParseURL(%q): endpoints %q, timeout %v", url, config.Endpoints, config.DialTimeout)
		}
		for _, endpoint := range config.Endpoints {
			host, port, err := net.SplitHostPort(endpoint)
			if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || host == "" {
				t.Errorf("ParseURL(%q): endpoint %q", url, endpoint)
			}
		}
		if (config.Username == "") != (config.Password == "") || (config.TLS != nil) != strings.HasPrefix(url, "etcds:") {
			t.Errorf("ParseURL(%q): user %q, TLS %v", url, config.Username, config.TLS != nil)
		}
	})
}

// FuzzURLOfParts has URLs that are put together as they should be: what went in comes out.
func FuzzURLOfParts(f *testing.F) {
	f.Add("me", "secret", "one", uint16(2379), "two", uint16(1), int64(time.Second))
	f.Add("a:b@c/d?e#f%", "@/?#%&=,;[]\x00\xff", "::1", uint16(0), "1.2.3.4", uint16(65535), int64(1))
	f.Fuzz(func(t *testing.T, user, password, host1 string, port1 uint16, host2 string, port2 uint16, timeout int64) {
		if user == "" || password == "" || timeout <= 0 || !locktest.IsHost(host1) || !locktest.IsHost(host2) {
			t.Skip("not what a URL can have")
		}
		want := []string{
			net.JoinHostPort(host1, strconv.Itoa(int(port1))), net.JoinHostPort(host2, strconv.Itoa(int(port2))),
		}
		rawURL := "etcd://" + url.UserPassword(user, password).String() + "@" + strings.Join(want, ",") +
			"?timeout=" + url.QueryEscape(time.Duration(timeout).String())
		config, err := etcdlock.ParseURL(rawURL)
		if err != nil {
			t.Fatalf("ParseURL(%q): %v", rawURL, err)
		}
		if config.Username != user || config.Password != password || !slices.Equal(config.Endpoints, want) ||
			config.DialTimeout != time.Duration(timeout) {
			t.Errorf("ParseURL(%q): %q, %q, %q, %v",
				rawURL, config.Username, config.Password, config.Endpoints, config.DialTimeout)
		}
	})
}

// FuzzURLHidesPassword: no password is in an error, nor is it taken for another one.
func FuzzURLHidesPassword(f *testing.F) {
	rests := []string{"localhost?color=red", "local host", "localhost:1:2", "localhost"}
	locktest.FuzzPassword(f, rests, func(t *testing.T, password, secret, rest string) {
		rawURL := "etcd://me:" + password + "@" + rest
		if _, err := etcdlock.ParseURL(rawURL); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("ParseURL(%q) shows the password: %v", rawURL, err)
		}
		rawURL = "etcd://me:" + password + "@one"
		config, err := etcdlock.ParseURL(rawURL)
		if err != nil {
			return
		}
		if meant, err := url.PathUnescape(password); err != nil || config.Username != "me" || config.Password != meant ||
			!slices.Equal(config.Endpoints, []string{"one:2379"}) {
			t.Errorf("ParseURL(%q): user %q, password %q, endpoints %q",
				rawURL, config.Username, config.Password, config.Endpoints)
		}
	})
}
