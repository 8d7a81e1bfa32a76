package pglock

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
)

// FuzzDSNOfParts has connection strings that are put together as they should be: what went in comes out.
func FuzzDSNOfParts(f *testing.F) {
	f.Add("me", "secret", "one", uint16(5432), "db")
	f.Add("a:b@c/d?e#f%", "@/?#%&=,;[]'\\ \xff", "::1", uint16(1), "my db/?#%'\\")
	f.Fuzz(func(t *testing.T, user, password, host string, port uint16, db string) {
		isHost := locktest.IsHost(host)
		if user == "" || password == "" || db == "" || !isHost || port == 0 || strings.ContainsRune(user+password+db, 0) {
			t.Skip("not what a connection string can have")
		}
		quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace
		for _, dsn := range []string{
			"postgres://" + url.UserPassword(user, password).String() + "@" + net.JoinHostPort(host, strconv.Itoa(int(port))) +
				"/" + url.PathEscape(db) + "?sslmode=disable&pool_max_conns=7",
			"host=" + host + " port = " + strconv.Itoa(int(port)) + " user='" + quote(user) + "' password = '" +
				quote(password) + "' dbname='" + quote(db) + "' sslmode=disable",
		} {
			config, err := parseDSN(dsn)
			if err != nil {
				t.Errorf("%q: %v", dsn, err)
				continue
			}
			c := config.ConnConfig
			if c.User != user || c.Password != password || c.Host != host || c.Port != port || c.Database != db {
				t.Errorf("%q: %q, %q, %q, %d, %q", dsn, c.User, c.Password, c.Host, c.Port, c.Database)
			}
		}
	})
}

// FuzzDSNHidesPassword: no password is in an error.
func FuzzDSNHidesPassword(f *testing.F) {
	rests := []string{
		"localhost:none/db", "local host/db?sslmode=x", "localhost:1:2/db?connect_timeout=x", "[/db?pool_max_conns=x",
	}
	locktest.FuzzPassword(f, rests, func(t *testing.T, password, secret, rest string) {
		for _, dsn := range []string{
			"postgres://me:" + password + "@" + rest, "postgresql://me:" + password + "@" + rest,
			"host=one port=none password=" + password + " " + rest, "password='" + password + "' " + rest,
			"password = " + password + " host=" + rest,
		} {
			_, err := parseDSN(dsn)
			if err != nil && (strings.Contains(err.Error(), secret) || !errors.Is(err, locker.ErrInvalidOption)) {
				t.Errorf("the password in %q is shown, or it is not ErrInvalidOption: %v", dsn, err)
			}
		}
	})
}
