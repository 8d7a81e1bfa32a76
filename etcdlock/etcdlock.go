package etcdlock

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// storeName names the store in errors.
const storeName = "etcd"

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker/"

// Config is what can be chosen beside the options of package locker, which are the same for all backends. The zero
// Config is what the functions New and Open use.
type Config struct {
	// RequestTimeout bounds one request to the servers. Zero means a third of the TTL, but at least 100 ms and at most
	// 3 s. Raise it for members that need longer to answer, because of slow disks, say.
	RequestTimeout time.Duration
}

// New returns a Client that keeps its locks in the etcd that client is connected to. The options are the defaults for
// its leases, see locker.New.
//
// It uses the connection of client and never closes it: Close the Locker first, then the client. A client that was
// closed before is ErrClosed. The server is not asked anything before the first lock is asked for. The first Lock or
// TryLock returns ErrInvalidOption if client is nil, or has no connection, as the client of an embedded etcd.
func New(client *clientv3.Client, opts ...locker.Option) *locker.Client {
	return Config{}.New(client, opts...)
}

// Open is New with a client of its own for the given URL:
//
//	etcd://host:2379                                   plain text
//	etcd://user:password@host1:2379,host2,host3        the members of a cluster; the port is 2379 unless given
//	etcds://host?cacert=ca.pem&cert=me.pem&key=me.key  TLS; names of files as of the options of etcdctl
//
// The parameters are cacert (of the authority that the server's certificate must come from; the system's if absent),
// and cert and key (of the client, in files). A timeout is for the login of a user, such as 2s; it is 5s if absent. A
// user needs a password. An unusable URL is ErrInvalidOption.
//
// Open connects, and locks a key for a moment (see locker.Client.Ping), bounded by ctx. So it reports what would keep
// the locks from working: a server that is out of reach, a wrong password, a missing permission. Close closes the
// client.
func Open(ctx context.Context, rawURL string, opts ...locker.Option) (*locker.Client, error) {
	return Config{}.Open(ctx, rawURL, opts...)
}

// New is like the function New. An unusable Config is reported by the first Lock or TryLock, as ErrInvalidOption.
func (c Config) New(client *clientv3.Client, opts ...locker.Option) *locker.Client {
	err := c.check()
	switch {
	case client == nil:
		err = fmt.Errorf("%w: the client is nil", locker.ErrInvalidOption)
	case client.ActiveConnection() == nil:
		err = fmt.Errorf("%w: the client has no connection, as that of an embedded etcd: connect one to its address",
			locker.ErrInvalidOption)
	}
	if err != nil {
		return locker.New(backends.Unusable{Name: storeName, Err: err}, opts...)
	}
	return newLocker(newBackend(c, client, nil), opts)
}

// Open is like the function Open.
func (c Config) Open(ctx context.Context, rawURL string, opts ...locker.Option) (*locker.Client, error) {
	config, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("etcdlock: %w", err)
	}
	client, closeClient, err := dial(ctx, config)
	switch {
	case err == nil:
	case ctx.Err() != nil || errors.Is(err, locker.ErrDenied) || errors.Is(err, locker.ErrUnfit),
		errors.Is(err, locker.ErrUnavailable):
		return nil, fmt.Errorf("etcdlock: %w", err)
	default:
		return nil, fmt.Errorf("etcdlock: %w: %w", locker.ErrUnavailable, err)
	}
	l := newLocker(newBackend(c, client, closeClient), opts)
	if err := l.Ping(ctx); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("etcdlock: %w", err)
	}
	return l, nil
}

func (c Config) check() error {
	if c.RequestTimeout < 0 {
		return fmt.Errorf("%w: RequestTimeout is %v, must not be negative", locker.ErrInvalidOption, c.RequestTimeout)
	}
	return nil
}

func newLocker(b *backend, opts []locker.Option) *locker.Client {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}

// dial returns a client, and what closes it. If there is a user, it logs in, bounded by ctx.
func dial(ctx context.Context, config clientv3.Config) (client *clientv3.Client, closeClient func() error, err error) {
	life, end := context.WithCancel(context.Background()) // of the client, which lives on when ctx ends
	config.Context = life
	stop := context.AfterFunc(ctx, end)
	// The login waits for a connection unless it is told not to; and then says why there is none.
	var connected atomic.Bool
	failFast := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {
		if !connected.Load() {
			opts = append(opts, grpc.WaitForReady(false))
		}
		return invoke(ctx, method, req, reply, conn, opts...)
	}
	config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(failFast))
	client, err = clientv3.New(config)
	connected.Store(true)
	if err == nil && stop() {
		return client, func() error { defer end(); return client.Close() }, nil
	}
	end()
	switch {
	case err == nil:
		_ = client.Close()
		return nil, nil, ended(ctx)
	case ctx.Err() != nil:
		return nil, nil, ended(ctx)
	}
	return nil, nil, strange(ctx, config.Endpoints, err)
}

// ended returns the error of a call that the end of ctx has ended: it matches ctx.Err and the cause of ctx.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
