package redistest

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// isUp reports whether a Redis server answers at addr before the deadline. One
// that is still loading its data, wants a password or has no master counts, too:
// it is up.
func isUp(addr string, deadline time.Time) error {
	reply, err := roundTrip(addr, deadline, "PING")
	if err != nil {
		return err
	}
	for _, good := range []string{"+PONG", "-LOADING", "-NOAUTH", "-MASTERDOWN"} {
		if strings.HasPrefix(reply, good) {
			return nil
		}
	}
	return fmt.Errorf("reply to PING: %q", reply)
}

// roundTrip sends one command on a new connection and returns the first line
// of the reply, with the type character in front.
func roundTrip(addr string, deadline time.Time, command ...string) (string, error) {
	d := net.Dialer{Deadline: deadline}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	return exchange(conn, command...)
}

// exchange sends one command and returns the first line of the reply.
func exchange(conn net.Conn, command ...string) (string, error) {
	var req strings.Builder
	fmt.Fprintf(&req, "*%d\r\n", len(command))
	for _, arg := range command {
		fmt.Fprintf(&req, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := conn.Write([]byte(req.String())); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}
