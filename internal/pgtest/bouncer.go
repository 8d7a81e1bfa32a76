package pgtest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

var bouncerProduct = &testserver.Product{
	Name:       "PgBouncer",
	Package:    "pgtest",
	EnvProgram: "LOCKER_PGBOUNCER",
	Program:    "pgbouncer",
	Usual:      "/usr/sbin/pgbouncer", // often not on the PATH of those who are not root
	Image:      "pgbouncer",
}

// Bouncer is a PgBouncer process in front of a Server.
type Bouncer struct{ *testserver.Server }

// NewBouncer starts a PgBouncer for one test, and closes it when the test is
// over. The mode is its pool_mode: "session", "transaction" or "statement".
// Further settings are name=value, as in the section [pgbouncer] of its
// configuration. Only the superuser postgres gets through. Without a program, the
// test is skipped or fails.
func NewBouncer(tb testing.TB, server *Server, mode string, settings ...string) *Bouncer {
	tb.Helper()
	return testserver.New(tb, bouncerProduct, func() (*Bouncer, error) { return startBouncer(server, mode, settings) })
}

func startBouncer(server *Server, mode string, settings []string) (*Bouncer, error) {
	path, err := bouncerProduct.Find()
	if err != nil {
		return nil, err
	}
	user, err := serverUser() // PgBouncer refuses root, too
	if err != nil {
		return nil, err
	}
	configFile := func(dir string) string { return filepath.Join(dir, "pgbouncer.ini") }
	bouncer, err := testserver.Start(testserver.Spec{
		Name: bouncerProduct.Package,
		User: user,
		Prepare: func(port int, dir string) error {
			users := filepath.Join(dir, "users")
			config, err := bouncerConfig(server.Addr(), port, users, append([]string{"pool_mode=" + mode}, settings...))
			if err != nil {
				return err
			}
			return errors.Join(
				os.WriteFile(configFile(dir), []byte(config), 0o600), user.Own(configFile(dir)),
				os.WriteFile(users, []byte(`"postgres" ""`), 0o600), user.Own(users))
		},
		Command: func(_ int, dir string) testserver.Command {
			args := []string{configFile(dir)}
			return testserver.Command{Program: path, Args: args, Dir: dir, Env: product.Environment(), User: user}
		},
		IsUp: func(addr string, deadline time.Time) error {
			// It answers this itself: the server behind it may be down.
			_, err := query(url(addr, "pgbouncer"), deadline, "SHOW VERSION")
			return err
		},
		Busy:     []string{"Address already in use"},
		Patience: patience,
	})
	if err != nil {
		return nil, err
	}
	return &Bouncer{bouncer}, nil
}

// bouncerConfig returns the configuration of a PgBouncer in front of the
// server at addr, with settings of the form name=value.
func bouncerConfig(addr string, port int, users string, settings []string) (string, error) {
	host, serverPort, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	all := map[string]string{
		"listen_addr":     "127.0.0.1",
		"listen_port":     strconv.Itoa(port),
		"unix_socket_dir": "",
		"auth_type":       "trust",
		"auth_file":       users,
		"admin_users":     "postgres",
		"max_client_conn": "500",

		// After a failed try, it would let nobody try again for 15 seconds.
		"server_login_retry": "0.1",
	}
	for _, setting := range settings {
		name, value, ok := strings.Cut(setting, "=")
		if !ok {
			return "", fmt.Errorf("setting %q: want name=value", setting)
		}
		all[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var config strings.Builder
	fmt.Fprintf(&config, "[databases]\n* = host=%s port=%s\n[pgbouncer]\n", host, serverPort)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&config, "%s = %s\n", name, all[name])
	}
	return config.String(), nil
}

// URL returns the URL for the superuser and the database postgres.
func (b *Bouncer) URL() string { return url(b.Addr(), "postgres") }
