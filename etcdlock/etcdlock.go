package etcdlock

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/lockerkit/locker"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker/"

// New returns a Locker that keeps its locks in the etcd that client is connected to. The options are the defaults for its
// leases, see locker.New.
//
// The Locker uses the client's connection and never closes it: Close the Locker first, then the client. It makes the lease to which its
// locks are attached when the first is asked for.
func New(client *clientv3.Client, opts ...locker.Option) locker.Locker {
	return newLocker(newBackend(client, nil), opts)
}

// Open is New with a client of its own for the given URL:
//
//	etcd://host:2379                                   plain text
//	etcd://user:password@host1:2379,host2,host3        the members of a cluster; the port is 2379 unless given
//	etcds://host?cacert=ca.pem&cert=me.pem&key=me.key  TLS; names of files as of the options of etcdctl
//
// The parameters are cacert (of the authority that the server's certificate must come from; the system's if absent), cert and key (of
// the client, in files), servername (that the certificate must be for, instead of the host), and timeout (of making a connection,
// such as 2s; 5s if absent). A user needs a password. An unusable URL is ErrInvalidOption.
//
// Open connects only if there is a user, to log in; otherwise a server that cannot be reached is reported by the first Lock. Close closes
// the client.
func Open(rawURL string, opts ...locker.Option) (locker.Locker, error) {
	config, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(config)
	if err != nil {
		err, _ = explain(err)
		return nil, fmt.Errorf("etcdlock: %w", err)
	}
	return newLocker(newBackend(client, client.Close), opts), nil
}

// ParseURL returns the configuration of the client that Open makes for a URL: for a program that does more with its client than to
// lock, such as transactions with a Guard, and gives it to New.
func ParseURL(rawURL string) (clientv3.Config, error) {
	config, err := parse(rawURL)
	if _, query, _ := strings.Cut(rawURL, "?"); err != nil && strings.Contains(query, "@") {
		err = errors.New("it cannot be parsed; write special characters as %XX") // "?" in a password, which err might show
	}
	if err != nil {
		return clientv3.Config{}, fmt.Errorf("etcdlock: %w: %w", locker.ErrInvalidOption, err)
	}
	return config, nil
}

// parse returns the configuration for a URL of Open. Its errors do not show the password.
func parse(rawURL string) (clientv3.Config, error) {
	// A connection that has died without a word is noticed, and the next endpoint taken. Servers do not allow more frequent pings
	// (--grpc-keepalive-min-time).
	config := clientv3.Config{DialTimeout: 5 * time.Second, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger: zap.NewNop()} // errors are returned
	scheme, rest, found := strings.Cut(rawURL, "://")
	if !found || scheme != "etcd" && scheme != "etcds" {
		return config, errors.New("a URL that begins with etcd:// or etcds:// is wanted")
	}
	// Package url refuses several hosts with ports: they are taken out.
	authority, query, _ := strings.Cut(rest, "?")
	authority = strings.TrimSuffix(authority, "/")
	at := strings.LastIndex(authority, "@")
	if at < 0 && strings.Contains(query, "@") { // a password with a question mark, rather than a file with such a name
		return config, errors.New(`in user and password write "?" as %3F, and in parameters "@" as %40`)
	}
	u, err := url.Parse("etcd://" + authority[:at+1] + "host")
	if err != nil {
		return config, errors.New("user and password cannot be parsed; write special characters as %XX")
	}
	password, _ := u.User.Password()
	config.Username, config.Password = u.User.Username(), password
	if at >= 0 && (config.Username == "" || config.Password == "") {
		return config, errors.New("a user needs a password, and a password a user")
	}
	for host := range strings.SplitSeq(authority[at+1:], ",") {
		endpoint, err := withPort(host)
		if err != nil {
			return config, err
		}
		config.Endpoints = append(config.Endpoints, endpoint)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return config, fmt.Errorf("parameters: %w", err)
	}
	if err := setParameters(&config, values, scheme == "etcds"); err != nil {
		return config, err
	}
	return config, nil
}

func withPort(host string) (string, error) {
	if strings.ContainsAny(host, "/# ") {
		return "", fmt.Errorf("%q is not a host", host)
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port, err = net.SplitHostPort(host + ":2379")
	}
	if err != nil || name == "" || port == "" {
		return "", fmt.Errorf("%q is not a host, or a host and a port", host)
	}
	return net.JoinHostPort(name, port), nil
}

func setParameters(config *clientv3.Config, values url.Values, secure bool) error {
	for name := range values {
		if !slices.Contains([]string{"cacert", "cert", "key", "servername", "timeout"}, name) {
			return fmt.Errorf("unknown parameter %q", name)
		}
		if !secure && name != "timeout" {
			return fmt.Errorf("parameter %q is for etcds://", name)
		}
	}
	if text := values.Get("timeout"); text != "" {
		timeout, err := time.ParseDuration(text)
		if err != nil || timeout <= 0 {
			return fmt.Errorf("timeout %q is not a positive duration, such as 2s", text)
		}
		config.DialTimeout = timeout
	}
	if !secure {
		return nil
	}
	config.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if name := values.Get("cacert"); name != "" {
		pem, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("cacert: %w", err)
		}
		config.TLS.RootCAs = x509.NewCertPool()
		if !config.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("cacert: no certificate in %s", name)
		}
	}
	if cert, key := values.Get("cert"), values.Get("key"); cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("cert and key: %w", err)
		}
		config.TLS.Certificates = []tls.Certificate{pair}
	}
	if name := values.Get("servername"); name != "" {
		config.DialOptions = append(config.DialOptions, grpc.WithTransportCredentials(serverName{credentials.NewTLS(config.TLS), name}))
	}
	return nil
}

// serverName are credentials with which the server's certificate must be for a certain name. Package grpc takes no notice of the ServerName
// in a tls.Config where the endpoint has a name.
type serverName struct {
	credentials.TransportCredentials
	name string
}

func (c serverName) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, c.name, conn)
}

func (c serverName) Clone() credentials.TransportCredentials {
	return serverName{c.TransportCredentials.Clone(), c.name}
}

func newLocker(b *backend, opts []locker.Option) locker.Locker {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}
