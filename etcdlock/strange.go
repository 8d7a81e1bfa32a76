package etcdlock

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// contactFailure is failure for a request that may be the first.
func (b *backend) contactFailure(ctx context.Context, err error) error {
	if b.contacted.Load() || b.life.Err() != nil || b.client.Ctx().Err() != nil {
		return b.failure(err)
	}
	return strange(ctx, b.client.Endpoints(), err)
}

// strange explains why a request failed that no etcd has answered. If a connection was made, but what is at its other
// end does not speak HTTP/2, it finds out what that is.
func strange(ctx context.Context, endpoints []string, err error) error {
	err, _ = explain(err)
	if !strings.Contains(err.Error(), "error reading server preface") {
		return err
	}
	kinds := make([]string, len(endpoints))
	var all sync.WaitGroup
	for i, endpoint := range endpoints {
		all.Go(func() { kinds[i] = kindAt(ctx, endpoint) })
	}
	all.Wait()
	for _, kind := range kinds {
		if kind == "" { // one of them may be an etcd that is starting, say
			return fmt.Errorf("%w (is that etcd, and does it want TLS?)", err)
		}
	}
	return backends.Sentinel(locker.ErrUnfit,
		fmt.Sprintf("etcd: %s answers at %s, and not an etcd: check the address", kinds[0], endpoints[0]))
}

// kindAt returns what a server is that is certainly no etcd. An HTTP server may be a gateway before one that is not
// there just now.
func kindAt(ctx context.Context, endpoint string) string {
	addr := strings.TrimPrefix(endpoint, "http://")
	kind := backends.Speaks(ctx, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	})
	if kind == "Redis" || kind == "Postgres" {
		return kind
	}
	return ""
}
