//go:build linux

package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/lockerkit/locker/internal/redistest"
)

// BenchmarkRun is what "locker run" adds to a command, on a Redis server on the same machine. The program is built as
// it is released.
func BenchmarkRun(b *testing.B) {
	program := b.TempDir() + "/locker"
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	b.Setenv(storeVariable, "redis://"+redistest.Address(b))
	for name, args := range map[string][]string{
		"alone": {"true"}, "locker": {program, "run", "k", "--", "true"}, "version": {program, "version"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := exec.Command(args[0], args[1:]...).Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
