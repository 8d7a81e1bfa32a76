package redistest

import (
	"strconv"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// startPatience bounds the time that a server may take to come up.
const startPatience = 10 * time.Second

// Options are the choices for a new server. The zero Options are fine.
type Options struct {
	// Args are further arguments of the server, such as "--requirepass",
	// "secret". They come last and so override the defaults, which are to
	// listen on 127.0.0.1 and to persist nothing.
	Args []string

	// Dir is the data directory. If empty, it is a temporary one that Close
	// removes.
	Dir string
}

// Server is a Redis server process. Create one with Start or New. After
// Restart it is empty, unless Options.Args made it persist its data.
type Server struct{ *testserver.Server }

// URL returns the server's address as redis://host:port/0.
func (s *Server) URL() string { return "redis://" + s.Addr() + "/0" }

// Start starts a Redis server on a free loopback port and waits until it answers.
// On Linux the server dies with this process, however that ends.
func Start(opts Options) (*Server, error) {
	return start(opts, nil, nil)
}

// start is Start, with further arguments that depend on the port and the
// directory, and something to do before the first start.
func start(
	opts Options, args func(port int, dir string) []string, prepare func(port int, dir string) error,
) (*Server, error) {
	program, err := product.Find()
	if err != nil {
		return nil, err
	}
	server, err := testserver.Start(testserver.Spec{
		Name:    product.Package,
		TempDir: product.TempDir(), // a node of a cluster stops for each write to its disk
		Prepare: prepare,
		Command: func(port int, dir string) testserver.Command {
			var all []string
			if args != nil {
				all = args(port, dir)
			}
			if opts.Dir != "" {
				dir = opts.Dir
			}
			all = append(all,
				"--port", strconv.Itoa(port),
				"--bind", "127.0.0.1",
				"--dir", dir,
				"--save", "",
				"--appendonly", "no",
			)
			return testserver.Command{Program: program, Args: append(all, opts.Args...)}
		},
		IsUp:     isUp,
		Busy:     []string{"Address already in use", "Failed listening on port"},
		Patience: startPatience,
	})
	if err != nil {
		return nil, err
	}
	return &Server{server}, nil
}
