package redislock

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
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
// max_redirects. All other parameters are those of redis.ParseURL. An unusable URL is ErrInvalidOption.
func ParseURL(rawURL string) (*redis.UniversalOptions, error) {
	o, err := parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redislock: %w: %w", locker.ErrInvalidOption, err)
	}
	return o, nil
}

// ParseRedlockURL returns the options of a client for each of the servers of a Redlock, to be passed to redis.NewClient, for a
// URL such as
//
//	redlock://user:password@h1:6379,h2,h3/0
//
// With redlocks instead of redlock, connections are encrypted. User, password and database are the same for all of them.
// The parameters are those of redis.ParseURL. An unusable URL is ErrInvalidOption.
func ParseRedlockURL(rawURL string) ([]*redis.Options, error) {
	servers, err := parseRedlock(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redislock: %w: %w", locker.ErrInvalidOption, err)
	}
	return servers, nil
}

func isRedlock(rawURL string) bool {
	scheme, _, _ := strings.Cut(rawURL, "://")
	return scheme == "redlock" || scheme == "redlocks"
}

func parseRedlock(rawURL string) ([]*redis.Options, error) {
	if !isRedlock(rawURL) {
		return nil, errors.New("a URL that begins with redlock:// or redlocks:// is wanted")
	}
	u, err := splitURL(rawURL, redisPort)
	if err != nil {
		return nil, err
	}
	for i, host := range u.hosts {
		if slices.Contains(u.hosts[:i], host) {
			return nil, fmt.Errorf("server %s is there twice: a majority has to be one of different servers", host)
		}
	}
	u.scheme = map[string]string{"redlock": "redis", "redlocks": "rediss"}[u.scheme]
	servers, err := u.servers()
	for _, o := range servers {
		o.DialerRetries = 1 // to dial five times, which is the default, only delays the news
	}
	return servers, err
}

const (
	redisPort    = "6379"
	sentinelPort = "26379"
)

// parse is ParseURL. Its errors do not show the password.
func parse(rawURL string) (*redis.UniversalOptions, error) {
	scheme, _, _ := strings.Cut(rawURL, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	var u *multiURL
	var err error
	switch {
	case scheme == "unix":
		return parseUnix(rawURL)
	case (base == "redis" || base == "rediss") && (kind == "" || kind == "cluster"):
		u, err = splitURL(rawURL, redisPort)
	case (base == "redis" || base == "rediss") && kind == "sentinel":
		u, err = splitURL(rawURL, sentinelPort)
	case isRedlock(rawURL):
		return nil, errors.New("a Redlock has several clients: see ParseRedlockURL")
	default:
		return nil, errors.New("a URL that begins with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster:// is wanted")
	}
	if err != nil {
		return nil, err
	}
	u.scheme = base
	switch kind {
	case "cluster":
		return parseCluster(u)
	case "sentinel":
		return parseSentinel(u)
	}
	if len(u.hosts) > 1 {
		return nil, errors.New("several hosts: redis+cluster:// and redis+sentinel:// have those")
	}
	servers, err := u.servers()
	if err != nil {
		return nil, err
	}
	return universal(servers[0], u.hosts), nil
}

func parseUnix(rawURL string) (*redis.UniversalOptions, error) {
	if _, query, _ := strings.Cut(rawURL, "?"); strings.Contains(query, "@") {
		return nil, errUnescaped
	}
	o, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, withoutSecrets(err)
	}
	if !strings.HasPrefix(o.Addr, "/") {
		return nil, errors.New("the path of the socket has to begin with a slash")
	}
	return universal(o, []string{o.Addr}), nil
}

func parseCluster(u *multiURL) (*redis.UniversalOptions, error) {
	redirects, err := u.takeInt("max_redirects")
	if err != nil {
		return nil, err
	}
	servers, err := u.servers()
	if err != nil {
		return nil, err
	}
	if servers[0].DB != 0 {
		return nil, errors.New("a cluster has no database but 0")
	}
	o := universal(servers[0], u.hosts)
	o.IsClusterMode = true
	o.MaxRedirects = redirects
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each node has a name of its own: that by which it is dialled
	}
	return o, nil
}

func parseSentinel(u *multiURL) (*redis.UniversalOptions, error) {
	name, db, _ := strings.Cut(strings.TrimPrefix(u.path, "/"), "/")
	name, err := url.PathUnescape(name)
	if err != nil || name == "" {
		return nil, errors.New("the name of the master is missing: redis+sentinel://host/name")
	}
	u.path = "/" + db
	user, password := u.take("sentinel_username"), u.take("sentinel_password")
	servers, err := u.servers()
	if err != nil {
		return nil, err
	}
	o := universal(servers[0], u.hosts)
	o.MasterName, o.SentinelUsername, o.SentinelPassword = name, user, password
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // as for a cluster
	}
	return o, nil
}

// universal returns the options of one server as those of a universal client.
func universal(o *redis.Options, addrs []string) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: addrs, DB: o.DB, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig,
		Protocol: o.Protocol, ClientName: o.ClientName,
		MaxRetries: o.MaxRetries, MinRetryBackoff: o.MinRetryBackoff, MaxRetryBackoff: o.MaxRetryBackoff,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		DialerRetries: 1, // to dial five times, which is the default, only delays the news
		PoolFIFO:      o.PoolFIFO, PoolSize: o.PoolSize, PoolTimeout: o.PoolTimeout, MaxConcurrentDials: o.MaxConcurrentDials,
		MinIdleConns: o.MinIdleConns, MaxIdleConns: o.MaxIdleConns, MaxActiveConns: o.MaxActiveConns,
		PipelinePoolSize: o.PipelinePoolSize, PipelineReadBufferSize: o.PipelineReadBufferSize, PipelineWriteBufferSize: o.PipelineWriteBufferSize,
		ConnMaxIdleTime: o.ConnMaxIdleTime, ConnMaxLifetime: o.ConnMaxLifetime, ConnMaxLifetimeJitter: o.ConnMaxLifetimeJitter,
	}
}

// multiURL is a URL that may have several hosts.
type multiURL struct {
	scheme string
	user   *url.Userinfo
	hosts  []string // host:port, for each
	path   string   // as it was written
	query  url.Values
}

var errUnescaped = errors.New(`in user and password write "?" as %3F, and in parameters "@" as %40`)

// splitURL takes a URL apart that may have several hosts, with or without ports: package url refuses those.
func splitURL(rawURL, defaultPort string) (*multiURL, error) {
	scheme, rest, found := strings.Cut(rawURL, "://")
	if !found {
		return nil, errors.New("not a URL")
	}
	rest, query, _ := strings.Cut(rest, "?")
	if strings.ContainsAny(query, "@") { // a password with a question mark, rather than a parameter with such a value
		return nil, errUnescaped
	}
	at := strings.LastIndex(rest, "@")
	u, err := url.Parse("redis://" + rest[:at+1] + "host")
	if err != nil || u.Host != "host" {
		return nil, errors.New("user and password cannot be parsed; write special characters as %XX")
	}
	m := &multiURL{scheme: scheme, user: u.User}
	authority, path, slash := strings.Cut(rest[at+1:], "/")
	if slash {
		m.path = "/" + path
	}
	if strings.ContainsAny(m.path, "#") {
		return nil, errors.New(`"#" has no place in the URL`)
	}
	for host := range strings.SplitSeq(authority, ",") {
		host, err := withPort(host, defaultPort)
		if err != nil {
			return nil, err
		}
		m.hosts = append(m.hosts, host)
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
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || strings.ContainsAny(name, " #@%\\") && net.ParseIP(name) == nil {
		return "", errors.New("a host is wanted, or a host and a port, or several of them, separated by commas")
	}
	return net.JoinHostPort(name, port), nil
}

// take returns a parameter that redis.ParseURL does not know.
func (u *multiURL) take(name string) string {
	value := u.query.Get(name)
	u.query.Del(name)
	return value
}

func (u *multiURL) takeInt(name string) (int, error) {
	text := u.take(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("parameter %s is not a number", name)
	}
	return n, nil
}

// servers returns the options of a client for each host. The scheme has to be redis or rediss.
func (u *multiURL) servers() ([]*redis.Options, error) {
	servers := make([]*redis.Options, 0, len(u.hosts))
	for _, host := range u.hosts {
		// What redis.ParseURL is to do is what is left when user and host are known.
		o, err := redis.ParseURL(u.scheme + "://host" + u.path + "?" + u.query.Encode())
		if err != nil {
			return nil, withoutSecrets(err)
		}
		o.Addr = host
		if o.TLSConfig != nil {
			name, _, _ := net.SplitHostPort(host)
			o.TLSConfig = &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.TLSConfig.InsecureSkipVerify} //nolint:gosec // if the URL says so
		}
		if u.user != nil {
			o.Username = u.user.Username()
			o.Password, _ = u.user.Password()
		}
		servers = append(servers, o)
	}
	return servers, nil
}

// withoutSecrets returns what is wrong with a URL, unless that might have a password in it: in a URL that makes no sense, it
// can be anywhere.
func withoutSecrets(err error) error {
	text := err.Error()
	if kinds := []string{"redis: unexpected option: ", "redis: invalid "}; slices.ContainsFunc(kinds, func(kind string) bool { return strings.HasPrefix(text, kind) }) {
		return err
	}
	return errors.New("not a valid URL; special characters in user and password have to be percent-encoded")
}
