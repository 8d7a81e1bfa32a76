package pgtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// What a killed process has left in memory goes away with the next one.
func TestSweep(t *testing.T) {
	t.Parallel()
	need(t)
	own := memory()
	if own == "" {
		t.Skip("there is no room in memory")
	}
	h := selftest.StartHelper(t, "", EnvURL+"=", "TMPDIR=")
	data := do1(t, url(h.Addr, "postgres"), "SHOW data_directory")
	name, _, _ := strings.Cut(strings.TrimPrefix(data, memoryDir+"/"), "/")
	dir := filepath.Join(memoryDir, name)
	sweep()
	expect(t, url(h.Addr, "postgres"), "SELECT 1", "1")
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.Cmd.Wait()
	selftest.Await(t, "the end of the server", func() bool { return len(processesIn(t, dir)) == 0 })
	sweep()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Error("the directory of this process is not:", err)
	}
}

func TestMainRemovesTheMemory(t *testing.T) {
	t.Parallel()
	need(t)
	if memory() == "" {
		t.Skip("there is no room in memory")
	}
	h := selftest.StartHelper(t, "", EnvURL+"=", "TMPDIR=")
	data := do1(t, url(h.Addr, "postgres"), "SHOW data_directory")
	h.Finish(t)
	if _, err := os.Stat(filepath.Dir(filepath.Dir(data))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}
