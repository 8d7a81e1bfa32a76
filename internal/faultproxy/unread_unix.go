//go:build unix

package faultproxy

import (
	"net"
	"syscall"
)

// unread reports whether bytes, or the end of the stream, have come in and
// were not read yet. It looks without taking.
func unread(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	something := false
	// Control fails only if tcp is closed, and then it does not matter.
	_ = raw.Control(func(fd uintptr) {
		var b [1]byte
		// The descriptor is non-blocking: EAGAIN means that there is nothing.
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		something = err != syscall.EAGAIN
	})
	return something
}
