package testserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker/internal/portkeep"
)

const (
	// startPorts is how many ports are tried for a new server.
	startPorts = 5

	// logTailMax is how much of a log goes into an error.
	logTailMax = 4 << 10
)

// The errors of a Server's methods when it is in the wrong state.
var (
	ErrNotRunning = errors.New("the server is not running")
	ErrClosed     = errors.New("the server was closed")
)

// Spec says what a server is.
type Spec struct {
	// Name is that of the package which provides the server. It begins the
	// errors and the names of temporary directories.
	Name string

	// User is to own the server's directory; Command may have it run the
	// server, too.
	User *User

	// TempDir is where to make the server's directory; empty means the usual
	// place for temporary files.
	TempDir string

	// Prepare, if not nil, is called once, before the first start. The
	// directory is empty but for the log, and goes with the Server.
	Prepare func(port int, dir string) error

	// Command returns how to start the server so that it listens on the port
	// of 127.0.0.1, and stays in the foreground.
	Command func(port int, dir string) Command

	// IsUp returns nil if the server answers before the deadline.
	IsUp func(addr string, deadline time.Time) error

	// KillSignal is what ends the server at once, together with its children;
	// nil means os.Kill. A server that is not gone after KillPatience gets
	// that, too.
	KillSignal   os.Signal
	KillPatience time.Duration

	// Busy are texts in the log of a server which could not start, but may
	// well a little later or on another port.
	Busy []string

	// Patience bounds the time that the server may take to start, or to end
	// in order.
	Patience time.Duration
}

// Server is a server process. Create one with Start. All methods are safe for
// concurrent use; those that change the server's state run one after the
// other.
type Server struct {
	spec Spec
	port *portkeep.Port
	dir  string // temporary directory

	mu     sync.Mutex
	child  *Child // the present process or the last one; nil before the first
	paused bool
	closed bool
}

// Start starts a server on a free loopback port and waits until it answers. On
// Linux the server dies with this process, however that ends.
func Start(spec Spec) (*Server, error) {
	// A kept port is free for us, but not on all systems; see portkeep.
	for attempt := 1; ; attempt++ {
		s, err := startOnce(spec)
		if err == nil || attempt == startPorts || !errors.Is(err, errBusy) {
			return s, err
		}
	}
}

// startOnce tries to start a server on some port.
func startOnce(spec Spec) (*Server, error) {
	s := &Server{spec: spec}
	var err error
	if s.port, err = portkeep.Keep(); err != nil {
		return nil, s.error(fmt.Errorf("find a port: %w", err))
	}
	if s.dir, err = spec.User.MkdirTemp(spec.TempDir, spec.Name+"-"); err != nil {
		s.port.Close()
		return nil, s.error(err)
	}
	if spec.Prepare != nil {
		if err := spec.Prepare(s.port.Number(), s.dir); err != nil {
			s.Close()
			return nil, s.error(err)
		}
	}
	if err := s.launch(time.Now().Add(spec.Patience)); err != nil {
		s.Close()
		return nil, s.error(err)
	}
	return s, nil
}

// Addr returns the server's address as host:port. It stays the same for the
// Server's whole life.
func (s *Server) Addr() string { return s.port.Addr() }

// Dir returns the server's temporary directory, which Close removes.
func (s *Server) Dir() string { return s.dir }

// Kill ends the server the hard way (SIGKILL, if there is no reason for
// another signal) and waits until it is gone. Connections to its address are
// refused from then on. Kill does nothing if the server is not running.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killLocked()
}

func (s *Server) killLocked() {
	switch {
	case s.child == nil:
	case s.paused || s.spec.KillSignal == nil:
		s.child.Kill() // SIGKILL also ends a paused process
	default:
		s.child.end(s.spec.KillSignal, s.spec.KillPatience)
	}
	s.paused = false
}

// Stop ends the server with a signal that lets it finish its work, and waits
// until it is gone. If that takes too long, the server is killed and there is
// an error. Stop does nothing if the server is not running.
func (s *Server) Stop(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.child == nil || s.child.ended():
		return nil
	case s.paused:
		s.killLocked()
		return s.error(errors.New("the server was paused, so that it could only be killed"))
	case !s.child.end(sig, s.spec.Patience):
		return s.error(
			fmt.Errorf("the server did not end with %v, and was killed; the end of its log:\n%s", sig, s.LogTail()),
		)
	}
	return nil
}

// Restart starts the server again, on the same port and in the same way, and
// waits until it answers. If it is still running, it is killed before.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.error(ErrClosed)
	}
	s.killLocked()
	deadline := time.Now().Add(s.spec.Patience)
	for {
		err := s.launch(deadline)
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return s.error(err)
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
		return s.error(err)
	}
	if err := s.child.process.Pause(); err != nil {
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
		return s.error(err)
	}
	if err := s.child.process.Resume(); err != nil {
		return s.signalError("resume", err)
	}
	s.paused = false
	return nil
}

// Pid returns the number of the server's process. A server in a container, or
// one that is not running, has none.
func (s *Server) Pid() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkRunning(); err != nil {
		return 0, s.error(err)
	}
	if p, ok := s.child.process.(*hostProcess); ok {
		return p.Pid, nil
	}
	return 0, s.error(errors.ErrUnsupported)
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
		return s.error(ErrNotRunning)
	}
	return s.error(fmt.Errorf("%s the server: %w", what, err))
}

// error says in an error, if it is one, whose server it is about.
func (s *Server) error(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", s.spec.Name, err)
}

// LogTail returns the end of what the server has logged so far.
func (s *Server) LogTail() string { return tail(s.logFile()) }

// tail returns the end of a file.
func tail(path string) string {
	text, err := os.ReadFile(path)
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
	return s.error(errors.Join(os.RemoveAll(s.dir), s.port.Close()))
}

// errBusy says that the server could not start for the time being.
var errBusy = errors.New("the port is taken, or something else of the server's")

// launch starts a process and waits until it answers. If it does not in time,
// launch kills it.
func (s *Server) launch(deadline time.Time) error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own descriptor
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	command := s.spec.Command(s.port.Number(), s.dir)
	if s.child, err = command.Start(log); err != nil {
		return fmt.Errorf("start %s: %w", command.Program, err)
	}
	if err := s.awaitUp(command.Program, deadline); err != nil {
		s.killLocked()
		if s.isBusy(begin) {
			err = fmt.Errorf("%w: %w", errBusy, err)
		}
		return fmt.Errorf("%w; the end of its log:\n%s", err, s.LogTail())
	}
	return nil
}

// awaitUp asks the server again and again until it answers. There is no event
// to wait for: a server does not tell when it listens.
func (s *Server) awaitUp(program string, deadline time.Time) error {
	for {
		// Not the whole time for one try: somebody else may have the port.
		try := time.Now().Add(time.Second)
		if try.After(deadline) {
			try = deadline
		}
		err := s.spec.IsUp(s.Addr(), try)
		if s.child.ended() { // then the answer, if any, was not from our server
			return fmt.Errorf("%s ended at once: %w", program, s.child.err)
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s was not up within %v: %w", program, s.spec.Patience, err)
		}
		select {
		case <-s.child.done:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// isBusy reports whether the log has one of the Busy texts, at or after an
// offset.
func (s *Server) isBusy(offset int64) bool {
	log, err := os.ReadFile(s.logFile())
	if err != nil || int64(len(log)) <= offset {
		return false
	}
	for _, text := range s.spec.Busy {
		if strings.Contains(string(log[offset:]), text) {
			return true
		}
	}
	return false
}
