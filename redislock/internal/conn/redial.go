package conn

import (
	"context"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redialing has a client dial as soon as it needs a connection. A pool of go-redis counts the dials that fail, and
// when they have been as many as it has room for connections, it dials no more than once in a second: in that second,
// leases are lost although the server can be reached again. So it is told of none. The client must not be in use yet.
func Redialing(uc redis.UniversalClient) {
	switch uc := uc.(type) {
	case *redis.Client:
		uc.AddHook(redialHook{})
	case *redis.ClusterClient:
		uc.OnNewNode(func(node *redis.Client) { node.AddHook(redialHook{}) })
	}
}

type redialHook struct{ passOn }

// DialHook implements redis.Hook.
func (redialHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := next(ctx, network, addr)
		if err != nil {
			return undialed{err}, nil
		}
		return c, nil
	}
}

// undialed is a connection that could not be made, which whoever is to use it learns.
type undialed struct{ err error }

func (u undialed) Read([]byte) (int, error)       { return 0, u.err }
func (u undialed) Write([]byte) (int, error)      { return 0, u.err }
func (undialed) Close() error                     { return nil }
func (undialed) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (undialed) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (undialed) SetDeadline(time.Time) error      { return nil }
func (undialed) SetReadDeadline(time.Time) error  { return nil }
func (undialed) SetWriteDeadline(time.Time) error { return nil }
