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

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// envFake makes this test program a server; see fake.
const envFake = "TESTSERVER_FAKE"

func TestMain(m *testing.M) {
	if kind := os.Getenv(envFake); kind != "" {
		os.Exit(fake(kind, os.Args[1]))
	}
	os.Exit(fakes.Main(m, &Lazy[*Server]{}))
}

// fakes is a product that nobody has.
var fakes = product()

func product() *Product {
	return &Product{
		Name: "Fake", Package: "faketest", EnvProgram: "TESTSERVER_PROGRAM", Program: "faked",
		EnvAddress: "TESTSERVER_ADDRESS", URL: "fake://localhost:1234/0",
	}
}

// fake is the server of the tests, which listens on a port and sends all that it gets back, or where it is if that is
// "pwd".
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
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				line := lines.Text()
				if line == "pwd" {
					line, _ = os.Getwd()
				}
				fmt.Fprintln(conn, line)
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
			_, err = ask(conn, "hello")
			return err
		},
		Busy:     []string{"address already in use"},
		Patience: locktest.Patience,
	}
}

// ask has the server at the other end of a connection answer.
func ask(conn net.Conn, question string) (answer string, err error) {
	if _, err := io.WriteString(conn, question+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && question != "pwd" && line != question+"\n" {
		err = errors.New("not an echo")
	}
	return line[:max(0, len(line)-1)], err
}

// startFake starts a fake server, which is closed with the test.
func startFake(t *testing.T, spec Spec) *Server {
	t.Helper()
	return New(t, fakes, func() (*Server, error) { return Start(spec) })
}

func expectUp(t *testing.T, s *Server) {
	t.Helper()
	if _, err := ask(selftest.Connect(t, s.Addr()), "hello"); err != nil {
		t.Fatal(err)
	}
}
