package redistest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// envHelper makes TestHelperProcess do something, in a process of its own.
const envHelper = "REDISTEST_HELPER"

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestHelperProcess is not a test by itself. It is what the other tests in
// this file run in a process of its own: it uses the shared server, tells its
// address, and goes on until its standard input ends.
func TestHelperProcess(t *testing.T) {
	if os.Getenv(envHelper) == "" {
		t.Skip("only for use by other tests")
	}
	fmt.Printf("\naddress %s\n", Address(t))
	io.Copy(io.Discard, os.Stdin)
}

// helper is a process that runs TestHelperProcess.
type helper struct {
	cmd   *exec.Cmd
	stdin io.Closer
	tmp   string   // its directory for temporary files
	conn  net.Conn // to its server
}

func startHelper(t *testing.T) *helper {
	t.Helper()
	if _, err := Find(); err != nil {
		unavailable(t, err)
	}
	h := &helper{tmp: t.TempDir()}
	h.cmd = exec.Command(os.Args[0], "-test.run=^TestHelperProcess$", "-test.count=1")
	h.cmd.Env = append(os.Environ(), envHelper+"=1", EnvAddress+"=", "TMPDIR="+h.tmp)
	h.cmd.Stderr = os.Stderr
	stdin, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.stdin = stdin
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		h.cmd.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		addr, ok := strings.CutPrefix(lines.Text(), "address ")
		if !ok {
			continue
		}
		if h.conn, err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.conn.Close() })
		h.conn.SetDeadline(time.Now().Add(patience))
		if reply, err := exchange(h.conn, "PING"); err != nil || reply != "+PONG" {
			t.Fatalf("the helper's server: %q, %v", reply, err)
		}
		go io.Copy(io.Discard, stdout) // ends with the helper
		return h
	}
	t.Fatal("the helper process did not tell an address")
	return nil
}

func TestMainClosesTheSharedServer(t *testing.T) {
	t.Parallel()
	h := startHelper(t)
	h.stdin.Close()
	expectEnd(t, h.conn)
	if err := h.cmd.Wait(); err != nil {
		t.Error("the helper process:", err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.tmp, "redistest-*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
}

func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("works on Linux only")
	}
	h := startHelper(t)
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, h.conn)
}
