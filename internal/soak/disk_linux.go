package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/etcdtest"
)

// envSlowed is set for the server program that runs below strace already.
const envSlowed = "LOCKER_SOAK_SLOWED"

// slowDiskMissing says why disks cannot be made slow, or "".
func slowDiskMissing() string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "there is no strace"
	}
	return ""
}

// slowDiskFile says how long each write to the disk of a server takes, if that is slow. dir is that of this run.
func slowDiskFile(dir, server string) string { return filepath.Join(dir, "disk-"+server) }

// slowed becomes strace, which runs this program again, if the disk of the server is to be slow from its start on. It
// returns the arguments of a server whose disk counts. The tracer is no parent of the server, which can be paused and
// killed as others.
func slowed(args []string, server string) ([]string, error) {
	text, err := os.ReadFile(slowDiskFile(filepath.Dir(os.Args[0]), server))
	if err != nil {
		return args, nil
	}
	if os.Getenv(envSlowed) != "" {
		return append(args, "--unsafe-no-fsync=false"), nil
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		return nil, err
	}
	wait, err := strconv.Atoi(string(text))
	if err != nil {
		return nil, err
	}
	argv := []string{
		"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:delay_enter=%d", wait), os.Args[0],
	}
	return nil, syscall.Exec(strace, append(argv, args...), append(os.Environ(), envSlowed+"=1"))
}

// slowDisk starts members again with slow disks, and at the end with fast ones, with their data each time.
func (s *soak) slowDisk(members []*etcdtest.Member, rng *rand.Rand) (end func() error, err error) {
	wait := 60*time.Millisecond + below(rng, 90*time.Millisecond)
	each := func(set func(file string) error) error {
		for _, m := range members {
			if err := set(slowDiskFile(s.dir, strconv.Itoa(portOf(m.Addr())))); err != nil {
				return err
			}
			if err := m.Restart(); err != nil {
				return err
			}
		}
		return nil
	}
	err = each(func(file string) error {
		return os.WriteFile(file, []byte(strconv.FormatInt(wait.Microseconds(), 10)), 0o644)
	})
	return func() error { return each(os.Remove) }, err
}
