package portkeep_test

import (
	"net"
	"testing"

	"github.com/lockerkit/locker/internal/portkeep"
)

func TestKeep(t *testing.T) {
	port, err := portkeep.Keep()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()

	if c, err := net.Dial("tcp", port.Addr()); err == nil {
		c.Close()
		t.Fatal("a kept port nobody listens on accepted a connection")
	}

	// The owner may come and go, also with a connection of the last life open.
	for range 3 {
		l, err := net.Listen("tcp4", port.Addr())
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", port.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}

	if err := port.Close(); err != nil {
		t.Error(err)
	}
	if err := port.Close(); err != nil {
		t.Error("second Close:", err)
	}
}

func TestKeptPortsDiffer(t *testing.T) {
	seen := make(map[int]bool)
	for range 50 {
		port, err := portkeep.Keep()
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		if seen[port.Number()] {
			t.Fatalf("port %d was handed out twice", port.Number())
		}
		seen[port.Number()] = true
	}
}
