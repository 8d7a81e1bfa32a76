//go:build unix

package testserver

import "syscall"

// credential is the user in the form of package syscall.
func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID}
}
