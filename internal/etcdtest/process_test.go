package etcdtest

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
	need(t)
	return selftest.StartHelper(t, product.TempDir(), EnvAddress+"=")
}

func TestMainClosesTheSharedServer(t *testing.T) {
	t.Parallel()
	h := startHelper(t)
	conn := selftest.Connect(t, h.Addr)
	h.Finish(t)
	selftest.ExpectEnd(t, conn)
	selftest.ExpectRefused(t, h.Addr)
}

func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("works on Linux only")
	}
	h := startHelper(t)
	conn := selftest.Connect(t, h.Addr)
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn)
}
