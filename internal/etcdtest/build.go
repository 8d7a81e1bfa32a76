package etcdtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// buildPatience bounds the time that it may take to build the server, and to
// fetch what it is made of.
const buildPatience = 9 * time.Minute

// build returns the path of the server that is built from the module in the
// directory server. It is kept in the user's cache.
func build() (path string, err error) {
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return buildIn(filepath.Join(cache, "locker-tests"), source)
}

// sourceDir returns the directory with the module of the server.
func sourceDir() (dir string, err error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) { // as with go test -trimpath
		return "", errors.New("it is not known where the source of this package is")
	}
	return filepath.Join(filepath.Dir(file), "server"), nil
}

// buildIn builds the server if it is not in the cache.
func buildIn(cache, source string) (path string, err error) {
	key, err := buildKey(source)
	if err != nil {
		return "", err
	}
	path = filepath.Join(cache, "etcd-"+key)
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	if built(path) {
		return path, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// The processes of one go test need it all at once. It is enough that one
	// of them builds it.
	unlock, err := testserver.Lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(path) {
		return path, nil
	}
	return path, compile(source, path)
}

// built reports whether there is a program.
func built(path string) bool {
	_, err := exec.LookPath(path)
	return err == nil
}

// buildKey tells apart what is built from different sources.
func buildKey(source string) (key string, err error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:8]), nil
}

// compile builds the server. It is at the path when it is complete.
func compile(source, path string) error {
	golang, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	program := filepath.Join(tmp, filepath.Base(path))
	err = testserver.Command{
		Program: golang,
		Args:    []string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "."},
		Dir:     source,
		Env:     append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off"),
	}.Run(buildPatience)
	if err != nil {
		return err
	}
	return os.Rename(program, path)
}
