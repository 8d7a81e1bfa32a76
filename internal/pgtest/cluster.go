package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lockerkit/locker/internal/testserver"
)

// accessRules is the pg_hba.conf of all servers. The superuser needs no
// password; all other roles do, so that a wrong one can be tested.
const accessRules = `
local all postgres trust
host all         postgres 127.0.0.1/32 trust
host replication postgres 127.0.0.1/32 trust
host all         all      127.0.0.1/32 scram-sha-256
`

// installation is where the programs are, and who is to run them.
type installation struct {
	bindir string
	user   *testserver.User
}

// findInstallation returns what there is on this machine.
func findInstallation() (in installation, err error) {
	postgres, err := product.Find()
	if err != nil {
		return in, err
	}
	in.bindir = filepath.Dir(postgres)
	in.user, err = serverUser()
	return in, err
}

// serverUser is who runs the servers, as they refuse to be run by root.
func serverUser() (*testserver.User, error) {
	user, err := testserver.Unprivileged("postgres", "nobody")
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	return user, nil
}

// command returns how to run one of the programs, in a directory which the
// user can reach: that of this process may not be.
func (in installation) command(dir, name string, args ...string) testserver.Command {
	return testserver.Command{
		Program: filepath.Join(in.bindir, name), Args: args, Dir: dir, Env: product.Environment(), User: in.user,
	}
}

// dataDir is the data directory in a server's temporary directory.
func dataDir(tmp string) string { return filepath.Join(tmp, "data") }

// template is the content of a new data directory. It is in memory, about
// 25 MB of it, since nobody would be sure to remove one on disk.
type template []templateFile

type templateFile struct {
	name string // relative
	dir  bool
	data []byte
}

// templates has a func() (template, error) for each installation.
var templates sync.Map

// template makes the template at the first call. That takes a second or two,
// and far longer than to write it to the disk again.
func (in installation) template() (template, error) {
	key := in.bindir // the user is always the same
	get, _ := templates.LoadOrStore(key, sync.OnceValues(in.makeTemplate))
	return get.(func() (template, error))()
}

func (in installation) makeTemplate() (t template, err error) {
	tmp, err := in.user.MkdirTemp(product.TempDir(), "pgtest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	data := dataDir(tmp)
	initdb := in.command(tmp, "initdb",
		"--no-sync", "--no-locale", "-E", "UTF8", "-A", "trust", "-U", "postgres",
		"--wal-segsize=1", // small segments make for a small copy
		"-D", data)
	if err := initdb.Run(patience); err != nil {
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
