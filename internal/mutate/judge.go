//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// verdict is what became of a mutant.
type verdict int

const (
	caught verdict = iota
	survived
	invalid     // it does not compile
	interrupted // nobody knows
)

// judge runs the tests with a mutant in place of its file, or, if it is nil, with everything as it is.
func judge(ctx context.Context, o options, m *mutant) (v verdict, output string) {
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return interrupted, err.Error()
	}
	defer func() { _ = os.RemoveAll(dir) }()
	common := []string{"test", "-count=1", "-failfast", fmt.Sprintf("-timeout=%v", o.timeout)}
	if m != nil {
		overlay, err := m.overlay(dir)
		if err != nil {
			return interrupted, err.Error()
		}
		common = append(common, "-overlay="+overlay)
	}
	for _, t := range o.tests {
		if v, output = test(ctx, t.dir, slices.Concat(common, t.args), o.timeout); v != survived {
			return v, output
		}
	}
	return survived, output
}

// test runs the go command, and kills it with all that it has started when it takes too long.
func test(ctx context.Context, dir string, args []string, timeout time.Duration) (verdict, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Minute) // the tests end by themselves before
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), testserver.EnvServers+"=programs")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	switch {
	case context.Cause(ctx) == context.Canceled: //nolint:errorlint // by the user
		return interrupted, ""
	case err == nil:
		return survived, output.String()
	case strings.Contains(output.String(), "[build failed]"), strings.Contains(output.String(), "[setup failed]"):
		return invalid, output.String()
	}
	return caught, output.String()
}

// overlay writes the mutant to dir, and the file by which the go command finds it there.
func (m *mutant) overlay(dir string) (string, error) {
	original, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	changed := filepath.Join(dir, filepath.Base(m.file))
	config, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, m.apply(), 0o600); err != nil {
		return "", err
	}
	return overlay, os.WriteFile(overlay, config, 0o600)
}
