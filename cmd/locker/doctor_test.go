package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/strangers"
)

// diagnose runs the command doctor, and returns its exit code and what it prints.
func diagnose(t *testing.T, store string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv(storeVariable, store)
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs}
	root := a.command()
	root.SetArgs(twoDashes(root, append([]string{"doctor"}, args...)))
	code = a.exitCode(root.Execute())
	return code, out.String(), errs.String()
}

// TestDoctorPrints has a store that nobody reaches: one check fails, and says what to do. The password is not shown.
func TestDoctorPrints(t *testing.T) {
	const password = "s3cret-Passw0rd"
	for _, store := range []string{
		"redis://app:" + password + "@" + strangers.Nobody(t),
		"redlock://app:" + password + "@" + strangers.Nobody(t),
		"redis+cluster://app:" + password + "@" + strangers.Nobody(t),
		"redis+sentinel://app:" + password + "@" + strangers.Nobody(t) + "/name",
		"postgres://app:" + password + "@" + strangers.Nobody(t) + "/db",
		"etcd://app:" + password + "@" + strangers.Nobody(t),
	} {
		for _, args := range [][]string{nil, {"-v"}, {"-q"}, {"-json"}} {
			code, stdout, stderr := diagnose(t, store, args...)
			if code != exitProblem || strings.Contains(stdout+stderr, password) || stderr != "" {
				t.Errorf("%s %q: exit code %d\n%s%s", store, args, code, stdout, stderr)
			}
			if args != nil && args[0] == "-json" {
				checkDoctorJSON(t, stdout)
				continue
			}
			for _, want := range []string{"FAIL    ", "\n        why: ", "\n        do:  "} {
				if !strings.Contains(stdout, want) {
					t.Errorf("%s %q: no %q in\n%s", store, args, want, stdout)
				}
			}
		}
	}
}

func checkDoctorJSON(t *testing.T, stdout string) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var o struct{ Check, Status, Found, Why, Do string }
		if err := json.Unmarshal([]byte(line), &o); err != nil || o.Status != "fail" || o.Do == "" || o.Why == "" {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestDoctorUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		store string
		args  []string
		code  int
	}{
		"memory":     {"memory://", nil, 0}, // a warning
		"no store":   {"", nil, exitUsage},
		"bad URL":    {"redis://a,b", nil, exitUsage},
		"bad TTL":    {"etcd://" + strangers.Nobody(t), []string{"-ttl", "1500ms"}, exitUsage},
		"an operand": {"memory://", []string{"key"}, exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			if code, stdout, stderr := diagnose(t, tc.store, tc.args...); code != tc.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, tc.code, stdout, stderr)
			}
		})
	}
}
