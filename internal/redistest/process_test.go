package redistest

import (
	"os"
	"runtime"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestHelperProcess(t *testing.T) {
	selftest.HelperProcess(t, func() string { return Address(t) })
}

// startHelper starts a process that uses its shared server.
func startHelper(t *testing.T) *selftest.Helper {
	t.Helper()
	if _, err := Find(); err != nil {
		product.Unavailable(t, err)
	}
	return selftest.StartHelper(t, "", EnvAddress+"=")
}

func TestMainClosesTheSharedServer(t *testing.T) {
	t.Parallel()
	h := startHelper(t)
	conn := selftest.Connect(t, h.Addr)
	if reply, err := exchange(conn, "PING"); err != nil || reply != "+PONG" {
		t.Fatalf("the helper's server: %q, %v", reply, err)
	}
	h.Finish(t)
	selftest.ExpectEnd(t, conn)
}

func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("works on Linux only")
	}
	h := startHelper(t)
	conn := selftest.Connect(t, h.Addr)
	if reply, err := exchange(conn, "PING"); err != nil || reply != "+PONG" {
		t.Fatalf("the helper's server: %q, %v", reply, err)
	}
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn)
}
