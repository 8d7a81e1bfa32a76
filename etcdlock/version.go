package etcdlock

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// contact asks one member for its version, before anything else is asked. That is a request which fails at once if no
// connection can be made, so that it says why; the client lets others wait for a connection.
func (b *backend) contact(ctx context.Context, ttl time.Duration) error {
	if b.contacted.Load() {
		return nil
	}
	ctx, cancel := b.requestOf(ctx)
	defer cancel()
	_, err := reading(ctx, b, ttl, func(ctx context.Context, l *link) (struct{}, error) {
		return struct{}{}, b.checkVersion(ctx, l)
	})
	return err
}

// checkVersion refuses servers whose leases cannot be relied upon. One member is asked, once.
func (b *backend) checkVersion(ctx context.Context, l *link) error {
	if b.contacted.Load() {
		return nil
	}
	status, err := once(ctx, b.endpoints.logins, l.status.Status, &pb.StatusRequest{})
	if err != nil && code(err) != codes.Unimplemented {
		return err
	}
	if tooOld(status.GetVersion()) {
		return fmt.Errorf("%w: this is %s", ErrVersion, status.GetVersion())
	}
	b.contacted.Store(true)
	return nil
}

func tooOld(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); n < 3 {
		return false // something else that speaks etcd's protocol: it has to know itself
	}
	switch {
	case major != 3 || minor > 5:
		return major < 3
	case minor == 5:
		return patch < 13
	}
	return true
}
