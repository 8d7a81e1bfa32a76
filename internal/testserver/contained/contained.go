// Package contained has test servers run in containers, by the command in internal/containers: the command listens on a
// Unix socket, to which each connection is for one program. What starts the program is the first thing sent; what is to
// become of it follows; and when the connection ends, so does the program. So it cannot outlive the test that it is
// for.
//
// Containers are as close to processes as can be: they have the network and the user of this process, and see the same
// temporary files at the same place. So tests do not notice the difference.
package contained

import (
	"os"
	"path"
	"slices"
	"strings"
)

// EnvSocket names the environment variable with the path of the socket. Where it is set, the programs that are not
// named by variables of their own are those in the images.
const EnvSocket = "LOCKER_TEST_CONTAINERS"

// Available reports whether there is a command to run programs in containers.
func Available() bool { return os.Getenv(EnvSocket) != "" }

// prefix begins what stands for the path of a program in an image.
const prefix = "container:"

// Path returns what stands for the path of a program in an image, or for that of the image alone. It can be joined with
// names like the path of a directory.
func Path(image string, program ...string) string {
	return prefix + path.Join(append([]string{image}, program...)...)
}

// Is reports whether a path is one of Path.
func Is(path string) bool { return strings.HasPrefix(path, prefix) }

// Request says which program to run.
type Request struct {
	Image   string // as the command knows it: redis, postgres, pgbouncer or etcd
	Program string
	Args    []string
	Dir     string   // the working directory; empty: that of the image
	Env     []string // added to that of the image
	User    string   // uid:gid
}

// NewRequest returns the request for a path of Path. Of the environment, which is that of this process with changes,
// only these count: the rest says where to find things on this machine. nil means no changes.
func NewRequest(path string, args []string, dir string, env []string, user string) Request {
	image, program, _ := strings.Cut(strings.TrimPrefix(path, prefix), "/")
	r := Request{Image: image, Program: program, Args: args, Dir: dir, User: user}
	ours := os.Environ()
	for _, variable := range env {
		if !slices.Contains(ours, variable) {
			r.Env = append(r.Env, variable)
		}
	}
	return r
}

// Order says what is to become of the program.
type Order struct {
	Do     Verb
	Signal int // for Signal
}

// Verb is what can be done with a program.
type Verb string

// The verbs.
const (
	Signal Verb = "signal" // send it a signal
	Pause  Verb = "pause"  // have the kernel stop all of it
	Resume Verb = "resume"
)

// Event is what the command tells of the program. There is one with Started, or with Ended if it did not start; then
// one for each order, with Done, as the orders come; and one with Ended when it has ended and all of its output has
// been told.
type Event struct {
	Started bool   `json:",omitempty"`
	Output  []byte `json:",omitempty"`
	Done    bool   `json:",omitempty"`
	Ended   bool   `json:",omitempty"`
	Code    int    `json:",omitempty"` // with which it ended
	Error   string `json:",omitempty"` // why it could not be done
}
