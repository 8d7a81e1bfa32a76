package testserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// envFake makes this test program a server; see fake.
const envFake = "TESTSERVER_FAKE"

func TestMain(m *testing.M) {
	if kind := os.Getenv(envFake); kind != "" {
		os.Exit(fake(kind, os.Args[1]))
	}
	os.Exit(memoryProduct.Main(m, &closer{}))
}

// memoryProduct is the one whose servers are in memory, if not $TMPDIR wants
// something else.
var memoryProduct = product()

// fake is the server of the tests, which listens on a port and sends all that
// it gets back, or where it is if that is "pwd". Some kinds are worse than that.
func fake(kind, port string) (exitCode int) {
	switch kind {
	case "broken":
		fmt.Println("this does not work")
		return 7
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "polite":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			fmt.Println("good bye")
			os.Exit(0)
		}()
	}
	l, err := net.Listen("tcp4", "127.0.0.1:"+port)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		if kind == "mute" {
			continue
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewReader(conn)
			for {
				line, err := lines.ReadString('\n')
				if line == "exit\n" {
					os.Exit(3)
				}
				if line == "pwd\n" {
					dir, _ := os.Getwd()
					line = dir + "\n"
				}
				if err != nil {
					return
				}
				io.WriteString(conn, line)
			}
		}()
	}
}

// fakeSpec describes a fake server.
func fakeSpec(t *testing.T, kind string) Spec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name: "faketest",
		Command: func(port int, dir string) Command {
			return Command{
				Program: self,
				Args:    []string{strconv.Itoa(port)},
				Dir:     dir,
				// The race detector would have it wait a second before it ends.
				Env: append(os.Environ(), envFake+"="+kind, "GORACE=atexit_sleep_ms=0"),
			}
		},
		IsUp: func(addr string, deadline time.Time) error {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(deadline)
			return echo(conn)
		},
		Busy:     []string{"address already in use"},
		Patience: selftest.Patience,
	}
}

// echo has the server at the other end of a connection send something back.
func echo(conn net.Conn) error {
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	buf := make([]byte, len("hello\n"))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != "hello\n" {
		return errors.New("not an echo")
	}
	return nil
}

// startFake starts a fake server, which is closed with the test.
func startFake(t *testing.T, spec Spec) *Server {
	t.Helper()
	s, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func expectUp(t *testing.T, s *Server) {
	t.Helper()
	if err := echo(selftest.Connect(t, s.Addr())); err != nil {
		t.Fatal(err)
	}
}
