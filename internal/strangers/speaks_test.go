package strangers_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/lockerkit/locker/internal/backends"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/testserver"
)

func TestMain(m *testing.M) {
	os.Exit(testserver.Main(m, redistest.Main, pgtest.Main, etcdtest.Main))
}

// TestSpeaks: the real servers are recognised, and what stands for them in other tests is like them.
func TestSpeaks(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]struct {
		addr string
		want string
	}{
		"Redis":              {redistest.Address(t), "Redis"},
		"etcd":               {etcdtest.New(t, etcdtest.Options{}).Member(0).Addr(), "an HTTP server"},
		"Postgres":           {pgtest.New(t, pgtest.Options{}).Addr(), "Postgres"},
		"stranger, Redis":    {strangers.Redis(t), "Redis"},
		"stranger, Postgres": {strangers.Postgres(t), "Postgres"},
		"stranger, HTTP/2":   {strangers.HTTP2(t), "an HTTP server"},
		"stranger, HTTP":     {strangers.HTTP(t), "an HTTP server"},
		"nobody":             {strangers.Nobody(t), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dial := func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", server.addr)
			}
			if got := backends.Speaks(t.Context(), dial); got != server.want {
				t.Errorf("Speaks: %q; want %q", got, server.want)
			}
		})
	}
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	class := errors.New("class")
	a, b := backends.Sentinel(class, "text"), backends.Sentinel(class, "text")
	if a.Error() != "text" || !errors.Is(a, class) || !errors.Is(a, a) || errors.Is(a, b) {
		t.Errorf("%v: of its class %v, another one %v", a, errors.Is(a, class), errors.Is(a, b))
	}
}
