package etcdlock

import (
	"context"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// versionCheck refuses servers whose leases cannot be relied upon. One member is asked, once.
type versionCheck struct {
	mu   sync.Mutex
	done bool
}

func (b *backend) checkVersion(ctx context.Context) error {
	v := &b.version
	v.mu.Lock()
	done := v.done
	v.mu.Unlock()
	if done {
		return nil
	}
	status, err := onSome(ctx, b.conn, pb.NewMaintenanceClient(b.conn.ClientConn).Status, &pb.StatusRequest{}, nil)
	if err != nil && code(err) != codes.Unimplemented {
		return err
	}
	if tooOld(status.GetVersion()) {
		return fmt.Errorf("%w: this is %s", ErrVersion, status.GetVersion())
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done = true
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
