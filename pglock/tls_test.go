package pglock_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// enableTLS makes the server speak TLS, with a certificate that nobody has signed.
func enableTLS(t *testing.T, server *pgtest.Server) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: cert},
		"server.key": {Type: "PRIVATE KEY", Bytes: der},
	} {
		// By the server itself, which refuses a key that is not its own.
		text := strings.TrimSpace(string(pem.EncodeToMemory(block)))
		query := `COPY (SELECT unnest(string_to_array('` + text + `', E'\n'))) TO PROGRAM 'umask 077; cat > ` + name + `'`
		if _, err := admin.Exec(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	for _, query := range []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"} {
		if _, err := admin.Exec(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTLS takes, waits, cancels a wait and renews over TLS.
func TestTLS(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	enableTLS(t, server)
	const ttl = 3 * time.Second // its renewals are in time also when the machine is busy
	dsn := strings.Replace(server.URL(), "sslmode=disable", "sslmode=require", 1)
	var lockers [2]locker.Locker
	for i := range lockers {
		eventually(t, "the server has reloaded its settings", func() bool {
			l, err := pglock.Open(t.Context(), dsn, locker.TTL(ttl))
			if err == nil {
				lockers[i] = l
				t.Cleanup(func() { _ = l.Close() })
			}
			return err == nil
		})
	}
	lease, err := lockers[0].Lock(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), ttl/2)
	defer cancel()
	if _, err := lockers[1].Lock(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock of a key that is held: %v", err)
	}
	locktest.Outlives(t, lease, 2)
	next := make(chan error, 1)
	go func() {
		lease, err := lockers[1].Lock(context.Background(), "key")
		if err == nil {
			err = lease.Unlock()
		}
		next <- err
	}()
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-next; err != nil {
		t.Fatal(err)
	}
}
