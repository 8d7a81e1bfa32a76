// Package redisurl takes URLs of Redis apart that may have several hosts.
package redisurl

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// The ports of those that have none.
const (
	RedisPort    = "6379"
	SentinelPort = "26379"
)

// URL is a URL that may have several hosts.
type URL struct {
	Scheme string
	user   string   // with the password, as it was written, and "@"; or nothing
	Hosts  []string // host:port, for each
	Path   string   // as it was written
	query  url.Values
}

// ErrUnescaped is the error of a URL whose "@" and "?" mislead.
var ErrUnescaped = errors.New(`in user and password write "?" as %3F, and in parameters "@" as %40`)

// Split takes a URL apart that may have several hosts, with or without ports: package url refuses those.
func Split(rawURL, defaultPort string) (*URL, error) {
	scheme, rest, found := strings.Cut(rawURL, "://")
	if !found {
		return nil, errors.New("not a URL")
	}
	rest, query, _ := strings.Cut(rest, "?")
	if strings.ContainsAny(query, "@") { // a password with a question mark, rather than a parameter with such a value
		return nil, ErrUnescaped
	}
	at := strings.LastIndex(rest, "@") + 1
	u, err := url.Parse("redis://" + rest[:at] + "host")
	// Else a part of the password is taken for one of the others.
	if err != nil || u.Host != "host" || u.Path != "" || u.Fragment != "" {
		return nil, errors.New("user and password cannot be parsed; write special characters as %XX")
	}
	m := &URL{Scheme: scheme, user: rest[:at]}
	authority, path, slash := strings.Cut(rest[at:], "/")
	if slash {
		m.Path = "/" + path
	}
	if strings.ContainsAny(m.Path, "#") {
		return nil, errors.New(`"#" has no place in the URL`)
	}
	for host := range strings.SplitSeq(authority, ",") {
		host, err := withPort(host, defaultPort)
		if err != nil {
			return nil, err
		}
		m.Hosts = append(m.Hosts, host)
	}
	if m.query, err = url.ParseQuery(query); err != nil {
		return nil, errors.New("the parameters cannot be parsed; write special characters as %XX")
	}
	return m, nil
}

// withPort returns host:port. An empty host is this machine, as redis.ParseURL has it.
func withPort(host, defaultPort string) (string, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port, err = net.SplitHostPort(host + ":" + defaultPort)
	}
	if name == "" {
		name = "localhost"
	}
	_, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil || strings.ContainsAny(name, " #@%\\") && net.ParseIP(name) == nil {
		return "", errors.New("a host is wanted, or a host and a port, or several of them, separated by commas")
	}
	return net.JoinHostPort(name, port), nil
}

// Take returns a parameter that redis.ParseURL does not know.
func (u *URL) Take(name string) string {
	value := u.query.Get(name)
	u.query.Del(name)
	return value
}

// TakeInt is Take for a number.
func (u *URL) TakeInt(name string) (int, error) {
	text := u.Take(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("parameter %s is not a number", name)
	}
	return n, nil
}

// Servers returns the options of a client for each host. The scheme has to be redis or rediss.
func (u *URL) Servers() ([]*redis.Options, error) {
	servers := make([]*redis.Options, 0, len(u.Hosts))
	for _, host := range u.Hosts {
		o, err := Parse(u.Scheme + "://" + u.user + host + u.Path + "?" + u.query.Encode())
		if err != nil {
			return nil, err
		}
		servers = append(servers, o)
	}
	return servers, nil
}

// Parse is redis.ParseURL, with no password in its errors.
func Parse(rawURL string) (*redis.Options, error) {
	o, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, withoutSecrets(err)
	}
	o.DialerRetries = 1 // to dial five times, which is the default, only delays the news
	return o, nil
}

// withoutSecrets returns what is wrong with a URL, unless that might have a password in it: in a URL that makes no
// sense, it can be anywhere.
func withoutSecrets(err error) error {
	for _, harmless := range []string{"redis: unexpected option: ", "redis: invalid "} {
		if strings.HasPrefix(err.Error(), harmless) {
			return err
		}
	}
	return errors.New("not a valid URL; special characters in user and password have to be percent-encoded")
}
