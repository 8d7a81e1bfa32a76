package etcdlock_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

func TestOpenInvalid(t *testing.T) {
	t.Parallel()
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{
		"", "host", "host:2379", "http://user:" + secret + "@host", "ETCD://user:" + secret + "@host", "etcd:/user:" + secret + "@host",
		"etcd://", "etcd://user:" + secret + "@", "etcd://user:" + secret + "@:2379", "etcd://user:" + secret + "@host:",
		"etcd://user:" + secret + "@host,", "etcd://user:" + secret + "@host/db", "etcd://user:" + secret + "@host:1:2",
		"etcd://user:" + secret + "@host#fragment", "etcd://user@host", "etcd://:" + secret + "@host", "etcd://us er:" + secret + "@host",
		"etcd://user:" + secret + "%zz@host", "etcd://user:" + secret + "/@host", "etcd://user:" + secret + "#@host", "etcd://user:@host",
		"etcd://user:" + secret + "@host?timeout=5", "etcd://user:" + secret + "@host?timeout=-5s", "etcd://user:" + secret + "@host?timeout=x",
		"etcd://user:" + secret + "@host?unknown=1", "etcd://user:" + secret + "@host?timeout=%zz", "etcd://user:" + secret + "@host?cacert=x",
		"etcd://user:?" + secret + "@host", "etcd://user:/" + secret + "?@host", "etcd://user:?timeout=" + secret + "@host",
		"etcds://user:" + secret + "@host?cacert=" + garbage, "etcds://user:" + secret + "@host?cacert=" + garbage + ".absent",
		"etcds://user:" + secret + "@host?cert=" + garbage, "etcds://user:" + secret + "@host?key=" + garbage,
		"etcds://user:" + secret + "@host?cert=" + garbage + "&key=" + garbage,
	} {
		l, err := etcdlock.Open(t.Context(), u)
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("Open(%q): %v; want ErrInvalidOption", u, err)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("Open(%q): the password is in %v", u, err)
		}
	}
}

// authorityOf returns the certificate that those of the members were signed with.
func authorityOf(t *testing.T, cluster *etcdtest.Cluster) []byte {
	t.Helper()
	conn, err := tls.Dial("tcp", cluster.Member(0).Addr(), cluster.TLS())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	chain := conn.ConnectionState().VerifiedChains[0]
	return chain[len(chain)-1].Raw
}

// TestTLS takes, waits and renews over TLS, with a certificate that the server asks for.
func TestTLS(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second // its renewals are in time also when the machine is busy
	cluster := etcdtest.New(t, etcdtest.Options{TLS: true})
	files := url.Values{}
	write := func(parameter, kind string, der []byte) {
		name := filepath.Join(t.TempDir(), parameter+".pem")
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		files.Set(parameter, name)
	}
	config := cluster.TLS()
	key, err := x509.MarshalPKCS8PrivateKey(config.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("cacert", "CERTIFICATE", authorityOf(t, cluster))
	write("cert", "CERTIFICATE", config.Certificates[0].Certificate[0])
	write("key", "PRIVATE KEY", key)
	addr := cluster.Member(0).Addr()
	_, port, _ := strings.Cut(addr, ":")
	t.Run("works", func(t *testing.T) {
		u := "etcds://" + addr + "?" + files.Encode()
		works(t, openURL(t, u, locker.TTL(ttl)), openURL(t, u, locker.TTL(ttl)), 1)
	})
	for name, c := range map[string]struct{ url, says string }{
		"no certificate":    {"etcds://" + addr + "?cacert=" + url.QueryEscape(files.Get("cacert")), ""},
		"unknown authority": {"etcds://" + addr + "?cert=" + url.QueryEscape(files.Get("cert")) + "&key=" + url.QueryEscape(files.Get("key")), "authority"},
		"wrong name":        {"etcds://localhost:" + port + "?" + files.Encode(), "localhost"},
		"plain text":        {"etcd://" + addr, "does it want TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			l, err := etcdlock.Open(t.Context(), c.url)
			if err == nil {
				_ = l.Close()
			}
			t.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), err)
			checkError(t, err, "open", "", locker.ErrUnavailable, c.says)
		})
	}
}
