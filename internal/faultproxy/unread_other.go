//go:build !unix

package faultproxy

import (
	"errors"
	"net"
	"os"
	"time"
)

// unread reports whether bytes, or the end of the stream, have come in and
// were not read yet. It may take a byte, which its caller can afford: it
// gives up the connection if there was one.
func unread(tcp *net.TCPConn) bool {
	tcp.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	defer tcp.SetReadDeadline(time.Time{})
	_, err := tcp.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}
