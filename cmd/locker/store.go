package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// storeVariable is the environment variable with the URL of the store. Commands that are run do not get it if there is
// a password in it.
const storeVariable = "LOCKER_STORE"

// openWithin bounds how long to wait for a store at the start.
const openWithin = 10 * time.Second

// storeURL returns the URL of the store. A password in the arguments can be read by everybody on the machine.
func (a *app) storeURL() (string, error) {
	if a.store == "memory" {
		return "memory://", nil
	}
	if passwordOf(a.store) != "" {
		const message = "a password in -store is seen by every user of this machine: put the URL into %s"
		return "", usage(message, storeVariable)
	}
	rawURL := cmp.Or(a.store, os.Getenv(storeVariable))
	if rawURL == "" {
		const message = "which store? Set %s, or use -store: redis://, redlock://, postgres:// or etcd://"
		return "", usage(message, storeVariable)
	}
	return rawURL, nil
}

// kind is one of the stores.
type kind int

const (
	memory kind = iota
	redisServer
	redlocks
	postgres
	etcd
)

// kindOf returns which store a URL is of.
func kindOf(rawURL string) (kind, error) {
	scheme, _, found := strings.Cut(rawURL, "://")
	base, _, _ := strings.Cut(scheme, "+")
	switch {
	case !found && !strings.Contains(rawURL, "="): // and it is not shown: it may have a password in it
		return 0, usage("the store is not a URL such as redis://localhost:6379")
	case !found: // the form of libpq
		return postgres, nil
	case base == "redis" || base == "rediss" || scheme == "unix":
		return redisServer, nil
	}
	switch scheme {
	case "memory":
		return memory, nil
	case "redlock", "redlocks":
		return redlocks, nil
	case "postgres", "postgresql":
		return postgres, nil
	case "etcd", "etcds":
		return etcd, nil
	}
	return 0, usage("%q is no store: use redis://, redlock://, postgres:// or etcd://", scheme)
}

// target returns the URL of the store, and which one that is.
func (a *app) target() (rawURL string, k kind, err error) {
	if rawURL, err = a.storeURL(); err != nil {
		return "", 0, err
	}
	k, err = kindOf(rawURL)
	return rawURL, k, err
}

// open connects to the store. The error says what would keep the locks from working.
func (a *app) open(ctx context.Context, opts ...locker.Option) (*locker.Client, error) {
	rawURL, k, err := a.target()
	if err != nil {
		return nil, err
	}
	opts = append(a.logged(), opts...)
	if a.prefix != "" { // else the store has its own
		opts = append(opts, locker.Prefix(a.prefix))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openWithin, errNoAnswer)
	defer cancel()
	goredis.SetLogger(quietRedis{a})
	var c *locker.Client
	switch k {
	case memory:
		return memlock.New(opts...).Client, nil
	case redisServer:
		c, err = redislock.Open(ctx, rawURL, opts...)
	case redlocks:
		c, err = redlock.Open(ctx, rawURL, opts...)
	case postgres:
		c, err = pglock.Open(ctx, rawURL, opts...)
	case etcd:
		c, err = etcdlock.Open(ctx, rawURL, opts...)
	}
	if err != nil && errors.Is(context.Cause(ctx), errNoAnswer) {
		err = fmt.Errorf("%w: %w", locker.ErrUnavailable, errNoAnswer)
	}
	return c, err
}

var errNoAnswer = fmt.Errorf("no answer within %v", openWithin)

// A password in a connection string of libpq: as it is, or in quotes, and with blanks around the sign.
var (
	libpqPassword = regexp.MustCompile(`(?s)(?:^|\s)password\s*=\s*(?:'((?:[^'\\]|\\.)*)|([^\s']\S*))`)
	escaped       = regexp.MustCompile(`(?s)\\(.)`)
)

// passwordOf returns the password in a URL or in a connection string of libpq, or "".
func passwordOf(store string) string {
	_, rest, found := strings.Cut(store, "://")
	if !found {
		if match := libpqPassword.FindStringSubmatch(store); match != nil {
			return escaped.ReplaceAllString(match[1]+match[2], "$1")
		}
		return ""
	}
	rest, query, _ := strings.Cut(rest, "?")
	user := rest[:max(strings.LastIndex(rest, "@"), 0)]
	if _, password, found := strings.Cut(user, ":"); found {
		if unescaped, err := url.PathUnescape(password); err == nil {
			return unescaped
		}
		return password
	}
	values, _ := url.ParseQuery(query) // what it could parse
	return cmp.Or(values.Get("password"), values.Get("sentinel_password"))
}
