package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
)

// accessRules is the pg_hba.conf of all servers. The superuser needs no
// password; all other roles do, so that a wrong one can be tested.
const accessRules = `
host all         postgres 127.0.0.1/32 trust
host replication postgres 127.0.0.1/32 trust
host all         all      127.0.0.1/32 scram-sha-256
`

// initPatience bounds the time to make a data directory.
const initPatience = time.Minute

// template is the content of a new data directory. It is in memory, about
// 25 MB of it, since nobody would be sure to remove one on disk.
type template []templateFile

type templateFile struct {
	name string // relative
	dir  bool
	data []byte
}

// templates has the template of each program directory, or how to make it.
var templates sync.Map // string -> func() (template, error)

// templateOf makes the template at the first call, which takes a second or
// two: far longer than to write it to the disk again.
func templateOf(bindir string, user *testserver.User) (template, error) {
	once := sync.OnceValues(func() (template, error) { return makeTemplate(bindir, user) })
	get, _ := templates.LoadOrStore(bindir, once)
	return get.(func() (template, error))()
}

func makeTemplate(bindir string, user *testserver.User) (t template, err error) {
	tmp, err := user.MkdirTemp("pgtest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	data := dataDir(tmp)
	initdb, err := command(bindir, "initdb", user, tmp,
		"--no-sync", "--no-locale", "-E", "UTF8", "-A", "trust", "-U", "postgres",
		"--wal-segsize=1", // small segments make for a small copy
		"-D", data)
	if err != nil {
		return nil, err
	}
	if err := initdb.Run(initPatience); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(accessRules), 0o600); err != nil {
		return nil, err
	}
	err = filepath.WalkDir(data, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		file := templateFile{dir: entry.IsDir()}
		if file.name, err = filepath.Rel(data, path); err == nil && !file.dir {
			file.data, err = os.ReadFile(path)
		}
		t = append(t, file)
		return err
	})
	return t, err
}

// write makes a data directory like the template.
func (t template) write(dir string, user *testserver.User) error {
	for _, file := range t {
		path := filepath.Join(dir, file.name)
		var err error
		if file.dir {
			err = os.Mkdir(path, 0o700) // Postgres insists on it
		} else {
			err = os.WriteFile(path, file.data, 0o600)
		}
		if err := errors.Join(err, user.Own(path)); err != nil {
			return err
		}
	}
	return nil
}

// dataDir is the data directory in a server's temporary directory.
func dataDir(tmp string) string { return filepath.Join(tmp, "data") }

// command returns how to run one of the Postgres programs.
func command(bindir, name string, user *testserver.User, dir string, args ...string) (testserver.Command, error) {
	path, err := program(bindir, name)
	if err != nil {
		return testserver.Command{}, err
	}
	return testserver.Command{
		Program: path,
		Args:    args,
		User:    user,
		Dir:     dir, // this process may be where the user is not allowed to be
		Env:     environment(),
	}, nil
}

// environment is that of this process but for what would change a server, or
// the language of its log.
func environment() (env []string) {
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PG") && !strings.HasPrefix(variable, "LC_") && !strings.HasPrefix(variable, "LANG") {
			env = append(env, variable)
		}
	}
	return append(env, "LC_ALL=C", "TZ=UTC")
}

// serverUser is who runs the servers, as they refuse to be run by root.
func serverUser() (*testserver.User, error) {
	user, err := testserver.Unprivileged("postgres", "nobody")
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	return user, nil
}
