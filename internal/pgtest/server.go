package pgtest

import (
	"maps"
	"net"
	neturl "net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// patience bounds the time that a server may take to start, which can include
// a recovery, and to end.
const patience = 30 * time.Second

// crashPatience bounds the time that a crash may take. It is a matter of
// milliseconds, unless somebody has just connected and does not say a word:
// the servers before version 18 await that, for authentication_timeout.
const crashPatience = 2 * time.Second

// Options are the choices for a new server. The zero Options are fine.
type Options struct {
	// Settings are those of postgresql.conf. They override the defaults of
	// this package: to listen on 127.0.0.1 only, to leave the writing to the
	// disk to the operating system, and to allow 200 connections.
	//
	// As they are on the server's command line, ALTER SYSTEM does not override
	// them.
	Settings map[string]string
}

// defaults are settings in which a server for tests differs from others.
var defaults = map[string]string{
	"listen_addresses":        "127.0.0.1",
	"unix_socket_directories": "",
	"max_connections":         "200",
	"shared_buffers":          "32MB",
	"password_encryption":     "scram-sha-256",
	"wal_level":               "replica",

	// In the data directory, where it is removed even if the server was killed.
	"dynamic_shared_memory_type": "mmap",

	"authentication_timeout": "10s", // less than the patience of Stop; see crashPatience

	// What is lost without it when the machine crashes goes with the test.
	// A crash of the server alone loses nothing.
	"fsync": "off",

	// So that a standby may be away for a while, and comes back at once.
	"wal_keep_size":               "64MB",
	"wal_retrieve_retry_interval": "100ms",
}

// Server is a Postgres server with a data directory of its own. Its superuser
// is postgres, who needs no password; other roles are to log in with theirs.
// Create one with Start or New, or as a copy of another one with Standby. All
// methods are safe for concurrent use; those that change the server's state
// run one after the other.
type Server struct {
	server   *testserver.Server
	in       installation
	settings map[string]string

	primary *Server // of a standby
	name    string  // of a standby, for its primary
}

// Start starts a Postgres server on a free loopback port, and waits until it
// answers queries. Where this process is
// root, the server belongs to the user postgres or nobody. On Linux it dies
// with this process, however that ends.
func Start(opts Options) (*Server, error) {
	in, err := findInstallation()
	if err != nil {
		return nil, err
	}
	return start(in, opts.Settings, func(_ int, dir string) error {
		template, err := in.template()
		if err != nil {
			return err
		}
		return template.write(dataDir(dir), in.user)
	})
}

// start starts a new server. The function is to make the data directory, the
// dataDir in the server's directory.
func start(in installation, settings map[string]string, prepare func(port int, dir string) error) (*Server, error) {
	server, err := testserver.Start(testserver.Spec{
		Name:    product.Package,
		User:    in.user,
		TempDir: product.TempDir(),
		Prepare: prepare,
		Command: func(port int, dir string) testserver.Command {
			postgres := in.command(dir, "postgres", "-D", dataDir(dir), "-p", strconv.Itoa(port))
			all := maps.Clone(defaults)
			maps.Copy(all, settings)
			for _, name := range slices.Sorted(maps.Keys(all)) {
				postgres.Args = append(postgres.Args, "-c", name+"="+all[name])
			}
			// SIGKILL would leave the server's children behind for a while.
			postgres.DeathSignal = syscall.SIGQUIT
			return postgres
		},
		IsUp:         isUp,
		KillSignal:   syscall.SIGQUIT,
		KillPatience: crashPatience,
		Busy: []string{
			"Address already in use",
			"pre-existing shared memory block", // children that outlived a kill
		},
		Patience: patience,
	})
	if err != nil {
		return nil, err
	}
	return &Server{server: server, in: in, settings: settings}, nil
}

// isUp reports whether a Postgres server answers queries.
func isUp(addr string, deadline time.Time) error {
	_, err := query(url(addr, "postgres"), deadline, "SELECT 1")
	return err
}

// url returns the URL of the superuser at an address.
func url(addr, database string) string {
	return "postgres://postgres@" + addr + "/" + database + "?sslmode=disable"
}

// Addr returns the server's address as host:port. It stays the same for the
// Server's whole life.
func (s *Server) Addr() string { return s.server.Addr() }

// URL returns the URL for the superuser and the database postgres.
func (s *Server) URL() string { return url(s.Addr(), "postgres") }

// SocketURL is URL by way of the Unix socket, of a server with the setting unix_socket_directories=".".
func (s *Server) SocketURL() string {
	_, port, _ := net.SplitHostPort(s.Addr())
	return "postgres://postgres@/postgres?port=" + port + "&host=" + neturl.QueryEscape(dataDir(s.server.Dir()))
}

// Crash ends the server and all of its connections at once, without any of the
// work of an orderly end (SIGQUIT, "immediate shutdown"), and waits until it is
// gone. What was committed is there again after Restart. Crash does nothing if
// the server is not running.
func (s *Server) Crash() { s.server.Kill() }

// Stop ends the server in order (SIGINT, "fast shutdown"): it takes back what
// is not committed, tells the clients, and sends all it has to the standbys.
// Stop waits until it is gone. It does nothing if the server is not running.
func (s *Server) Stop() error { return s.server.Stop(syscall.SIGINT) }

// Restart starts the server again, on the same port and with the same data and
// options, and waits until it answers queries. If it is still running, it
// crashes before.
func (s *Server) Restart() error { return s.server.Restart() }

// LogTail returns the end of what the server has logged so far.
func (s *Server) LogTail() string { return s.server.LogTail() }

// Close crashes the server and removes its data. Further calls do nothing.
func (s *Server) Close() error { return s.server.Close() }
