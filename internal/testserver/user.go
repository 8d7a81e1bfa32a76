package testserver

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// User is an account of the system.
type User struct{ UID, GID uint32 }

// Unprivileged returns an account for programs that refuse to be run by root.
// It is the first of those named that exists, or nil, which means the account
// of this process, if that is not root anyway.
func Unprivileged(names ...string) (*User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range names {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &User{UID: uint32(uid), GID: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("this is root, and none of the users %q exists", names)
}

// Own gives a file to the user.
func (u *User) Own(path string) error {
	if u == nil {
		return nil // it is theirs
	}
	return os.Lchown(path, int(u.UID), int(u.GID))
}

// MkdirTemp makes a directory that belongs to the user, as os.MkdirTemp does.
// It is in another place if the user cannot reach the one wanted: root's
// temporary files may be where nobody else can look.
func (u *User) MkdirTemp(base, pattern string) (path string, err error) {
	if u == nil {
		return os.MkdirTemp(base, pattern)
	}
	if base == "" {
		base = os.TempDir()
	}
	for _, base := range []string{base, os.TempDir(), "/tmp", "/var/tmp"} {
		if !openToAll(base) {
			continue
		}
		path, err := os.MkdirTemp(base, pattern)
		if err != nil {
			return "", err
		}
		if err := u.Own(path); err != nil {
			os.RemoveAll(path)
			return "", err
		}
		return path, nil
	}
	return "", fmt.Errorf("there is no temporary directory that user %d can reach; set TMPDIR", u.UID)
}

// openToAll reports whether everybody can reach what is in a directory.
func openToAll(dir string) bool {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() || info.Mode()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
