package portkeep_test

import (
	"net"
	"testing"

	"github.com/lockerkit/locker/internal/portkeep"
)

// Connections to a kept port are refused until its owner listens, who may come and go.
func TestKeep(t *testing.T) {
	port, err := portkeep.Keep()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	for range 3 {
		if c, err := net.Dial("tcp", port.Addr()); err == nil {
			c.Close()
			t.Fatal("a kept port nobody listens on accepted a connection")
		}
		l, err := net.Listen("tcp4", port.Addr())
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", port.Addr()) // is open when the next one comes
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		l.Close()
	}
}
