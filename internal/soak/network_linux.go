package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/redistest"
)

// Servers are cut off from one another by rules of a network namespace, which has nothing but this run in it, and ends
// with it. All servers are at 127.0.0.1. So that rules can tell their packets apart, each server runs as a user of its
// own; what clients send comes from the user of this program.
const (
	envNetwork    = "LOCKER_SOAK_NETWORK" // "mine": this process is in a namespace of its own
	envProgram    = "LOCKER_SOAK_PROGRAM" // the server program that serverProgram stands for
	serverProgram = "server"              // a link to this program, by which servers are started
	firstUser     = 100000                // a server with port P runs as user firstUser+P
)

func ownNetwork() bool { return os.Getenv(envNetwork) == "mine" }

// enterNetwork starts this program again in a network namespace, or says why that is not possible.
func enterNetwork() (skipped string, err error) {
	if ownNetwork() {
		return "", ip("link set lo up", "rule add pref 32000 lookup local", "rule del pref 0 lookup local")
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		return "they take root, and the program ip", nil
	}
	runtime.LockOSThread() // the namespace is that of a thread, which Exec makes the only one
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Sprintf("no network namespace: %v", err), nil
	}
	return "", syscall.Exec(self, os.Args, append(os.Environ(), envNetwork+"=mine"))
}

// ip runs the program ip.
func ip(commands ...string) error {
	for _, command := range commands {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", command, err, out)
		}
	}
	return nil
}

// cutOff cuts a server off from the other servers, and not from clients. One can be cut off at a time.
func cutOff(addr string) (mend func() error, err error) {
	port := portOf(addr)
	user := fmt.Sprintf("uidrange %d-%d", firstUser+port, firstUser+port)
	err = ip(
		fmt.Sprintf("rule add pref 10 ipproto tcp uidrange %d-%d dport %d blackhole", firstUser, firstUser+65535, port),
		fmt.Sprintf("rule add pref 11 ipproto tcp %s sport %d lookup local", user, port), // its answers to clients
		fmt.Sprintf("rule add pref 12 %s blackhole", user))
	return func() error { return ip("rule del pref 10", "rule del pref 11", "rule del pref 12") }, err
}

func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}

// findProgram finds the program of the servers. To build one takes the network that this process has at its start.
func findProgram(store string) (err error) {
	if ownNetwork() {
		return nil
	}
	var path string
	switch store {
	case storePostgres:
		return nil // one server is cut off from nobody
	case storeEtcd:
		path, err = etcdtest.Find()
	case storeRedis, storeRedlock, storeSentinel, storeCluster:
		path, err = redistest.Find()
	default:
		err = fmt.Errorf("no such store: %q", store)
	}
	if err == nil && !filepath.IsAbs(path) {
		err = fmt.Errorf("%s is in a container, where processes are out of reach", path)
	}
	if err != nil {
		return err
	}
	return os.Setenv(envProgram, path)
}

// useServerProgram has the servers of a test package be started by way of serverProgram.
func useServerProgram(dir, variable string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	link := filepath.Join(dir, serverProgram)
	if err := os.Symlink(self, link); err != nil {
		return err
	}
	return os.Setenv(variable, link)
}

var (
	portArgument = regexp.MustCompile(`--(?:port |listen-client-urls=\S*:)(\d+)`)
	dirArgument  = regexp.MustCompile(`--(?:dir |data-dir=)(\S+)`)
)

// runServer becomes a server program: with a user and a clock of its own.
func runServer(args []string) error {
	program, err := os.Open(os.Getenv(envProgram)) // it may be where another user has no access
	if err != nil {
		return err
	}
	env := os.Environ()
	port := portArgument.FindStringSubmatch(strings.Join(args, " "))
	dir := dirArgument.FindStringSubmatch(strings.Join(args, " "))
	if port != nil && dir != nil {
		clock, err := clockEnv(filepath.Dir(os.Args[0]), port[1])
		if err != nil {
			return err
		}
		env = append(env, clock...)
		number, _ := strconv.Atoi(port[1])
		if err := becomeUser(firstUser+number, strings.TrimSuffix(dir[1], "/data")); err != nil {
			return err
		}
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), append([]string{program.Name()}, args...), env)
}

// becomeUser makes this process and a directory another user's, where there is a namespace.
func becomeUser(user int, dir string) error {
	if !ownNetwork() {
		return nil
	}
	runtime.LockOSThread() // the thread that calls Exec is the one that remains
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, user, -1)
	})
	if err != nil {
		return err
	}
	if err := syscall.Setuid(user); err != nil {
		return err
	}
	// The change has cancelled that the server dies with the supervisor.
	if _, _, e := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0); e != 0 {
		return e
	}
	return nil
}
