package pgtest

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestHelperProcess(t *testing.T) {
	selftest.HelperProcess(t, func() string {
		URL(t)
		return sharedServer(t).Addr()
	})
}

// startHelper starts a process that uses its shared server.
func startHelper(t *testing.T) *selftest.Helper {
	t.Helper()
	need(t)
	return selftest.StartHelper(t, product.TempDir(), EnvURL+"=")
}

func TestMainClosesTheSharedServer(t *testing.T) {
	t.Parallel()
	h := startHelper(t)
	conn := connect(t, url(h.Addr, "postgres"))
	h.Finish(t)
	expectEnd(t, conn)
	selftest.ExpectRefused(t, h.Addr)
}

func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("works on Linux only")
	}
	h := startHelper(t)
	conn := connect(t, url(h.Addr, "postgres"))
	do(t, conn, "SELECT 1")
	if len(processesIn(t, h.Tmp)) < 2 {
		t.Fatal("no processes found: the test is broken")
	}
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	selftest.Await(t, "the end of all processes of the server", func() bool {
		return len(processesIn(t, h.Tmp)) == 0
	})
	expectEnd(t, conn)
	selftest.ExpectRefused(t, h.Addr)
	if contained.Available() {
		return // who writes the log of a container has died with the process
	}
	logs, err := filepath.Glob(filepath.Join(h.Tmp, "*", "log"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	log, err := os.ReadFile(logs[0])
	if err != nil || !strings.Contains(string(log), "received immediate shutdown request") {
		t.Errorf("%v; the log:\n%s", err, log)
	}
}

// processesIn returns the processes that work in a directory, on Linux. All
// those of a Postgres server work in its data directory.
func processesIn(t *testing.T, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// Those of others cannot be read; they are not ours.
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}
