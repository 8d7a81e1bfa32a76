package redislock

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/redisurl"
)

// ParseURL returns the options of the client that Open makes for a URL, to be passed to redis.NewUniversalClient: for a
// program that does more with its client than to lock, and gives it to New. These are the URLs:
//
//	redis://user:password@host:6379/0                       one server
//	unix://user:password@/run/redis.sock?db=0               one server, by way of a socket
//	redis+sentinel://user:password@s1:26379,s2,s3/mymaster/0   the master that these sentinels know by that name
//	redis+cluster://user:password@h1:6379,h2,h3             a Redis Cluster, some of whose nodes these are
//
// With rediss instead of redis, connections are encrypted, to sentinels too. User and password are for the servers;
// sentinels that want them have the parameters sentinel_username and sentinel_password. A cluster has the parameter
// max_redirects. redis.ParseURL has all other parameters. An unusable URL is ErrInvalidOption.
func ParseURL(rawURL string) (*redis.UniversalOptions, error) {
	o, err := parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redislock: %w: %w", locker.ErrInvalidOption, err)
	}
	return o, nil
}

// parse is ParseURL. Its errors do not show the password.
func parse(rawURL string) (*redis.UniversalOptions, error) {
	scheme, _, _ := strings.Cut(rawURL, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	var u *redisurl.URL
	var err error
	switch {
	case scheme == "unix":
		return parseUnix(rawURL)
	case (base == "redis" || base == "rediss") && (kind == "" || kind == "cluster"):
		u, err = redisurl.Split(rawURL, redisurl.RedisPort)
	case (base == "redis" || base == "rediss") && kind == "sentinel":
		u, err = redisurl.Split(rawURL, redisurl.SentinelPort)
	case scheme == "redlock" || scheme == "redlocks":
		return nil, errors.New("a Redlock is opened by package redislock/redlock")
	default:
		return nil, errors.New("a URL that begins with redis://, rediss://, unix://, redis+sentinel://, " +
			"rediss+sentinel://, redis+cluster:// or rediss+cluster:// is wanted")
	}
	if err != nil {
		return nil, err
	}
	u.Scheme = base
	switch kind {
	case "cluster":
		return parseCluster(u)
	case "sentinel":
		return parseSentinel(u)
	}
	if len(u.Hosts) > 1 {
		return nil, errors.New("several hosts: redis+cluster:// and redis+sentinel:// have those")
	}
	servers, err := u.Servers()
	if err != nil {
		return nil, err
	}
	return universal(servers[0], u.Hosts), nil
}

func parseUnix(rawURL string) (*redis.UniversalOptions, error) {
	if _, query, _ := strings.Cut(rawURL, "?"); strings.Contains(query, "@") {
		return nil, redisurl.ErrUnescaped
	}
	o, err := redisurl.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(o.Addr, "/") {
		return nil, errors.New("the path of the socket has to begin with a slash")
	}
	return universal(o, []string{o.Addr}), nil
}

func parseCluster(u *redisurl.URL) (*redis.UniversalOptions, error) {
	redirects, err := u.TakeInt("max_redirects")
	if err != nil {
		return nil, err
	}
	servers, err := u.Servers()
	if err != nil {
		return nil, err
	}
	if servers[0].DB != 0 {
		return nil, errors.New("a cluster has no database but 0")
	}
	o := universal(servers[0], u.Hosts)
	o.IsClusterMode = true
	o.MaxRedirects = redirects
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each node has a name of its own: that by which it is dialled
	}
	return o, nil
}

func parseSentinel(u *redisurl.URL) (*redis.UniversalOptions, error) {
	name, db, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	name, err := url.PathUnescape(name)
	if err != nil || name == "" {
		return nil, errors.New("the name of the master is missing: redis+sentinel://host/name")
	}
	u.Path = "/" + db
	user, password := u.Take("sentinel_username"), u.Take("sentinel_password")
	servers, err := u.Servers()
	if err != nil {
		return nil, err
	}
	o := universal(servers[0], u.Hosts)
	o.MasterName, o.SentinelUsername, o.SentinelPassword = name, user, password
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // as for a cluster
	}
	return o, nil
}

// universal returns the options of one server as those of a universal client: all that both have, by name, so that no
// parameter is lost which a later go-redis knows.
func universal(o *redis.Options, addrs []string) *redis.UniversalOptions {
	u := new(redis.UniversalOptions)
	from, to := reflect.ValueOf(o).Elem(), reflect.ValueOf(u).Elem()
	for i := range from.NumField() {
		if field := to.FieldByName(from.Type().Field(i).Name); field.CanSet() {
			field.Set(from.Field(i))
		}
	}
	u.Addrs = addrs
	return u
}
