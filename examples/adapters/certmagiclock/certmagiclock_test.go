package certmagiclock

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/redislock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

var (
	_ certmagic.Storage          = (*Storage)(nil)
	_ certmagic.TryLocker        = (*Storage)(nil)
	_ certmagic.LockLeaseRenewer = (*Storage)(nil)
)

// onRedis returns the storage of another machine, by its Locker: all store in the same directory.
func onRedis(t *testing.T, dir string) *Storage {
	l, err := redislock.Open(t.Context(), "redis://"+redistest.Address(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return inDirectory(dir, l)
}

func inDirectory(dir string, l locker.Locker) *Storage {
	return &Storage{Storage: &certmagic.FileStorage{Path: dir}, Locks: l}
}

// Lock "blocks until the named lock is released", and only one "can exist at a time".
func TestLockWaits(t *testing.T) {
	t.Parallel()
	ctx, a, b := t.Context(), onRedis(t, t.TempDir()), onRedis(t, t.TempDir())
	if err := a.Lock(ctx, t.Name()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Storage{a, b} { // not in the same process either
		if ok, err := s.TryLock(ctx, t.Name()); ok || err != nil {
			t.Errorf("TryLock of what is locked: %v, %v", ok, err)
		}
	}
	if ok, err := b.TryLock(ctx, t.Name()+"2"); !ok || err != nil {
		t.Errorf("TryLock of another name: %v, %v", ok, err)
	}
	var unlocked atomic.Bool
	locked := make(chan error)
	go func() {
		err := b.Lock(ctx, t.Name())
		if !unlocked.Load() {
			t.Error("two have it")
		}
		locked <- err
	}()
	select {
	case <-locked:
	case <-time.After(100 * time.Millisecond):
	}
	unlocked.Store(true)
	if err := a.Unlock(ctx, t.Name()); err != nil {
		t.Error(err)
	}
	if err := locktest.Receive(t, locked); err != nil {
		t.Fatal(err)
	}
	if ok, err := a.TryLock(ctx, t.Name()); ok || err != nil {
		t.Errorf("TryLock of what the other has: %v, %v", ok, err)
	}
	if err := b.Unlock(ctx, t.Name()); err != nil {
		t.Error(err)
	}
}

// "Implementations should honor context cancellation", and Unlock "cleans up", also when the work was cancelled.
func TestContext(t *testing.T) {
	t.Parallel()
	a, b := onRedis(t, t.TempDir()), onRedis(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	if err := a.Lock(ctx, t.Name()); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() { waited <- b.Lock(ctx, t.Name()) }()
	cancel()
	if err := locktest.Receive(t, waited); !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
	if err := a.Unlock(ctx, t.Name()); err != nil {
		t.Errorf("Unlock with a context that has ended: %v", err)
	}
	if ok, err := b.TryLock(t.Context(), t.Name()); !ok || err != nil {
		t.Errorf("not free after that: %v, %v", ok, err)
	}
}

// "The lock is released or becomes stale": that of a machine that is cut off, after the TTL, in fake time.
func TestStale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Minute))
		other := l.Peer()
		a, b := inDirectory(t.TempDir(), l), inDirectory(t.TempDir(), other)
		if err := a.Lock(t.Context(), "name"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the work lasts, and the lease renews itself
		if err := a.RenewLockLease(t.Context(), "name", time.Second); err != nil {
			t.Errorf("RenewLockLease of what is held: %v", err)
		}
		defer l.Cut()()
		if err := b.Lock(t.Context(), "name"); err != nil {
			t.Fatal(err)
		}
		if err := a.RenewLockLease(t.Context(), "name", time.Hour); !errors.Is(err, locker.ErrLost) {
			t.Errorf("RenewLockLease of what is lost: %v", err)
		}
		if err := a.Unlock(t.Context(), "name"); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock of what is lost: %v", err)
		}
		if err := b.RenewLockLease(t.Context(), "name", time.Hour); err != nil {
			t.Errorf("who has it now: %v", err)
		}
		if err := b.Unlock(t.Context(), "name"); err != nil {
			t.Error(err)
		}
	})
}

// Unlock "must ONLY be called after a successful call to Lock": other calls free nothing. Nor do those of who has lost
// the lock to another goroutine of the same process, in either order.
func TestUnlockFreesNoOthers(t *testing.T) {
	t.Parallel()
	ctx, l := t.Context(), memlock.New()
	a, b := inDirectory(t.TempDir(), l), inDirectory(t.TempDir(), l.Peer())
	lock := func(s *Storage) {
		t.Helper()
		if err := s.Lock(ctx, "name"); err != nil {
			t.Fatal(err)
		}
	}
	stillLocked := func() {
		t.Helper()
		if ok, err := b.TryLock(ctx, "name"); ok || err != nil {
			t.Errorf("TryLock of what is locked: %v, %v", ok, err)
		}
	}
	lock(a)
	if b.Unlock(ctx, "name") == nil || b.RenewLockLease(ctx, "name", time.Hour) == nil {
		t.Error("unlocked or renewed what another has")
	}
	stillLocked()
	_ = l.Break(t.Context(), "name")
	lock(a) // another goroutine
	if err := a.Unlock(ctx, "name"); !errors.Is(err, locker.ErrLost) {
		t.Errorf("the first Unlock: %v", err)
	}
	stillLocked()
	if err := a.Unlock(ctx, "name"); err != nil {
		t.Errorf("the second Unlock: %v", err)
	}
	if err := a.Unlock(ctx, "name"); err == nil {
		t.Error("there was a third one")
	}
	lock(b)
}

// issuer is a certificate authority in memory.
type issuer struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	issued  atomic.Int32
	issuing chan struct{} // sent to as one begins
	proceed chan struct{} // received from before it ends
}

func newIssuer(t *testing.T) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{t: t, key: key, issuing: make(chan struct{}, 10), proceed: make(chan struct{})}
}

func (*issuer) IssuerKey() string { return "in-memory" }

func (i *issuer) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	i.issuing <- struct{}{}
	<-i.proceed
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(i.issued.Add(1))),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(90 * 24 * time.Hour),
		DNSNames:     csr.DNSNames,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, csr.PublicKey, i.key)
	return &certmagic.IssuedCertificate{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// Two machines want the same certificate at the same time, of certmagic itself: one is issued, and both have it.
func TestOneIssuance(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), newIssuer(t)
	var configs []*certmagic.Config
	for range 2 {
		var config *certmagic.Config
		cache := certmagic.NewCache(certmagic.CacheOptions{
			GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
			Logger:           zap.NewNop(),
		})
		t.Cleanup(cache.Stop)
		s := announced{onRedis(t, dir), make(chan struct{}, 10)}
		config = certmagic.New(cache,
			certmagic.Config{Storage: s, Issuers: []certmagic.Issuer{ca}, Logger: zap.NewNop(), DisableARI: true})
		configs = append(configs, config)
	}
	obtained := make(chan error, 2)
	for _, config := range configs {
		go func() { obtained <- config.ManageSync(t.Context(), []string{"locks.example.com"}) }()
	}
	locktest.Receive(t, ca.issuing)
	for _, config := range configs {
		locktest.Receive(t, config.Storage.(announced).locking) // both want it, and one has it
	}
	close(ca.proceed)
	for range configs {
		if err := locktest.Receive(t, obtained); err != nil {
			t.Error(err)
		}
	}
	if n := ca.issued.Load(); n != 1 {
		t.Errorf("%d certificates were issued", n)
	}
	for _, config := range configs {
		cert, err := config.CacheManagedCertificate(t.Context(), "locks.example.com")
		if err != nil {
			t.Error(err)
		} else if n := cert.Leaf.SerialNumber.Int64(); n != 1 {
			t.Errorf("has certificate %d", n)
		}
	}
}

// announced tells when it is about to lock.
type announced struct {
	*Storage
	locking chan struct{}
}

func (s announced) Lock(ctx context.Context, name string) error {
	s.locking <- struct{}{}
	return s.Storage.Lock(ctx, name)
}
