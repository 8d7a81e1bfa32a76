package etcdlock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
)

// ParseURL returns the configuration of the client that Open makes for a URL: for a program that does more with its
// client than to lock, such as transactions with a Guard, and gives it to New. An unusable URL is ErrInvalidOption.
func ParseURL(rawURL string) (clientv3.Config, error) {
	config, err := parse(rawURL)
	if err != nil {
		return clientv3.Config{}, fmt.Errorf("etcdlock: %w: %w", locker.ErrInvalidOption, err)
	}
	return config, nil
}

// parse returns the configuration for a URL of Open. Its errors do not show the password.
func parse(rawURL string) (clientv3.Config, error) {
	// A connection that has died without a word is noticed, and no longer used. More frequent pings are not possible
	// with package grpc.
	config := clientv3.Config{
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
	} // errors are returned
	scheme, rest, found := strings.Cut(rawURL, "://")
	if !found || scheme != "etcd" && scheme != "etcds" {
		return config, errors.New("a URL that begins with etcd:// or etcds:// is wanted")
	}
	// Package url refuses several hosts with ports: they are taken out.
	authority, query, _ := strings.Cut(rest, "?")
	authority = strings.TrimSuffix(authority, "/")
	at := strings.LastIndex(authority, "@")
	if strings.Contains(query, "@") { // a password with a question mark, rather than a file with such a name
		return config, errors.New(`in user and password write "?" as %3F, and in parameters "@" as %40`)
	}
	u, err := url.Parse("etcd://" + authority[:at+1] + "host")
	// Else a part of the password is taken for one of the others.
	if err != nil || u.Host != "host" || u.Path != "" || u.Fragment != "" {
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

// withPort returns host:port. Its error does not show the host: in a URL that makes no sense, it may be the password.
func withPort(host string) (string, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port, err = net.SplitHostPort(host + ":2379")
	}
	_, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil || name == "" || strings.ContainsAny(host, "/# ") {
		return "", errors.New(`what follows "://" or "@" is not a host, or host:port, or several of these, with commas`)
	}
	return net.JoinHostPort(name, port), nil
}

func setParameters(config *clientv3.Config, values url.Values, secure bool) error {
	for name := range values {
		if !slices.Contains([]string{"cacert", "cert", "key", "timeout"}, name) {
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
	return nil
}
