// Package portkeep hands out loopback TCP ports for test servers, and keeps
// them: while a server that owns such a port is down, for instance between a
// kill and a restart, no other program gets the port by chance.
//
// That matters because tests run side by side. A port found with the usual
// "listen on :0 and close" trick lies in the range from which the kernel takes
// the ports of every other listener and of every outgoing connection, so it
// may be gone when it is wanted again.
//
// The keeping works on Linux only. Elsewhere a Port is just a number that was
// free a moment ago, and users should retry.
package portkeep

import (
	"net"
	"strconv"
)

// Port is a TCP port on 127.0.0.1. Create one with Keep.
type Port struct {
	number  int
	release func() error
}

// Keep chooses a free port and keeps it until Close. Nothing listens on the
// port yet: connections to it are refused until someone listens on it, which
// needs SO_REUSEADDR on Linux (Go's net package, Redis and most servers set it).
func Keep() (*Port, error) { return keep() }

// Number returns the port number.
func (p *Port) Number() int { return p.number }

// Addr returns the address as host:port.
func (p *Port) Addr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.number))
}

// Close gives the port back. It does not affect who listens on it.
func (p *Port) Close() error { return p.release() }
