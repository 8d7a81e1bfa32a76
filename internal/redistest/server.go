package redistest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker/internal/portkeep"
)

const (
	// startPatience bounds the time that a server may take to come up.
	startPatience = 10 * time.Second

	// startPorts is how many ports are tried for a new server.
	startPorts = 5

	// logTailMax is how much of the log goes into an error.
	logTailMax = 4 << 10
)

// The errors of a Server's methods when it is in the wrong state.
var (
	ErrNotRunning = errors.New("redistest: the server is not running")
	ErrClosed     = errors.New("redistest: the server was closed")
)

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

// Server is a Redis server process. Create one with Start or New. All methods
// are safe for concurrent use; those that change the server's state run one
// after the other.
type Server struct {
	program string
	args    []string
	port    *portkeep.Port
	tmp     string // temporary directory: the log, and by default the data
	dataDir string

	mu     sync.Mutex
	child  *child // the present process or the last one; nil before the first
	paused bool
	closed bool
}

// Start starts a Redis server on a free loopback port, with the program that
// Find finds, and waits until it answers. On Linux the server dies with this
// process, however that ends.
func Start(opts Options) (*Server, error) {
	program, err := Find()
	if err != nil {
		return nil, err
	}
	// A kept port is free for us, but not on all systems; see portkeep.
	for attempt := 1; ; attempt++ {
		s, err := startOnce(program, opts)
		if err == nil || attempt == startPorts || !errors.Is(err, errPortTaken) {
			return s, err
		}
	}
}

// startOnce tries to start a server on some port.
func startOnce(program string, opts Options) (*Server, error) {
	s := &Server{program: program, args: opts.Args, dataDir: opts.Dir}
	var err error
	if s.port, err = portkeep.Keep(); err != nil {
		return nil, fmt.Errorf("redistest: find a port: %w", err)
	}
	if s.tmp, err = os.MkdirTemp("", "redistest-"); err != nil {
		s.port.Close()
		return nil, fmt.Errorf("redistest: %w", err)
	}
	if s.dataDir == "" {
		s.dataDir = s.tmp
	}
	if err := s.launch(time.Now().Add(startPatience)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Addr returns the server's address as host:port. It stays the same for the
// Server's whole life.
func (s *Server) Addr() string { return s.port.Addr() }

// URL returns the server's address as redis://host:port/0.
func (s *Server) URL() string { return "redis://" + s.Addr() + "/0" }

// Kill ends the server with SIGKILL and waits until it is gone. Connections to
// its address are refused from then on. Kill does nothing if the server is not
// running.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killLocked()
}

func (s *Server) killLocked() {
	if s.child != nil {
		s.child.kill() // SIGKILL also ends a paused process
	}
	s.paused = false
}

// Restart starts the server again, on the same port and with the same options,
// and waits until it answers. If it is still running, it is killed before. It
// comes back empty, unless Options.Args made it persist its data.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.killLocked()
	deadline := time.Now().Add(startPatience)
	for {
		err := s.launch(deadline)
		if !errors.Is(err, errPortTaken) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond) // whoever has the port may let go of it
	}
}

// Pause stops the server with SIGSTOP and waits until it has really stopped.
// The kernel still accepts connections and bytes on its behalf. Pause does
// nothing if the server is paused already.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkRunning(); err != nil || s.paused {
		return err
	}
	if err := s.child.pause(); err != nil {
		return s.signalError("pause", err)
	}
	s.paused = true
	return nil
}

// Resume lets a paused server go on with SIGCONT. It does nothing if the
// server is not paused.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkRunning(); err != nil || !s.paused {
		return err
	}
	if err := s.child.resume(); err != nil {
		return s.signalError("resume", err)
	}
	s.paused = false
	return nil
}

func (s *Server) checkRunning() error {
	switch {
	case s.closed:
		return ErrClosed
	case s.child == nil || s.child.ended():
		return ErrNotRunning
	}
	return nil
}

func (s *Server) signalError(what string, err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	return fmt.Errorf("redistest: %s the server: %w", what, err)
}

// LogTail returns the end of what the server has logged so far.
func (s *Server) LogTail() string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	if len(text) > logTailMax {
		text = text[len(text)-logTailMax:]
	}
	return string(text)
}

// Close kills the server, paused or not, and removes its temporary directory.
// Further calls do nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.killLocked()
	return errors.Join(os.RemoveAll(s.tmp), s.port.Close())
}

// errPortTaken says that the server could not listen on its port.
var errPortTaken = errors.New("redistest: the port is taken")

// launch starts a process and waits until it answers. If it does not in time,
// launch kills it.
func (s *Server) launch(deadline time.Time) error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	defer log.Close() // the child has its own descriptor
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	args := append([]string{
		"--port", strconv.Itoa(s.port.Number()),
		"--bind", "127.0.0.1",
		"--dir", s.dataDir,
		"--save", "",
		"--appendonly", "no",
	}, s.args...)
	if s.child, err = startChild(log, s.program, args...); err != nil {
		return fmt.Errorf("redistest: start %s: %w", s.program, err)
	}
	if err := s.awaitUp(deadline); err != nil {
		s.child.kill()
		if s.logSays("Address already in use", begin) {
			err = fmt.Errorf("%w: %w", errPortTaken, err)
		}
		return fmt.Errorf("%w; the end of its log:\n%s", err, s.LogTail())
	}
	return nil
}

// awaitUp asks the server again and again until it answers. There is no event
// to wait for: the server does not tell when it listens.
func (s *Server) awaitUp(deadline time.Time) error {
	for {
		// Not the whole time for one try: somebody else may have the port.
		try := time.Now().Add(time.Second)
		if try.After(deadline) {
			try = deadline
		}
		err := isUp(s.Addr(), try)
		if s.child.ended() { // then the answer, if any, was not from our server
			return fmt.Errorf("redistest: %s ended at once: %w", s.program, s.child.err)
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("redistest: %s was not up within %v: %w", s.program, startPatience, err)
		}
		select {
		case <-s.child.done:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *Server) logFile() string { return filepath.Join(s.tmp, "redis.log") }

// logSays reports whether the log has the text, at or after an offset.
func (s *Server) logSays(text string, offset int64) bool {
	log, err := os.ReadFile(s.logFile())
	return err == nil && int64(len(log)) > offset && strings.Contains(string(log[offset:]), text)
}
