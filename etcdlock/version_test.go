package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/strangers"
)

// impostor says that it has another version, that no key is there, and counts what else it is asked.
type impostor struct {
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	version string
	grants  atomic.Int64
}

func (s *impostor) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: &pb.ResponseHeader{}, Version: s.version}, nil
}

func (s *impostor) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: 1}, Succeeded: true}
	for range r.Success {
		empty := &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Header: resp.Header}}
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: empty})
	}
	return resp, nil
}

func (s *impostor) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	s.grants.Add(1)
	return s.UnimplementedLeaseServer.LeaseGrant(ctx, r)
}

// serve returns the address of a server that claims to be of that version.
func serve(t *testing.T, version string) (*impostor, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &impostor{version: version}
	server := grpc.NewServer()
	pb.RegisterMaintenanceServer(server, s)
	pb.RegisterKVServer(server, s)
	pb.RegisterLeaseServer(server, s)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return s, listener.Addr().String()
}

func TestVersion(t *testing.T) {
	t.Parallel()
	t.Run("old", func(t *testing.T) {
		s, addr := serve(t, "3.5.12")
		failures.CheckAcquires(t, open(t, []string{addr}), unique("key"), etcdlock.ErrVersion, "3.5.12", "3.5.13")
		if n := s.grants.Load(); n > 0 {
			t.Errorf("it was asked for %d leases all the same", n)
		}
	})
	t.Run("good", func(t *testing.T) {
		s, addr := serve(t, "3.5.13")
		l := open(t, []string{addr})
		lease, err := l.TryLock(t.Context(), unique("key"))
		if err == nil {
			_ = lease.Unlock()
		}
		if err == nil || errors.Is(err, etcdlock.ErrVersion) || s.grants.Load() == 0 {
			t.Errorf("TryLock: %v; want the refusal of the lease by this server", err)
		}
	})
}

func TestTooOld(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"2.3.8": true, "3.0.0": true, "3.4.0": true, "3.4.99": true, "3.5.0": true, "3.5.9": true, "3.5.12": true, "3.5.12-rc.1": true,
		"3.5.13": false, "3.5.13-rc.0": false, "3.5.21": false, "3.5.100": false, "3.6.0": false, "3.6.0-alpha.0": false,
		"3.10.0": false, "4.0.0": false, "4.4.1": false, "": false, "v3.4.1": false, "3.4": false, "mine": false,
	} {
		if got := etcdlock.TooOld(version); got != want {
			t.Errorf("version %q is too old: %v; want %v", version, got, want)
		}
	}
}

// TestTTLNotKept has options that etcd cannot keep. No server is asked, so none is needed.
func TestTTLNotKept(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{locker.MinTTL, 999 * time.Millisecond, 1500 * time.Millisecond, time.Minute + 1} {
		start := time.Now()
		failures.CheckAcquires(t, open(t, []string{strangers.Nobody(t)}, locker.TTL(ttl)), unique("key"),
			locker.ErrInvalidOption, ttl.String(), "second")
		if took := time.Since(start); took > time.Second {
			t.Errorf("TTL(%v) was refused after %v: by whom?", ttl, took)
		}
	}
}

// FuzzTooOld has versions of any form: of a release, the numbers decide; what is no version is not refused.
func FuzzTooOld(f *testing.F) {
	f.Add(uint16(3), uint16(5), uint16(12), "-rc.1")
	f.Add(uint16(2), uint16(99), uint16(0), "")
	f.Add(uint16(3), uint16(10), uint16(1), "+git")
	f.Fuzz(func(t *testing.T, major, minor, patch uint16, rest string) {
		if rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			t.Skip("the patch goes on")
		}
		version := fmt.Sprintf("%d.%d.%d%s", major, minor, patch, rest)
		good := slices.Compare([]uint16{major, minor, patch}, []uint16{3, 5, 13}) >= 0
		if etcdlock.TooOld(version) == good {
			t.Errorf("version %q is too old: %v", version, good)
		}
		if etcdlock.TooOld(rest) && !strings.Contains(rest, ".") {
			t.Errorf("%q is too old", rest)
		}
	})
}
