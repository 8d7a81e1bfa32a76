package testserver

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// startInMemory starts a helper process with a server in memory, and returns
// the server's directory and that of its process.
func startInMemory(t *testing.T) (h *selftest.Helper, server, process string) {
	t.Helper()
	t.Setenv("TMPDIR", "")
	if memoryProduct.TempDir() == "" {
		t.Skip("there is no room in memory")
	}
	h = selftest.StartHelper(t, "", "TMPDIR=")
	conn := selftest.Connect(t, h.Addr)
	if _, err := io.WriteString(conn, "pwd\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	server = strings.TrimSuffix(line, "\n")
	process = filepath.Dir(server)
	if err != nil || filepath.Dir(process) != memoryDir {
		t.Fatalf("the server is in %q, %v", server, err)
	}
	return h, server, process
}

// What a killed process has left in memory goes away with the next one.
func TestSweep(t *testing.T) {
	h, server, process := startInMemory(t)
	prefix := memoryProduct.Package + "-"
	sweep(prefix)
	if _, err := os.Stat(server); err != nil {
		t.Error("the directory of a running process is gone:", err)
	}
	conn := selftest.Connect(t, h.Addr)
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.Cmd.Wait()
	selftest.ExpectEnd(t, conn)
	sweep(prefix)
	if _, err := os.Stat(process); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", process, err)
	}
	if _, err := os.Stat(memoryProduct.TempDir()); err != nil {
		t.Error("the directory of this process is not:", err)
	}
}

func TestMainRemovesTheMemory(t *testing.T) {
	h, _, process := startInMemory(t)
	h.Finish(t)
	if _, err := os.Stat(process); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}
