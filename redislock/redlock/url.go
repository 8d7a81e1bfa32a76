package redlock

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/redisurl"
)

// ParseURL returns the options of a client for each of the servers of a Redlock, to be passed to
// redis.NewClient, for a URL such as
//
//	redlock://user:password@h1:6379,h2,h3/0
//
// With redlocks instead of redlock, connections are encrypted. User, password and database are the same for all of
// them. The parameters are as of redis.ParseURL. An unusable URL is ErrInvalidOption.
func ParseURL(rawURL string) ([]*redis.Options, error) {
	servers, err := parseRedlock(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redlock: %w: %w", locker.ErrInvalidOption, err)
	}
	return servers, nil
}

func parseRedlock(rawURL string) ([]*redis.Options, error) {
	scheme, _, _ := strings.Cut(rawURL, "://")
	scheme, ok := map[string]string{"redlock": "redis", "redlocks": "rediss"}[scheme]
	if !ok {
		return nil, errors.New("a URL that begins with redlock:// or redlocks:// is wanted")
	}
	u, err := redisurl.Split(rawURL, redisurl.RedisPort)
	if err != nil {
		return nil, err
	}
	for i, host := range u.Hosts {
		if slices.Contains(u.Hosts[:i], host) {
			return nil, fmt.Errorf("server %s is there twice: a majority has to be one of different servers", host)
		}
	}
	u.Scheme = scheme
	return u.Servers()
}
