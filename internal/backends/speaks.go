package backends

import (
	"bytes"
	"context"
	"net"
	"time"
)

// Dial makes a connection.
type Dial func(ctx context.Context) (net.Conn, error)

// Speaks finds out what kind of server is at the other end of a connection, for a better error when it does not answer
// as its client expects: "Redis", "Postgres", "an HTTP server", or "" if it says nothing that is known. It takes a
// second at most, and three connections.
func Speaks(ctx context.Context, dial Dial) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	// Each line is a request that is complete to one kind of server, and harmless to the others.
	for _, q := range []struct {
		ask    []byte
		answer func([]byte) string
	}{
		{[]byte{0, 0, 0, 8, 4, 210, 22, 47}, ofPostgres}, // SSLRequest
		{[]byte("PING\r\n\r\n"), ofText},                 // a command to Redis, and a bad request to HTTP
		{[]byte("GET / HTTP/1.0\r\n\r\n"), ofText},       // etcd, for one, hangs up on what is no request of HTTP
	} {
		if kind := q.answer(ask(ctx, dial, q.ask)); kind != "" {
			return kind
		}
	}
	return ""
}

// ask sends a request and returns the beginning of the answer.
func ask(ctx context.Context, dial Dial, request []byte) []byte {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write(request); err != nil {
		return nil
	}
	answer := make([]byte, 64)
	n, _ := conn.Read(answer)
	return answer[:n]
}

func ofPostgres(answer []byte) string {
	if len(answer) == 1 && (answer[0] == 'S' || answer[0] == 'N') {
		return "Postgres"
	}
	return ""
}

func ofText(answer []byte) string {
	switch {
	case bytes.HasPrefix(answer, []byte("+PONG")),
		bytes.HasPrefix(answer, []byte("-NOAUTH")),
		bytes.HasPrefix(answer, []byte("-LOADING")),
		bytes.HasPrefix(answer, []byte("-DENIED")),
		bytes.HasPrefix(answer, []byte("-ERR")):
		return "Redis"
	case bytes.HasPrefix(answer, []byte("HTTP/")):
		return "an HTTP server"
	case len(answer) >= 9 && answer[3] == 4 && answer[4] <= 1: // the SETTINGS of HTTP/2, with which gRPC begins
		return "an HTTP server"
	}
	return ""
}
