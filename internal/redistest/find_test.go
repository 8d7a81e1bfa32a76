package redistest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestFind(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	onPath, named := selftest.Program(t, t.TempDir(), "redis-server", ""), selftest.Program(t, t.TempDir(), "my-redis", "")
	t.Setenv("PATH", filepath.Dir(onPath))

	t.Setenv(EnvProgram, named)
	if got, err := Find(); got != named || err != nil {
		t.Errorf("with $%s: %q, %v", EnvProgram, got, err)
	}

	t.Setenv(EnvProgram, "")
	if got, err := Find(); got != onPath || err != nil {
		t.Errorf("with the program on the PATH: %q, %v", got, err)
	}

	t.Setenv("PATH", "")
	got, err := Find()
	if _, missing := exec.LookPath(usualPath); missing == nil {
		if got != usualPath || err != nil {
			t.Errorf("with the program in the usual place: %q, %v", got, err)
		}
	} else if !errors.Is(err, ErrNotFound) {
		t.Errorf("without a program: %q, %v", got, err)
	}

	// What the environment names is not replaced by something else.
	t.Setenv(EnvProgram, filepath.Join(t.TempDir(), "missing"))
	if got, err := Find(); !errors.Is(err, ErrNotFound) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with a missing $%s: %q, %v", EnvProgram, got, err)
	}
	if _, err := Start(Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Start = %v", err)
	}
}

func TestStartOfSomethingElse(t *testing.T) {
	t.Setenv(EnvProgram, selftest.Program(t, t.TempDir(), "not-redis", "exit 7"))
	_, err := Start(Options{})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("Start = %v, want to read how the program ended", err)
	}
}
